// SPDX-License-Identifier: Apache-2.0
#include "runtime/trace/notifier.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/base/arena.hpp"

namespace uhmm::trace {
namespace {

using namespace std::chrono_literals;
constexpr std::uint64_t kAll = ~std::uint64_t{0};

uhmm_event event_of(uhmm_event_kind kind, std::uint64_t address) {
  uhmm_event event{};
  event.kind = static_cast<std::uint16_t>(kind);
  event.address = address;
  return event;
}

struct Log {
  std::mutex mutex;
  std::vector<uhmm_event> events;
  static void callback(void* self, const uhmm_event* event) {
    auto* log = static_cast<Log*>(self);
    std::scoped_lock lock(log->mutex);
    log->events.push_back(*event);
  }
};

// A callback that stays until it is let go.
struct Gate {
  std::atomic<int> entered{0};
  std::atomic<bool> open{false};
  std::atomic<std::uint64_t> dropped{0};
  std::atomic<std::uint64_t> delivered{0};
  static void callback(void* self, const uhmm_event* event) {
    auto* gate = static_cast<Gate*>(self);
    ++gate->entered;
    gate->entered.notify_all();
    gate->open.wait(false);
    if (event->kind == UHMM_EVENT_DROPPED)
      gate->dropped += event->pages;
    else
      ++gate->delivered;
  }
  void release() {
    open = true;
    open.notify_all();
  }
};

class NotifierTest : public testing::Test {
 protected:
  void TearDown() override { notifier_.stop(); }
  std::unique_ptr<EventRing, ArenaDelete> ring_{make_in_arena<EventRing>()};
  Notifier notifier_{*ring_};
};

TEST_F(NotifierTest, delivers_the_kinds_asked_for_in_order) {
  ring_->record(event_of(UHMM_EVENT_LOST, 1));  // before: not delivered
  Log some;
  Log every;
  ASSERT_TRUE(notifier_.subscribe(1u << UHMM_EVENT_LOST, &Log::callback, &some).ok());
  ASSERT_TRUE(notifier_.subscribe(kAll, &Log::callback, &every).ok());
  for (std::uint64_t i = 2; i < 1000; ++i) ring_->record(event_of(i % 3 == 0 ? UHMM_EVENT_LOST : UHMM_EVENT_EVICT, i));
  notifier_.stop();
  ASSERT_EQ(every.events.size(), 998u);
  for (std::size_t i = 0; i < every.events.size(); ++i) EXPECT_EQ(every.events[i].address, i + 2);
  ASSERT_EQ(some.events.size(), 333u);
  for (std::size_t i = 0; i < some.events.size(); ++i) EXPECT_EQ(some.events[i].address, 3 * (i + 1));
}

TEST_F(NotifierTest, delivers_while_nobody_stops_it) {
  Gate gate;
  gate.open = true;
  ASSERT_TRUE(notifier_.subscribe(kAll, &Gate::callback, &gate).ok());
  std::this_thread::sleep_for(20ms);
  ring_->record(event_of(UHMM_EVENT_EVICT, 1));
  gate.entered.wait(0);
  EXPECT_EQ(gate.entered, 1);
}

TEST_F(NotifierTest, says_what_a_slow_subscriber_missed) {
  Gate gate;
  ASSERT_TRUE(notifier_.subscribe(kAll, &Gate::callback, &gate).ok());
  ring_->record(event_of(UHMM_EVENT_EVICT, 0));
  gate.entered.wait(0);
  constexpr std::uint64_t kMore = 2 * EventRing::kCapacity;
  for (std::uint64_t i = 0; i < kMore; ++i) ring_->record(event_of(UHMM_EVENT_EVICT, i));
  gate.release();
  notifier_.stop();
  EXPECT_GE(gate.dropped, kMore - EventRing::kCapacity);
  EXPECT_EQ(gate.dropped + gate.delivered, kMore + 1);
}

TEST_F(NotifierTest, unsubscribe_waits_for_the_callback) {
  Gate gate;
  const auto id = notifier_.subscribe(kAll, &Gate::callback, &gate);
  ASSERT_TRUE(id.ok());
  ring_->record(event_of(UHMM_EVENT_EVICT, 0));
  ring_->record(event_of(UHMM_EVENT_EVICT, 1));
  gate.entered.wait(0);
  std::atomic<bool> returned{false};
  std::thread leaver([&] {
    EXPECT_TRUE(notifier_.unsubscribe(id.value()).ok());
    returned = true;
  });
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(returned);
  gate.release();
  leaver.join();
  EXPECT_EQ(gate.entered, 1) << "no callback after unsubscribe";
  EXPECT_EQ(notifier_.unsubscribe(id.value()).code(), UHMM_ERR_NOT_FOUND);
}

TEST_F(NotifierTest, unsubscribing_another_does_not_wait) {
  Gate gate;
  Log log;
  ASSERT_TRUE(notifier_.subscribe(kAll, &Gate::callback, &gate).ok());
  const auto other = notifier_.subscribe(kAll, &Log::callback, &log);
  ASSERT_TRUE(other.ok());
  ring_->record(event_of(UHMM_EVENT_EVICT, 0));
  gate.entered.wait(0);
  EXPECT_TRUE(notifier_.unsubscribe(other.value()).ok());
  gate.release();
  notifier_.stop();
  EXPECT_TRUE(log.events.empty());
}

TEST_F(NotifierTest, refuses_bad_input) {
  EXPECT_EQ(notifier_.subscribe(kAll, nullptr, nullptr).status().code(), UHMM_ERR_INVALID);
  EXPECT_EQ(notifier_.subscribe(0, &Log::callback, nullptr).status().code(), UHMM_ERR_INVALID);
  EXPECT_EQ(notifier_.unsubscribe(0).code(), UHMM_ERR_NOT_FOUND);
  EXPECT_EQ(notifier_.unsubscribe(5).code(), UHMM_ERR_NOT_FOUND);
  EXPECT_EQ(notifier_.unsubscribe(kAll).code(), UHMM_ERR_NOT_FOUND);
}

TEST_F(NotifierTest, has_a_limit_and_starts_again) {
  Log log;
  for (std::size_t i = 0; i < Notifier::kMaxSubscriptions; ++i)
    ASSERT_TRUE(notifier_.subscribe(kAll, &Log::callback, &log).ok());
  EXPECT_EQ(notifier_.subscribe(kAll, &Log::callback, &log).status().code(), UHMM_ERR_NO_MEMORY);
  notifier_.stop();
  ring_->record(event_of(UHMM_EVENT_EVICT, 1));
  ASSERT_TRUE(notifier_.subscribe(kAll, &Log::callback, &log).ok());
  ring_->record(event_of(UHMM_EVENT_EVICT, 2));
  notifier_.stop();
  ASSERT_EQ(log.events.size(), 1u);
  EXPECT_EQ(log.events[0].address, 2u);
}

TEST_F(NotifierTest, subscribing_and_recording_from_many_threads) {
  std::atomic<bool> done{false};
  std::thread writer([&] {
    while (!done) ring_->record(event_of(UHMM_EVENT_EVICT, 1));
  });
  std::vector<std::thread> users;
  for (int t = 0; t < 3; ++t) {
    users.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        auto log = std::make_unique<Log>();
        const auto id = notifier_.subscribe(kAll, &Log::callback, log.get());
        ASSERT_TRUE(id.ok());
        std::this_thread::yield();
        ASSERT_TRUE(notifier_.unsubscribe(id.value()).ok());
        log.reset();  // a late callback would use it after free
      }
    });
  }
  for (std::thread& thread : users) thread.join();
  done = true;
  writer.join();
}

}  // namespace
}  // namespace uhmm::trace
