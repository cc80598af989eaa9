// SPDX-License-Identifier: Apache-2.0
// Threads that do what is not fault service: migrations that the program asked for, and fetching ahead. Every call of
// the program that takes a lock of ours runs here, because the program's own stack may be managed memory: a thread that
// holds a block's lock and touches its stack could fault on that very block. Calls and results travel in the pool's own
// memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <new>
#include <type_traits>

#include "runtime/base/lock.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/thread.hpp"

namespace uhmm::engine {

class WorkerPool {
 public:
  static constexpr std::uint32_t kMostThreads = 16;

  // A piece of work, in runtime memory. run() may destroy it, after which the pool does not touch it.
  struct Work {
    void (*run)(Work& self) = nullptr;
    Work* next = nullptr;
  };

  Status start(std::uint32_t threads);
  // The same, unless it is running already. Any thread of the runtime.
  Status start_once(std::uint32_t threads);
  // Finishes what was posted.
  void stop();
  void forget_threads();
  std::uint32_t thread_count() const { return count_; }

  // Any thread; takes no lock: a thread of the program may post while its own stack is away.
  void post(Work& work);

  // Run `function` on a worker and return its result (a Status, or a struct with one). It is copied
  // before it runs, so it must own what it captures (addresses of managed memory are fine as numbers). Inline when
  // called on a thread of the runtime.
  template <typename Function>
  auto call(Function function) -> std::invoke_result_t<Function&>;

  // Calls visit(0) .. visit(count - 1), spread over the workers and the calling runtime thread.
  template <typename Visit>
  void for_each(std::uint32_t count, Visit&& visit);

  // Marks the calling thread as one of the runtime's: its stack is never managed.
  static void enter_runtime_thread();
  // In a forked child: whichever thread called fork() is the program's only one.
  static void leave_runtime_thread();
  static bool on_runtime_thread();

 private:
  struct Loop {
    void (*visit)(void* context, std::uint32_t index) = nullptr;
    void* context = nullptr;
    std::uint32_t count = 0;
    std::atomic<std::uint32_t> next{0};
    std::atomic<std::uint32_t> helpers{0};
    void work() {
      for (std::uint32_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) visit(context, i);
    }
  };
  struct Help : Work {
    Loop* loop = nullptr;
  };

  static void run_thread(void* self);
  void loop();
  Work* pop_locked();
  void collect_locked();
  void spread(Loop& loop);

  // Room for calls under way; claimed without a lock, like posting.
  static constexpr std::size_t kCallBytes = 5120;
  static constexpr std::uint32_t kCalls = 64;
  struct alignas(64) CallRoom {
    std::byte bytes[kCallBytes];
  };
  std::uint32_t claim_call();
  void return_call(std::uint32_t index);

  RankedMutex<LockRank::Lifecycle> start_mutex_;
  std::atomic<bool> started_{false};
  RankedMutex<LockRank::Workers> mutex_;
  std::atomic<Work*> incoming_{nullptr};  // newest first
  Work* first_ = nullptr;                 // oldest first, guarded by mutex_
  Work* last_ = nullptr;
  std::atomic<std::uint64_t> free_calls_{~std::uint64_t{0}};
  std::array<CallRoom, kCalls> calls_;
  std::atomic<std::uint32_t> bell_{0};
  std::atomic<bool> stopping_{false};
  std::array<Thread, kMostThreads> threads_;
  std::uint32_t count_ = 0;
};

// A caller's detail text stays what it was unless its call failed.
inline bool has_failed(const Status& answer) { return !answer.ok(); }
template <typename Answer>
bool has_failed(const Answer& answer) {
  return !answer.status.ok();
}

template <typename Function>
auto WorkerPool::call(Function function) -> std::invoke_result_t<Function&> {
  using Answer = std::invoke_result_t<Function&>;
  if (on_runtime_thread()) return function();
  struct Call : Work {
    explicit Call(const Function& copied) : body(copied) {}
    Function body;
    Answer answer{};
    char detail[kDetailBytes] = {};
    std::atomic<std::uint32_t> done{0};
  };
  static_assert(sizeof(Call) <= kCallBytes);
  static_assert(alignof(Call) <= alignof(CallRoom));
  const std::uint32_t room = claim_call();
  Call* pending = new (calls_[room].bytes) Call(function);
  pending->run = [](Work& work) {
    auto& self = static_cast<Call&>(work);
    self.answer = self.body();
    save_detail(self.detail);
    self.done.store(1);
    self.done.notify_one();
  };
  post(*pending);
  pending->done.wait(0);
  Answer answer = pending->answer;
  if (has_failed(answer)) set_detail(pending->detail);
  pending->~Call();
  return_call(room);
  return answer;
}

template <typename Visit>
void WorkerPool::for_each(std::uint32_t count, Visit&& visit) {
  Loop loop;
  loop.visit = [](void* context, std::uint32_t index) {
    (*static_cast<std::remove_reference_t<Visit>*>(context))(index);
  };
  loop.context = &visit;
  loop.count = count;
  spread(loop);
}

}  // namespace uhmm::engine
