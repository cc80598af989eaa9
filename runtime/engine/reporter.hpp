// SPDX-License-Identifier: Apache-2.0
// Answers `uhmm maps` and `uhmm home`: one thread that sleeps until a tool of the same user calls, brings everything
// home if it is asked to, and says where everything is. It has a thread of its own so that it answers also when workers
// and service threads are all busy, or stuck.
#pragma once

#include "runtime/base/thread.hpp"
#include "runtime/engine/context.hpp"
#include "runtime/os/local_service.hpp"

namespace uhmm::engine {

class Reporter {
 public:
  explicit Reporter(Context& context) : context_(context) {}
  // Errors: BUSY (the name is taken), SYSTEM. A program that can't be asked works all the same.
  Status start();
  void stop();
  void forget_thread();

 private:
  static void run(void* self);
  void answer(int caller, char request);

  Context& context_;
  os::LocalService service_;
  Thread thread_;
};

// Writes the report to a file that is empty so far. Errors: SYSTEM.
Status write_report(Context& context, int file);

}  // namespace uhmm::engine
