// SPDX-License-Identifier: Apache-2.0
#include "runtime/trace/notifier.hpp"

#include <algorithm>
#include <limits>
#include <mutex>
#include <span>

#include "runtime/base/check.hpp"

namespace uhmm::trace {
namespace {

thread_local bool on_notifier_thread = false;

}  // namespace

Result<uhmm_subscription> Notifier::subscribe(std::uint64_t kinds, uhmm_event_callback callback, void* context) {
  if (callback == nullptr) return fail(UHMM_ERR_INVALID, "the callback is NULL");
  if (kinds == 0) return fail(UHMM_ERR_INVALID, "no kind of event is asked for");
  std::scoped_lock lock(mutex_);
  const auto place = std::ranges::find(subscriptions_, 0u, &Subscription::id);
  if (place == subscriptions_.end())
    return fail(UHMM_ERR_NO_MEMORY, "there are %zu subscriptions already", kMaxSubscriptions);
  if (!thread_.running()) {
    stopping_.store(false, std::memory_order_relaxed);
    cursor_ = ring_.newest();
    UHMM_TRY(thread_.start("uhmm-notify", &Notifier::run, this));
  }
  ring_.listen(true);
  *place = {next_id_++, kinds, callback, context, ring_.newest()};
  return uhmm_subscription{place->id};
}

Status Notifier::unsubscribe(uhmm_subscription subscription) {
  std::uint32_t id = 0;
  {
    std::scoped_lock lock(mutex_);
    const auto place = std::ranges::find(subscriptions_, subscription, &Subscription::id);
    if (subscription == 0 || place == subscriptions_.end())
      return fail(UHMM_ERR_NOT_FOUND, "there is no subscription %llu", static_cast<unsigned long long>(subscription));
    id = place->id;
    *place = {};
    if (std::ranges::all_of(subscriptions_, [](const Subscription& s) { return s.id == 0; })) ring_.listen(false);
  }
  // Set under the lock, so from here on it can only end.
  while (!on_notifier_thread && calling_.load(std::memory_order_acquire) == id)
    calling_.wait(id, std::memory_order_acquire);
  return {};
}

void Notifier::stop() {
  if (thread_.running()) {
    stopping_.store(true, std::memory_order_release);
    ring_.ring();
    thread_.join();
  }
  std::scoped_lock lock(mutex_);
  subscriptions_ = {};
  ring_.listen(false);
}

void Notifier::run(void* self) {
  auto& notifier = *static_cast<Notifier*>(self);
  on_notifier_thread = true;
  for (;;) {
    // Both before the ring is read: what comes later rings again.
    const std::uint32_t bell = notifier.ring_.bell();
    const bool last_round = notifier.stopping_.load(std::memory_order_acquire);
    notifier.deliver_pending();
    if (last_round) return;
    notifier.ring_.wait(bell);
  }
}

void Notifier::deliver_pending() {
  uhmm_event batch[64];
  const std::uint64_t last = ring_.newest();
  while (cursor_ < last) {
    const std::size_t count = ring_.read(cursor_, batch, std::size(batch));
    if (count == 0) return;
    for (const uhmm_event& event : std::span(batch, count)) deliver(event);
  }
}

void Notifier::deliver(const uhmm_event& event) {
  for (Subscription& place : subscriptions_) {
    Subscription copy;
    std::uint64_t missed = 0;
    bool wanted = false;
    {
      std::scoped_lock lock(mutex_);
      if (place.id == 0 || event.number <= place.seen) continue;
      missed = event.number - place.seen - 1;
      place.seen = event.number;
      wanted = event.kind < 64 && ((place.kinds >> event.kind) & 1) != 0;
      copy = place;
      if (missed == 0 && !wanted) continue;
      calling_.store(copy.id, std::memory_order_release);
    }
    UHMM_CHECK(lock_order::none_held(), "a callback runs without locks");
    if (missed != 0) {
      uhmm_event dropped{};
      dropped.number = event.number - 1;
      dropped.time_ns = event.time_ns;
      dropped.kind = UHMM_EVENT_DROPPED;
      dropped.pages =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(missed, std::numeric_limits<std::uint32_t>::max()));
      copy.callback(copy.context, &dropped);
    }
    if (wanted && (missed == 0 || still_there(copy.id))) copy.callback(copy.context, &event);
    calling_.store(0, std::memory_order_release);
    calling_.notify_all();
  }
}

bool Notifier::still_there(std::uint32_t id) {
  std::scoped_lock lock(mutex_);
  return std::ranges::find(subscriptions_, id, &Subscription::id) != subscriptions_.end();
}

}  // namespace uhmm::trace
