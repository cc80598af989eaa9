// SPDX-License-Identifier: Apache-2.0
// SIGBUS as the messenger of page faults (UFFD_FEATURE_SIGBUS): the handler runs on the faulting thread, on whatever
// stack that is on. Other causes of SIGBUS go on to whoever handled it before.
#pragma once

#include <csignal>

#include "runtime/base/types.hpp"

namespace uhmm::os {

struct SignalledFault {
  VirtAddr address;  // page-aligned
  bool is_write = false;
  bool present = false;             // the page is there, but the access is not allowed
  bool on_alternate_stack = false;  // which may be small
};

// One at a time in a process.
class FaultSignal {
 public:
  // True: served, the access is tried again. False: that was none of ours.
  using Serve = bool (*)(void* context, const SignalledFault& fault);

  // From now on `serve` is called, with all signals blocked and errno saved. 0 or an errno.
  static int install(Serve serve, void* context);
  // On return `serve` is not running and not called any more. A handler that the program has put in our place since
  // then stays.
  static void remove();
  // In a forked child: none of the threads that were in serve() is here.
  static void forget_threads();
};

}  // namespace uhmm::os
