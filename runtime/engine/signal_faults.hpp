// SPDX-License-Identifier: Apache-2.0
// Serving a fault of the CPU on the thread that has it, inside its signal handler (the rung UHMM_FAULTS_SIGNAL).
#pragma once

#include "runtime/engine/context.hpp"
#include "runtime/os/fault_signal.hpp"

namespace uhmm::engine {

// True: the access is to be tried again. False: the memory is not ours, or lost: the program gets its SIGBUS.
bool serve_signalled_fault(Context& context, const os::SignalledFault& fault);

// Is the calling thread in there? It has locks of the runtime then, though it is the program's.
bool serving_signalled_fault();

}  // namespace uhmm::engine
