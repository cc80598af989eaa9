// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/worker_pool.hpp"

#include <algorithm>
#include <bit>
#include <thread>

#include "runtime/base/check.hpp"

namespace uhmm::engine {
namespace {

thread_local bool runtime_thread = false;

}  // namespace

void WorkerPool::enter_runtime_thread() { runtime_thread = true; }
void WorkerPool::leave_runtime_thread() { runtime_thread = false; }
bool WorkerPool::on_runtime_thread() { return runtime_thread; }

Status WorkerPool::start(std::uint32_t threads) {
  stopping_.store(false);
  for (count_ = 0; count_ < std::min(threads, kMostThreads); ++count_) {
    if (const Status status = threads_[count_].start("uhmm-work", run_thread, this); !status.ok()) {
      stop();
      return status;
    }
  }
  return {};
}

Status WorkerPool::start_once(std::uint32_t threads) {
  if (started_.load()) return {};
  const std::scoped_lock lock(start_mutex_);
  if (started_.load()) return {};
  const Status status = start(threads);
  started_.store(status.ok());
  return status;
}

void WorkerPool::stop() {
  stopping_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::uint32_t i = 0; i < count_; ++i) threads_[i].join();
  count_ = 0;
  started_.store(false);
}

void WorkerPool::forget_threads() {
  for (std::uint32_t i = 0; i < count_; ++i) threads_[i].forget();
  count_ = 0;
}

void WorkerPool::run_thread(void* self) {
  enter_runtime_thread();
  static_cast<WorkerPool*>(self)->loop();
}

void WorkerPool::collect_locked() {
  Work* newest = incoming_.exchange(nullptr);
  Work* oldest_first = nullptr;
  Work* tail = newest;
  while (newest != nullptr) {
    Work* next = newest->next;
    newest->next = oldest_first;
    oldest_first = newest;
    newest = next;
  }
  if (oldest_first == nullptr) return;
  (last_ != nullptr ? last_->next : first_) = oldest_first;
  last_ = tail;
}

std::uint32_t WorkerPool::claim_call() {
  std::uint64_t free = free_calls_.load();
  for (;;) {
    if (free == 0) {
      free_calls_.wait(0);
      free = free_calls_.load();
      continue;
    }
    const auto index = static_cast<std::uint32_t>(std::countr_zero(free));
    if (free_calls_.compare_exchange_weak(free, free & ~(std::uint64_t{1} << index))) return index;
  }
}

void WorkerPool::return_call(std::uint32_t index) {
  if (free_calls_.fetch_or(std::uint64_t{1} << index) == 0) free_calls_.notify_all();
}

WorkerPool::Work* WorkerPool::pop_locked() {
  collect_locked();
  Work* work = first_;
  if (work == nullptr) return nullptr;
  first_ = work->next;
  if (first_ == nullptr) last_ = nullptr;
  work->next = nullptr;
  return work;
}

void WorkerPool::loop() {
  for (;;) {
    const std::uint32_t bell = bell_.load();
    Work* work = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      work = pop_locked();
    }
    if (work != nullptr) {
      work->run(*work);
      UHMM_CHECK(lock_order::none_held(), "work ended with a lock held");
    } else if (stopping_.load()) {
      return;
    } else {
      bell_.wait(bell);
    }
  }
}

void WorkerPool::post(Work& work) {
  work.next = incoming_.load();
  while (!incoming_.compare_exchange_weak(work.next, &work)) {
  }
  bell_.fetch_add(1);
  bell_.notify_one();
}

void WorkerPool::spread(Loop& loop) {
  UHMM_CHECK(on_runtime_thread(), "loops are spread from threads of the runtime");
  std::array<Help, kMostThreads> helps;
  const std::uint32_t wanted = loop.count > 1 ? std::min({count_, loop.count - 1, kMostThreads}) : 0;
  loop.helpers.store(wanted);
  for (std::uint32_t i = 0; i < wanted; ++i) {
    helps[i].loop = &loop;
    helps[i].run = [](Work& work) {
      Loop& mine = *static_cast<Help&>(work).loop;
      mine.work();
      // The caller may return as soon as it sees the last helper go: nothing of `mine` is touched after that.
      mine.helpers.fetch_sub(1);
    };
    post(helps[i]);
  }
  loop.work();
  // Help that nobody began is taken back; help under way is waited for.
  {
    const std::scoped_lock lock(mutex_);
    collect_locked();
    Work** link = &first_;
    Work* previous = nullptr;
    while (*link != nullptr) {
      Work* work = *link;
      const bool ours = work >= static_cast<Work*>(&helps[0]) && work <= static_cast<Work*>(&helps[kMostThreads - 1]);
      if (ours) {
        *link = work->next;
        if (last_ == work) last_ = previous;
        loop.helpers.fetch_sub(1);
      } else {
        previous = work;
        link = &work->next;
      }
    }
  }
  while (loop.helpers.load() != 0) std::this_thread::yield();
}

}  // namespace uhmm::engine
