// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/keeper.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "preload/heap/areas.hpp"
#include "preload/heap/chaos.hpp"
#include "preload/heap/tier.hpp"
#include "preload/managed.hpp"
#include "preload/own_memory.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::preload::heap {
namespace {

constexpr std::uint64_t kForEver = 0;  // os::futex_wait_for: until the bell rings

class Keeper {
 public:
  Status start(const api::RunOptions& options, bool can_migrate) {
    if (can_migrate && options.chaos_rate != 0) chaos_.emplace(options.chaos_seed, options.chaos_rate);
    if (can_migrate && options.host_limit != 0) {
      tier_.emplace();
      UHMM_TRY(tier_->open(options.host_limit, options.quiet));
    }
    return thread_.start(
        "uhmm-keeper", [](void* self) { static_cast<Keeper*>(self)->run(); }, this);
  }
  void forget_thread() { thread_.forget(); }

 private:
  void run() {
    // Its calls of the runtime run right here: a worker might wait at the gate of a fork, and this thread with it.
    engine::WorkerPool::enter_runtime_thread();
    for (;;) {
      const std::uint32_t rung = bell().load();
      register_areas();
      std::uint64_t wait = kForEver;
      // The shorter of two waits; 0 is the longest.
      if (chaos_) wait = chaos_->step();
      if (tier_) wait = std::min(wait - 1, tier_->step() - 1) + 1;
      os::futex_wait_for(bell(), rung, wait);
    }
  }
  void register_areas() {
    const std::uint32_t count = area_count();
    for (; registered_ < count; ++registered_) {
      Area* fresh = area(registered_);
      if (fresh == nullptr) return;  // its maker rings again when it is there
      fresh->state.store(AreaState::Registering);
      while (fresh->droppers.load() != 0) sched_yield();
      fresh->state.store(manage_own(fresh->range()) ? AreaState::Registered : AreaState::Plain);
    }
  }

  Thread thread_;
  std::uint32_t registered_ = 0;
  std::optional<Chaos> chaos_;
  std::optional<Tier> tier_;
};

Keeper& keeper() {
  static Forever<Keeper> only;
  return *only;
}

void before_fork() { lock_managed_for_fork(); }
void in_parent() { unlock_managed_after_fork(); }
void in_child() {
  unmanage_all();
  unlock_managed_after_fork();
  forget_registrations();
  keeper().forget_thread();
}

}  // namespace

Status start_keeper(const api::RunOptions& options, bool can_migrate) {
  if (const int error = pthread_atfork(before_fork, in_parent, in_child); error != 0)
    return fail_errno("pthread_atfork", error);
  return keeper().start(options, can_migrate);
}

}  // namespace uhmm::preload::heap
