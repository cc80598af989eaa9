// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "runtime/base/arena.hpp"
#include "runtime/trace/trace.hpp"

namespace uhmm::trace {
namespace {

using Ring = std::unique_ptr<EventRing, ArenaDelete>;
Ring make_ring() { return Ring(make_in_arena<EventRing>()); }

// Every field depends on one value, so that a mixture of two events shows.
uhmm_event event_of(std::uint64_t value) {
  uhmm_event event{};
  event.address = value;
  event.bytes = value * 3;
  event.duration_ns = value * 5;
  event.pages = static_cast<std::uint32_t>(value * 7);
  event.kind = UHMM_EVENT_TO_DEVICE;
  event.processor = static_cast<std::uint32_t>(value);
  event.reserved = ~value;
  return event;
}
bool is_whole(const uhmm_event& event) {
  const uhmm_event want = event_of(event.address);
  return event.bytes == want.bytes && event.duration_ns == want.duration_ns && event.pages == want.pages &&
         event.processor == want.processor && event.reserved == want.reserved && event.kind == want.kind;
}

TEST(EventRing, numbers_and_fills_in) {
  const Ring ring = make_ring();
  uhmm_event out[4];
  std::uint64_t cursor = 0;
  EXPECT_EQ(ring->read(cursor, out, 4), 0u);
  ring->record(event_of(10));
  uhmm_event own = event_of(20);
  own.time_ns = 5;
  own.thread = 6;
  ring->record(own);
  ASSERT_EQ(ring->read(cursor, out, 4), 2u);
  EXPECT_EQ(cursor, 2u);
  EXPECT_EQ(out[0].number, 1u);
  EXPECT_EQ(out[0].thread, static_cast<std::uint32_t>(gettid()));
  EXPECT_NE(out[0].time_ns, 0u);
  EXPECT_TRUE(is_whole(out[0]));
  EXPECT_EQ(out[1].number, 2u);
  EXPECT_EQ(out[1].time_ns, 5u);
  EXPECT_EQ(out[1].thread, 6u);
  EXPECT_EQ(ring->read(cursor, out, 4), 0u);
}

TEST(EventRing, reads_in_pieces) {
  const Ring ring = make_ring();
  for (std::uint64_t i = 0; i < 10; ++i) ring->record(event_of(i));
  uhmm_event out[4];
  std::uint64_t cursor = 0;
  EXPECT_EQ(ring->read(cursor, out, 0), 0u);
  EXPECT_EQ(ring->read(cursor, out, 4), 4u);
  EXPECT_EQ(out[3].address, 3u);
  EXPECT_EQ(ring->read(cursor, out, 4), 4u);
  EXPECT_EQ(ring->read(cursor, out, 4), 2u);
  EXPECT_EQ(out[1].address, 9u);
  EXPECT_EQ(cursor, 10u);
}

TEST(EventRing, keeps_the_newest) {
  const Ring ring = make_ring();
  const std::uint64_t total = 3 * EventRing::kCapacity + 17;
  for (std::uint64_t i = 1; i <= total; ++i) ring->record(event_of(i));
  EXPECT_EQ(ring->newest(), total);
  std::vector<uhmm_event> out(2 * EventRing::kCapacity);
  std::uint64_t cursor = 5;
  ASSERT_EQ(ring->read(cursor, out.data(), out.size()), EventRing::kCapacity);
  EXPECT_EQ(cursor, total);
  for (std::uint64_t i = 0; i < EventRing::kCapacity; ++i) {
    ASSERT_EQ(out[i].number, total - EventRing::kCapacity + 1 + i);
    ASSERT_EQ(out[i].address, out[i].number);
  }
}

TEST(EventRing, a_slow_reader_may_come_from_beyond_the_end) {
  const Ring ring = make_ring();
  ring->record(event_of(1));
  std::uint64_t cursor = 100;
  uhmm_event out[1];
  EXPECT_EQ(ring->read(cursor, out, 1), 0u);
  EXPECT_EQ(cursor, 100u);
}

// Writers overrun the readers all the time.
TEST(EventRing, readers_see_whole_events_in_order_while_writers_go_round) {
  const Ring ring = make_ring();
  constexpr std::uint64_t kWriters = 3;
  constexpr std::uint64_t kEach = 40'000;
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (std::uint64_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      for (std::uint64_t i = 0; i < kEach; ++i) ring->record(event_of(w << 32 | i));
    });
  }
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      uhmm_event out[100];
      std::uint64_t cursor = 0;
      std::uint64_t last = 0;
      std::int64_t newest_of[kWriters] = {-1, -1, -1};
      for (bool last_round = false;;) {
        last_round = done.load();
        std::size_t count = 0;
        while ((count = ring->read(cursor, out, 100)) > 0) {
          for (std::size_t i = 0; i < count; ++i) {
            ASSERT_TRUE(is_whole(out[i]));
            ASSERT_GT(out[i].number, last);
            last = out[i].number;
            const auto of = static_cast<std::int64_t>(out[i].address & 0xffffffff);
            ASSERT_GT(of, newest_of[out[i].address >> 32]) << "a writer's events stay in order";
            newest_of[out[i].address >> 32] = of;
          }
          ASSERT_EQ(cursor, last);
        }
        if (last_round) break;
      }
      EXPECT_GE(last + 1024, kWriters * kEach) << "the reader caught up";
    });
  }
  for (std::thread& thread : writers) thread.join();
  done = true;
  for (std::thread& thread : readers) thread.join();
  EXPECT_EQ(ring->newest(), kWriters * kEach);
}

TEST(EventRing, the_listener_is_woken) {
  const Ring ring = make_ring();
  ring->listen(true);
  const std::uint32_t bell = ring->bell();
  std::thread writer([&] { ring->record(event_of(1)); });
  ring->wait(bell);
  EXPECT_EQ(ring->newest(), 1u);
  writer.join();
}

}  // namespace
}  // namespace uhmm::trace
