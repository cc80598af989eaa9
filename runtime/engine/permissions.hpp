// SPDX-License-Identifier: Apache-2.0
// What the program's memory map allows now. A device gets no more: memory that is not mapped, or not readable, does not
// go there, and what is not writable is mapped read-only.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

struct Permissions {
  PageMask readable;
  PageMask writable;
};

// Before Linux 6.11 only holes are known: the rest counts as readable and writable.
Permissions permissions_of(Context& context, const Segment& segment);

// Pages that the program has made guard pages, on kernels that tell. They are mapped as before, and can't be touched.
PageMask guards_of(Context& context, const Segment& segment);

// Is what is mapped there still what was registered? While nobody watched, the program may have mapped something else
// there: private memory is as good as any other, but of another object we have no view, and what is shared with
// somebody can't be taken away. Kernels that would have to print the whole map (before 6.11) aren't asked.
// Errors: NOT_REGISTERED.
Status check_same_memory(Context& context, const Range& range);

// May a device access this registered memory? Errors: FAULT (not mapped, not readable, or a guard page), PERMISSION
// (not writable), NOT_REGISTERED (something else is mapped there).
Status check_access(Context& context, ByteRange bytes, bool write);

}  // namespace uhmm::engine
