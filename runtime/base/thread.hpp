// SPDX-License-Identifier: Apache-2.0
// A thread of the runtime: named, with every signal blocked so that the program's handlers never run on it, and started
// without touching the program's allocator.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

#include "runtime/base/status.hpp"

namespace uhmm {

class Thread {
 public:
  Thread() = default;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  // Not joined by the destructor: who starts a thread also ends it.
  ~Thread();

  // `name` is static text of at most 15 characters. `body(context)` runs until it returns; it has begun when this
  // returns. Errors: SYSTEM, NO_MEMORY.
  Status start(const char* name, void (*body)(void*), void* context);
  bool running() const { return running_; }
  // Waits for the body's return. Nothing to do when not running.
  void join();
  // In a forked child the thread does not exist: forget it.
  void forget();

  // Threads of the runtime that were started and not joined yet, in this process.
  static std::uint32_t count();
  // Is the calling thread one of them?
  static bool is_ours();

 private:
  static void* enter(void* self);

  pthread_t handle_{};
  const char* name_ = "";
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  bool running_ = false;
  std::atomic<std::uint32_t> entered_{0};  // a word that can be slept on as it is
};

}  // namespace uhmm
