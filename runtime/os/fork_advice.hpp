// SPDX-License-Identifier: Apache-2.0
// What the program has said about memory in forked children that only the kernel remembers.
#pragma once

#include "runtime/base/types.hpp"

namespace uhmm::os {

// Calls visit(context, pages) for every mapping that a child finds empty (MADV_WIPEONFORK), ascending. The kernel
// prints its whole map for that: milliseconds where much memory is resident. False: it can't be read.
bool for_each_wiped(void (*visit)(void* context, ByteRange pages), void* context);
// The same for every mapping that a child has not (MADV_DONTFORK).
bool for_each_kept(void (*visit)(void* context, ByteRange pages), void* context);
// Whoever copies the process from now on gets no such memory; or does again.
void keep_from_copies(ByteRange pages, bool on);

}  // namespace uhmm::os
