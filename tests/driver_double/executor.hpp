// SPDX-License-Identifier: Apache-2.0
// The process that runs one stream's kernels. It has one thread; mappings change by a signal, also while a kernel runs.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "uhmm/uhmm.h"

namespace uhmm::driver_double {

class Executor {
 public:
  static inline void (*on_copy)(bool begins) = nullptr;
  enum class Action : std::uint32_t { Close, Open };  // make addresses inaccessible; map the memory file there
  struct Request {
    Action action = Action::Close;
    std::uint64_t address = 0;
    std::uint64_t bytes = 0;
    std::uint64_t offset = 0;
  };
  struct Fault {
    int signal = 0;  // 0: none
    std::uint64_t address = 0;
    std::uint64_t kernel = 0;
  };

  explicit Executor(int file) : file_(file) {}
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  ~Executor();

  bool start();
  // False: the process is gone.
  bool perform(const Request& request);
  // Waits while too many are queued. False: the process is gone or has failed.
  bool launch(const void* function, const std::uint32_t (&grid)[3], const void* args, std::size_t bytes);
  std::uint64_t launched() const { return launched_; }
  std::uint64_t completed() const;
  // Sleeps a moment, at most until the next launch has ended.
  void doze(std::uint64_t seen_completed) const;
  // What ended it. `signal` is SIGKILL where nothing is known but that it is gone.
  Fault fault() const;

 private:
  struct Shared;
  friend struct ExecutorProcess;
  bool gone() const;

  int file_;
  pid_t pid_ = -1;
  Shared* shared_ = nullptr;
  std::uint64_t launched_ = 0;
};

}  // namespace uhmm::driver_double
