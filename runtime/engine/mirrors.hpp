// SPDX-License-Identifier: Apache-2.0
// Shared memory that other processes may see: it is never migrated. Devices work on the same pages as the program, by a
// mapping of their own of the same file, so that whoever has it sees the same bytes at any time.
//
// A range is mirrored from its registration when it shows an ordinary file, or shared memory that has a name; shared
// memory without a name when the program forks, because from then on its child has it, too.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Can every device that there is mirror the memory? Errors: NOT_SUPPORTED, FAULT, SYSTEM; the detail says why not.
Status can_mirror(Context& context, ByteRange pages);
// May any process open what is mapped there?
bool has_name(Context& context, ByteRange pages);

// The device's mapping becomes what the program's is now. Under the range's arm mutex.
Status mirror(Context& context, Range& range, DeviceIndex index, Device& device);
// Shared memory is at home and stays there. The fork gate is closed. What can't be mirrored goes on as before.
void mirror_shared_memory(Context& context);

// Devices follow what the program has made of its mappings: in `pages`; and all that `index` reaches, before it works.
Status renew_mirrors(Context& context, ByteRange pages);
Status renew_mirrors(Context& context, DeviceIndex index);

}  // namespace uhmm::engine
