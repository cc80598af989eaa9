// SPDX-License-Identifier: Apache-2.0
// What the program has said about memory in forked children that only the kernel remembers.
#pragma once

#include "runtime/base/types.hpp"

namespace uhmm::os {

// Calls visit(context, pages) for every mapping that a child finds empty (MADV_WIPEONFORK), ascending. The kernel
// prints its whole map for that: milliseconds where much memory is resident. False: it can't be read.
bool for_each_wiped(void (*visit)(void* context, ByteRange pages), void* context);

}  // namespace uhmm::os
