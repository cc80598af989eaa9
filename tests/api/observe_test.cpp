// SPDX-License-Identifier: Apache-2.0
// Events, statistics, snapshots.
#include <mutex>
#include <thread>

#include "runtime/base/inject.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class Observe : public RuntimeTest {};

constexpr std::uint64_t bit(uhmm_event_kind kind) { return std::uint64_t{1} << kind; }

TEST_F(Observe, EventsTellWhatHappenedAndWhy) {
  EventReader reader;
  auto memory = std::make_unique<Memory>(8 * kPage);
  fill(memory->data(), memory->bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory->data(), memory->bytes(), 1, nullptr));
  (void)*static_cast<volatile std::byte*>(memory->page(4));
  const auto address = reinterpret_cast<std::uint64_t>(memory->data());
  memory.reset();
  const auto events = reader.next();
  std::uint64_t last_number = 0, last_time = 0;
  std::uint32_t out = 0, home = 0;
  int registered = 0, unregistered = 0, faults = 0;
  for (const auto& event : events) {
    EXPECT_GT(event.number, last_number);
    EXPECT_NE(event.time_ns, 0u);
    last_number = event.number;
    last_time = std::max(last_time, event.time_ns);
    EXPECT_NE(event.thread, 0u);
    EXPECT_STRNE(uhmm_event_text(static_cast<uhmm_event_kind>(event.kind)), "?");
    EXPECT_STRNE(uhmm_cause_text(static_cast<uhmm_cause>(event.cause)), "?");
    switch (event.kind) {
      case UHMM_EVENT_REGISTER:
        ++registered;
        EXPECT_EQ(event.address, address);
        EXPECT_EQ(event.bytes, 8 * kPage);
        break;
      case UHMM_EVENT_UNREGISTER: ++unregistered; break;
      case UHMM_EVENT_TO_DEVICE:
        out += event.pages;
        EXPECT_EQ(event.cause, UHMM_CAUSE_USER);
        EXPECT_EQ(event.processor, 1u);
        EXPECT_EQ(event.bytes, event.pages * kPage);
        break;
      case UHMM_EVENT_TO_SYSTEM:
        home += event.pages;
        EXPECT_TRUE(event.cause == UHMM_CAUSE_CPU_FAULT || event.cause == UHMM_CAUSE_UNREGISTER);
        break;
      case UHMM_EVENT_CPU_FAULT:
        ++faults;
        EXPECT_EQ(event.address, address + 4 * kPage);
        EXPECT_NE(event.duration_ns, 0u);
        break;
      default: break;
    }
  }
  EXPECT_EQ(registered, 1);
  EXPECT_EQ(unregistered, 1);
  EXPECT_EQ(out, 8u);
  EXPECT_EQ(home, 8u);
  EXPECT_EQ(faults, 1);
  EXPECT_TRUE(reader.next().empty());
}

// Of a block that comes home in many pieces the first piece wakes whoever waited, who may ask at once.
TEST_F(Observe, WhatAThreadHasSeenIsCounted) {
  Memory memory(512 * kPage);
  const auto came = [](const uhmm_stats& counted) {
    return counted.pages_to_system[UHMM_CAUSE_CPU_FAULT] + counted.pages_to_system[UHMM_CAUSE_PREFETCH_FAULT];
  };
  const auto freed = [](const uhmm_stats& counted) {
    return counted.pages_freed[UHMM_CAUSE_CPU_FAULT] + counted.pages_freed[UHMM_CAUSE_PREFETCH_FAULT];
  };
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    for (std::size_t i = 0; i < 512; ++i) memory.page(i)[0] = std::byte{1};
    for (std::size_t i = 0; i < 512; ++i)
      if (i % 16 != 15) UHMM_ASSERT_OK(uhmm_migrate(memory.page(i), kPage, 1, nullptr));
    // Of the walk before this one something may still be fetched ahead: not all pages need be away.
    const uhmm_stats before = range_stats(memory.data());
    ASSERT_GT(before.pages_on_devices, 0u);
    inject::shake(seed);
    for (std::size_t i = 0; i < 512; ++i) (void)*static_cast<volatile std::byte*>(memory.page(i));
    const uhmm_stats after = range_stats(memory.data());
    const uhmm_stats total = stats();
    inject::stop_shaking();
    EXPECT_EQ(after.bytes_to_system - before.bytes_to_system, before.pages_on_devices * kPage);
    EXPECT_EQ(came(after) - came(before), before.pages_on_devices);
    EXPECT_EQ(freed(after) - freed(before), before.pages_on_devices);
    EXPECT_EQ(after.pages_on_devices, 0u);
    EXPECT_EQ(total.bytes_to_system, after.bytes_to_system);
    EXPECT_EQ(total.pages_on_devices, 0u);
  }
}

