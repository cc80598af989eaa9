// SPDX-License-Identifier: Apache-2.0
// A range ends, whole or in part: at the program's request, or because the memory itself ends.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Under the address space's exclusive lock: the range, of which nothing is current on any device, ends and is
// destroyed.
void end_range(Context& context, Range* range);

// Whole pages of the address space end: what is registered there is registered no more, contents are given up, and
// ranges that reach further are cut. All or nothing. Errors: NO_MEMORY; what revoking from a device says.
Status forget_pages(Context& context, ByteRange pages);

// The same, but contents come home first and stay. Errors: NO_MEMORY (something could not come home, or no memory for a
// cut: nothing ended); DATA_LOST (done, but pages of it are lost); BUSY (devices take pages away again and again).
Status unregister_pages(Context& context, ByteRange pages);

// The program has moved the pages with mremap(2), past us: what was away comes home at the new address, and they end as
// forgotten pages do. Not on service threads.
void follow_move(Context& context, const os::UffdMove& move);
// For Userfaultfd::listen(): has a worker follow the move. `context` is the Context.
void post_move(void* context, const os::UffdMove& move);

// The address is watched and of no range: a mapping that was watched has grown, or moved. Its part around the address
// is watched no more.
void watch_no_more(Context& context, VirtAddr address);

// On return devices reach none of the pages; their next access asks again what the program's memory map allows.
Status revoke_access(Context& context, ByteRange pages);

}  // namespace uhmm::engine
