// SPDX-License-Identifier: Apache-2.0
// The stacks of sigaltstack(2), where the kernel's faults are not served: it writes a signal's frame there and can't be
// told to try again, so the program would end.
#pragma once

#include <signal.h>

#include "runtime/base/types.hpp"

namespace uhmm::preload {

// The calling thread has this one from now on. What of it was managed comes home and is managed no more.
void alternate_stack_is(const stack_t& stack);
// Does one lie there? Then it is not to be managed.
bool is_alternate_stack(ByteRange pages);
void lock_stacks_for_fork();
void unlock_stacks_after_fork();

}  // namespace uhmm::preload
