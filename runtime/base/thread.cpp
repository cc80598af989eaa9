// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/thread.hpp"

#include <signal.h>

#include "runtime/base/check.hpp"

namespace uhmm {
namespace {
std::atomic<std::uint32_t> threads{0};
thread_local bool ours = false;
}  // namespace

bool Thread::is_ours() { return ours; }

std::uint32_t Thread::count() { return threads.load(); }

Thread::~Thread() { UHMM_CHECK(!running_, "a runtime thread was not joined"); }

Status Thread::start(const char* name, void (*body)(void*), void* context) {
  UHMM_CHECK(!running_, "the thread runs already");
  name_ = name;
  body_ = body;
  context_ = context;
  entered_.store(0);
  // The new thread inherits the mask: blocked from its first instruction on.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&handle_, nullptr, &Thread::enter, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) return fail_errno("starting a runtime thread", error);
  running_ = true;
  threads.fetch_add(1);
  // A thread that is starting may hold locks of the C library or a sanitizer; a device's process that is copied
  // meanwhile would keep them for ever.
  entered_.wait(0);
  return {};
}

void Thread::join() {
  if (!running_) return;
  threads.fetch_sub(1);  // first: a thread that ends must not make room in the count for one of the program's
  pthread_join(handle_, nullptr);
  running_ = false;
}

void Thread::forget() {
  if (running_) threads.fetch_sub(1);
  running_ = false;
}

void* Thread::enter(void* self) {
  auto* thread = static_cast<Thread*>(self);
  ours = true;
  pthread_setname_np(pthread_self(), thread->name_);
  thread->entered_.store(1);
  thread->entered_.notify_one();
  thread->body_(thread->context_);
  return nullptr;
}

}  // namespace uhmm
