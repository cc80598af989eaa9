// SPDX-License-Identifier: Apache-2.0
// Brings events to subscribers on a thread of its own, which starts with the first of them. Callbacks run with no lock
// held: they may touch managed memory and take as long as they like; the ring does not wait for them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/base/lock.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/trace/trace.hpp"

namespace uhmm::trace {

class Notifier {
 public:
  static constexpr std::size_t kMaxSubscriptions = 64;

  // The ring must outlive the notifier.
  explicit Notifier(EventRing& ring) : ring_(ring) {}
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;
  // stop() first.
  ~Notifier() = default;

  // Events recorded after the call whose kind's bit is in `kinds`, and UHMM_EVENT_DROPPED. Errors: INVALID; NO_MEMORY
  // (too many, or no thread).
  Result<uhmm_subscription> subscribe(std::uint64_t kinds, uhmm_event_callback callback, void* context);
  // The callback does not run after the return, except when called from a callback. Errors: NOT_FOUND.
  Status unsubscribe(uhmm_subscription subscription);
  // Delivers what was recorded before the call, then ends the thread and all subscriptions. Not from a callback.
  void stop();
  // In a forked child: there is no thread to stop.
  void forget_thread() { thread_.forget(); }

 private:
  struct Subscription {
    std::uint32_t id = 0;  // 0: not in use
    std::uint64_t kinds = 0;
    uhmm_event_callback callback = nullptr;
    void* context = nullptr;
    std::uint64_t seen = 0;  // number of the last event delivered, passed over or reported as dropped
  };

  static void run(void* self);
  void deliver_pending();
  void deliver(const uhmm_event& event);
  bool still_there(std::uint32_t id);

  EventRing& ring_;
  RankedMutex<LockRank::Trace> mutex_;
  std::array<Subscription, kMaxSubscriptions> subscriptions_;  // changed under mutex_; `seen` by the thread only
  std::uint32_t next_id_ = 1;
  std::uint64_t cursor_ = 0;               // the thread's, once it runs
  std::atomic<std::uint32_t> calling_{0};  // id whose callback runs now
  std::atomic<bool> stopping_{false};
  Thread thread_;
};

}  // namespace uhmm::trace
