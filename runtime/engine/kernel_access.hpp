// SPDX-License-Identifier: Apache-2.0
// Memory that a system call is about to use, on the rungs where faults of the kernel itself are not served: such a call
// fails with EFAULT, unless its memory is made ready first.
#pragma once

#include <atomic>

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Is there a runtime, and is it on such a rung? One load, for those who ask ahead of every system call.
inline std::atomic<bool> kernel_faults_unserved{false};

struct Readiness {
  Status status;
  bool managed = false;  // some of the bytes are registered
  bool served = false;   // something was in the way of the kernel
};
// Every page of the bytes that is watched is served as if the CPU touched it: what is away comes home, what was never
// touched gets backing, and with `write` what devices have copies of is theirs no more. A device may take it again at
// any time. On a thread of the runtime (WorkerPool::call).
Readiness make_ready_for_kernel(Context& context, ByteRange bytes, bool write);

}  // namespace uhmm::engine