TEST_F(Observe, EventsAreReadInPieces) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  for (std::size_t i = 0; i < 64; i += 2) UHMM_ASSERT_OK(uhmm_migrate(memory.page(i), 1, 1, nullptr));
  std::uint64_t cursor = 0;
  std::uint64_t expected = 0;
  std::size_t total = 0;
  for (;;) {
    uhmm_event events[5];
    std::size_t count = 0;
    UHMM_ASSERT_OK(uhmm_event_read(&cursor, events, 5, &count));
    if (count == 0) break;
    for (std::size_t i = 0; i < count; ++i) {
      if (expected != 0) {
        EXPECT_EQ(events[i].number, expected);
      }
      expected = events[i].number + 1;
    }
    EXPECT_EQ(cursor, expected - 1);
    total += count;
  }
  EXPECT_GE(total, 32u);
}

TEST_F(Observe, SubscribersGetTheKindsTheyAskFor) {
  struct Seen {
    std::mutex mutex;
    std::vector<uhmm_event> events;
    static void note(void* self, const uhmm_event* event) {
      auto& seen = *static_cast<Seen*>(self);
      const std::scoped_lock lock(seen.mutex);
      seen.events.push_back(*event);
    }
    std::size_t size() {
      const std::scoped_lock lock(mutex);
      return events.size();
    }
  } moves, launches;
  uhmm_subscription first = 0, second = 0;
  UHMM_ASSERT_OK(
      uhmm_event_subscribe(bit(UHMM_EVENT_TO_DEVICE) | bit(UHMM_EVENT_TO_SYSTEM), Seen::note, &moves, &first));
  UHMM_ASSERT_OK(uhmm_event_subscribe(bit(UHMM_EVENT_LAUNCH), Seen::note, &launches, &second));
  EXPECT_NE(first, second);
  Memory memory(4 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
  UHMM_ASSERT_OK(run(touch_kernel, SpanArgs{memory.data(), 0, 0, nullptr}));
  while (moves.size() < 2 || launches.size() < 1) std::this_thread::yield();
  UHMM_ASSERT_OK(uhmm_event_unsubscribe(first));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_event_unsubscribe(first));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(run(touch_kernel, SpanArgs{memory.data(), 0, 0, nullptr}));
  while (launches.size() < 2) std::this_thread::yield();
  UHMM_ASSERT_OK(uhmm_event_unsubscribe(second));
  ASSERT_EQ(moves.events.size(), 2u);
  EXPECT_EQ(moves.events[0].kind, UHMM_EVENT_TO_DEVICE);
  EXPECT_EQ(moves.events[1].kind, UHMM_EVENT_TO_SYSTEM);
  ASSERT_EQ(launches.events.size(), 2u);
  EXPECT_EQ(launches.events[0].address, reinterpret_cast<std::uint64_t>(&touch_kernel));
}

// A callback may touch any memory, also what is on a device.
TEST_F(Observe, CallbackTouchesManagedMemory) {
  Memory memory(4 * kPage);
  Memory count(kPage);
  auto* seen = count.as<std::atomic<std::uint64_t>>();
  uhmm_subscription subscription = 0;
  UHMM_ASSERT_OK(uhmm_migrate(count.data(), count.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_event_subscribe(
      bit(UHMM_EVENT_TO_DEVICE),
      [](void* context, const uhmm_event* event) {
        static_cast<std::atomic<std::uint64_t>*>(context)->fetch_add(event->pages);
      },
      seen, &subscription));
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  while (seen->load() < 4) std::this_thread::yield();
  UHMM_ASSERT_OK(uhmm_event_unsubscribe(subscription));
}

TEST_F(Observe, StatisticsOfRangesAddUpToTheTotals) {
  const uhmm_stats before = stats();
  Memory a(100 * kPage), b(700 * kPage);
  fill(a.data(), a.bytes(), 1);
  fill(b.data(), b.bytes(), 2);
  EXPECT_EQ(stats().ranges - before.ranges, 2u);
  EXPECT_EQ(stats().registered_bytes - before.registered_bytes, a.bytes() + b.bytes());
  UHMM_ASSERT_OK(uhmm_migrate(a.data(), a.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(run(touch_kernel, SpanArgs{b.data(), b.bytes(), 0, nullptr}));
  a.data()[0] = std::byte{1};
  b.data()[0] = std::byte{1};
  UHMM_ASSERT_OK(run(increment_kernel, SpanArgs{b.data(), b.bytes(), 0, nullptr}));
  EXPECT_EQ(b.page(300)[0], static_cast<std::byte>(std::to_integer<int>(pattern(2, 300 * kPage)) + 1));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  // Reading ahead goes on for a moment: compare when nothing changes any more.
  uhmm_stats total = stats(), of_a = range_stats(a.data()), of_b = range_stats(b.data());
  for (uhmm_stats again = stats();
       again.bytes_to_device != total.bytes_to_device || again.bytes_to_system != total.bytes_to_system;
       again = stats()) {
    total = stats();
    of_a = range_stats(a.data());
    of_b = range_stats(b.data());
  }
  const auto expect_sum = [&](const char* name, std::uint64_t uhmm_stats::*field) {
    EXPECT_EQ(total.*field - before.*field, of_a.*field + of_b.*field) << name;
  };
  expect_sum("cpu_faults", &uhmm_stats::cpu_faults);
  expect_sum("device_faults", &uhmm_stats::device_faults);
  expect_sum("bytes_to_device", &uhmm_stats::bytes_to_device);
  expect_sum("bytes_to_system", &uhmm_stats::bytes_to_system);
  expect_sum("pages_populated", &uhmm_stats::pages_populated);
  expect_sum("pages_on_devices", &uhmm_stats::pages_on_devices);
  for (const uhmm_stats* each : {&total, &of_a, &of_b}) {
    std::uint64_t out = 0, home = 0;
    for (int cause = 0; cause < UHMM_CAUSE_COUNT; ++cause) {
      out += each->pages_to_device[cause];
      home += each->pages_to_system[cause];
    }
    EXPECT_EQ(out * kPage, each->bytes_to_device);
    EXPECT_EQ(home * kPage, each->bytes_to_system);
  }
  EXPECT_GT(of_a.cpu_faults, 0u);
  EXPECT_GT(of_b.device_faults, 0u);
  EXPECT_GT(total.copy_ns, 0u);
  EXPECT_GT(total.metadata_bytes, 0u);
}

TEST_F(Observe, SnapshotShowsEveryState) {
  Memory memory(6 * kPage);
  memory.page(1)[0] = memory.page(2)[0] = memory.page(3)[0] = memory.page(4)[0] = std::byte{1};
  UHMM_ASSERT_OK(uhmm_acquire(memory.page(2), kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(memory.page(2), kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_migrate(memory.page(3), kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_make_exclusive(memory.page(4), kPage, 1, nullptr));
  const auto pages = snapshot(memory.data(), memory.bytes());
  const uhmm_page_info expected[] = {{UHMM_PAGE_NONE, 0, 0, 0, 0},      {UHMM_PAGE_SYSTEM, 0, 0, 0, 0},
                                     {UHMM_PAGE_SHARED, 1, 1, 0, 0},    {UHMM_PAGE_DEVICE, 1, 1, 1, 0},
                                     {UHMM_PAGE_EXCLUSIVE, 1, 1, 1, 0}, {UHMM_PAGE_NONE, 0, 0, 0, 0}};
  ASSERT_EQ(pages.size(), std::size(expected));
  for (std::size_t i = 0; i < pages.size(); ++i) {
    EXPECT_EQ(pages[i].state, expected[i].state) << i;
    EXPECT_EQ(pages[i].devices, expected[i].devices) << i;
    EXPECT_EQ(pages[i].mapped & ~pages[i].devices, 0) << i;
    EXPECT_EQ(pages[i].device_write & ~expected[i].device_write, 0) << i;
  }
  // Fewer entries than pages: those that fit, and how many there are.
  uhmm_page_info two[2] = {};
  std::size_t count = 0;
  UHMM_ASSERT_OK(uhmm_snapshot(memory.data() + kPage + 10, 3 * kPage, two, 2, &count));
  EXPECT_EQ(count, 4u);
  EXPECT_EQ(two[0].state, UHMM_PAGE_SYSTEM);
  EXPECT_EQ(two[1].state, UHMM_PAGE_SHARED);
}

}  // namespace
}  // namespace uhmm::test
