// SPDX-License-Identifier: Apache-2.0
// More data than device memory, several devices, the link model and coherent devices.
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class Capacity : public RuntimeTest {
 protected:
  bool starts_itself() const override { return false; }
};

TEST_F(Capacity, MoreDataThanDeviceMemoryIsEvictedAndRight) {
  for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE}) {
    start_with([&](uhmm_config& config) {
      config.device_memory = std::uint64_t{4} << 20;
      config.flags |= flags;
    });
    Memory memory(std::size_t{64} << 20);
    fill(memory.data(), memory.bytes(), 1);
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
    device_increment(memory.data(), memory.bytes());
    EXPECT_LE(stats().pages_on_devices * kPage, std::uint64_t{4} << 20);
    for (std::size_t i = 0; i < memory.bytes(); ++i)
      ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
    const auto now = stats();
    EXPECT_GT(now.pages_to_system[UHMM_CAUSE_EVICTION], 0u);
    EXPECT_GT(now.pages_freed[UHMM_CAUSE_EVICTION], now.pages_to_system[UHMM_CAUSE_EVICTION])
        << "pages that were only read are dropped, not copied";
    EXPECT_EQ(now.pages_lost, 0u);
  }
}

TEST_F(Capacity, MigrationOfTooMuchSkipsWhatDoesNotFit) {
  start_with([](uhmm_config& config) { config.device_memory = std::uint64_t{4} << 20; });
  Memory memory(std::size_t{16} << 20);
  fill(memory.data(), memory.bytes(), 1);
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
  EXPECT_EQ(result.pages_requested, 4096u);
  EXPECT_EQ(result.pages_moved, 1024u) << "all of the device's memory is used, and nothing moves twice";
  EXPECT_EQ(result.pages_skipped, 3072u);
  EXPECT_EQ(device_info().memory_free, 0u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Capacity, FullOfHeldMemoryIsDeviceFull) {
  start_with([](uhmm_config& config) { config.device_memory = std::uint64_t{4} << 20; });
  Memory held(std::size_t{4} << 20);
  Memory more(kPage);
  std::memset(held.data(), 1, held.bytes());
  std::memset(more.data(), 1, more.bytes());
  UHMM_ASSERT_OK(uhmm_acquire(held.data(), held.bytes(), 1, UHMM_ACCESS_READ_WRITE));
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_FULL, uhmm_migrate(more.data(), more.bytes(), 1, nullptr));
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_FULL, uhmm_acquire(more.data(), more.bytes(), 1, UHMM_ACCESS_READ));
  EXPECT_EQ(pages_in_state(held.data(), held.bytes(), UHMM_PAGE_DEVICE), held.pages());
  UHMM_EXPECT_OK(uhmm_unregister(more.data()));  // nothing is held of it
  UHMM_EXPECT_OK(uhmm_register(more.data(), more.bytes()));
  UHMM_ASSERT_OK(uhmm_release(held.data(), held.bytes(), 1, UHMM_ACCESS_READ_WRITE));
  UHMM_EXPECT_OK(uhmm_migrate(more.data(), more.bytes(), 1, nullptr));
}

TEST_F(Capacity, AnAcquireForWritingThatFailsKeepsTheContents) {
  start_with([](uhmm_config& config) { config.device_memory = std::uint64_t{2} << 20; });
  Memory memory(std::size_t{4} << 20);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_FULL, uhmm_acquire(memory.data(), memory.bytes(), 1, UHMM_ACCESS_WRITE));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  // Some of it on the device already, some room taken by what can't go.
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock / 2, 1, nullptr));
  Memory held(kBlock / 2);
  UHMM_ASSERT_OK(uhmm_acquire(held.data(), held.bytes(), 1, UHMM_ACCESS_WRITE));
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_FULL, uhmm_acquire(memory.data(), kBlock, 1, UHMM_ACCESS_WRITE));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_OK(uhmm_release(held.data(), held.bytes(), 1, UHMM_ACCESS_WRITE));
}

// A kernel waits for room that only a release, or the device's end, can give.
class HeldMemory : public Capacity {
 protected:
  void SetUp() override {
    start_with([](uhmm_config& config) { config.device_memory = kBlock; });
    held_ = std::make_unique<Memory>(kBlock);
    more_ = std::make_unique<Memory>(16 * kPage);
    fill(held_->data(), held_->bytes(), 1);
    fill(more_->data(), more_->bytes(), 2);
    UHMM_ASSERT_OK(uhmm_acquire(held_->data(), held_->bytes(), 1, UHMM_ACCESS_READ_WRITE));
  }
  void expect_contents() {
    EXPECT_EQ(first_wrong(held_->data(), held_->bytes(), 1), held_->bytes());
    EXPECT_EQ(first_wrong(more_->data(), more_->bytes(), 3), more_->bytes());
  }
  std::unique_ptr<Memory> held_;
  std::unique_ptr<Memory> more_;
};

TEST_F(HeldMemory, DoesNotOutlastTheDevice) {
  const SpanArgs args{more_->data(), more_->bytes(), 3, nullptr};
  UHMM_ASSERT_OK(launch(stream_, fill_kernel, args));
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  expect_contents();
  UHMM_EXPECT_OK(uhmm_release(held_->data(), held_->bytes(), 1, UHMM_ACCESS_READ_WRITE));
  UHMM_ASSERT_OK(uhmm_acquire(held_->data(), held_->bytes(), 1, UHMM_ACCESS_READ_WRITE));
  UHMM_ASSERT_OK(launch(stream_, fill_kernel, args));
  UHMM_ASSERT_OK(uhmm_device_remove(1));
  expect_contents();
}

TEST_F(HeldMemory, DoesNotOutlastTheRuntime) {
  UHMM_ASSERT_OK(launch(stream_, fill_kernel, SpanArgs{more_->data(), more_->bytes(), 3, nullptr}));
  stop();
  expect_contents();
}

TEST_F(HeldMemory, IsReleasedBesideAnyNumberOfCallsThatWaitForIt) {
  constexpr int kCallers = 24;
  std::atomic<int> began{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i)
    callers.emplace_back([&, i] {
      ++began;
      const std::byte value = pattern(3, 0);
      UHMM_EXPECT_OK(uhmm_device_write(1, more_->data() + i, &value, 1, nullptr));
    });
  while (began != kCallers) std::this_thread::yield();
  UHMM_EXPECT_OK(uhmm_release(held_->data(), held_->bytes(), 1, UHMM_ACCESS_READ_WRITE));
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < kCallers; ++i) EXPECT_EQ(more_->data()[i], pattern(3, 0)) << i;
}

// Adds one to the first byte of each page, in an order that nobody reads ahead.
void count_visit_kernel(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const std::size_t pages = args->bytes / kPage;
  for (std::size_t i = 0; i < pages; ++i) {
    std::byte& byte = args->data[i * 37 % pages * kPage];
    byte = static_cast<std::byte>(std::to_integer<int>(byte) + 1);
  }
}

TEST_F(Capacity, WhatIsUsedOftenIsEvictedLess) {
  start_with([](uhmm_config& config) { config.device_memory = 16 * kBlock; });
  constexpr std::size_t kCold = 48;
  constexpr int kRounds = 3;
  BlockMemory cold(kCold);
  BlockMemory hot(1);
  std::memset(cold.data(), 0, cold.bytes());
  std::memset(hot.data(), 0, hot.bytes());
  std::map<std::uint64_t, int> evictions;
  EventReader events;
  const auto visit = [&](std::byte* block) {
    UHMM_ASSERT_OK(run(count_visit_kernel, SpanArgs{block, kBlock, 0, nullptr}, 1));
    for (const auto& event : events.next())
      if (event.kind == UHMM_EVENT_EVICT) ++evictions[event.address / kBlock * kBlock];
  };
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < kCold; ++i) {
      visit(cold.block(i * 7 % kCold));
      visit(hot.data());
    }
  }
  const int hot_evictions = evictions[reinterpret_cast<std::uint64_t>(hot.data())];
  for (std::size_t i = 0; i < kCold; ++i)
    EXPECT_LT(hot_evictions, evictions[reinterpret_cast<std::uint64_t>(cold.block(i))]) << "block " << i;
  for (std::size_t i = 0; i < hot.bytes(); i += kPage)
    ASSERT_EQ(hot.data()[i], static_cast<std::byte>(kRounds * int{kCold}));
  for (std::size_t i = 0; i < cold.bytes(); i += kPage) ASSERT_EQ(cold.data()[i], static_cast<std::byte>(kRounds));
}

TEST_F(Capacity, PinnedAndHeldBlocksAreNotEvicted) {
  start_with([](uhmm_config& config) { config.device_memory = 4 * kBlock; });
  BlockMemory pinned(1);
  BlockMemory held(1);
  Memory stream(8 * kBlock);
  fill(pinned.data(), kBlock, 1);
  fill(held.data(), kBlock, 2);
  fill(stream.data(), stream.bytes(), 3);
  UHMM_ASSERT_OK(uhmm_migrate(pinned.data(), kBlock, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_advise(pinned.data(), kBlock, UHMM_ADVISE_PINNED, 0));
  UHMM_ASSERT_OK(uhmm_acquire(held.data(), kBlock, 1, UHMM_ACCESS_READ_WRITE));
  device_increment(stream.data(), stream.bytes());
  EXPECT_EQ(pages_in_state(pinned.data(), kBlock, UHMM_PAGE_DEVICE), 512u);
  EXPECT_EQ(pages_in_state(held.data(), kBlock, UHMM_PAGE_DEVICE), 512u);
  EXPECT_GT(stats().pages_freed[UHMM_CAUSE_EVICTION], 0u);
  UHMM_ASSERT_OK(uhmm_release(held.data(), kBlock, 1, UHMM_ACCESS_READ_WRITE));
  EXPECT_EQ(first_wrong(pinned.data(), kBlock, 1), kBlock);
  EXPECT_EQ(first_wrong(held.data(), kBlock, 2), kBlock);
}

TEST_F(Capacity, EvictionLeavesCopiesThatAnotherDeviceHolds) {
  start_with([](uhmm_config& config) {
    config.device_memory = kBlock;
    config.soft_devices = 2;
  });
  Memory shared(16 * kPage);
  fill(shared.data(), shared.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_acquire(shared.data(), shared.bytes(), 2, UHMM_ACCESS_READ));
  EXPECT_EQ(device_count_wrong(shared.data(), shared.bytes(), 1), 0u);
  BlockMemory more(2);
  device_fill(more.data(), more.bytes(), 2);
  EXPECT_GT(stats().pages_freed[UHMM_CAUSE_EVICTION], 0u);
  for (const uhmm_page_info& page : snapshot(shared.data(), shared.bytes())) EXPECT_EQ(page.devices, 2u);
  UHMM_EXPECT_OK(uhmm_release(shared.data(), shared.bytes(), 2, UHMM_ACCESS_READ));
}

TEST_F(Capacity, DevicesHandPagesToEachOther) {
  start_with([](uhmm_config& config) { config.soft_devices = 2; });
  Memory memory(600 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 2, &result));
  EXPECT_EQ(result.pages_moved, 600u);
  for (const auto& page : snapshot(memory.data(), memory.bytes())) {
    ASSERT_EQ(page.state, UHMM_PAGE_DEVICE);
    ASSERT_EQ(page.devices, 2u);
  }
  EXPECT_EQ(device_info(1).memory_free, device_info(1).memory_bytes);
  EXPECT_EQ(device_info(2).memory_free, device_info(2).memory_bytes - 600 * kPage);
  EXPECT_EQ(range_stats(memory.data()).bytes_to_system, 0u) << "not by way of system memory";
  uhmm_stream second = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(2, &second));
  for (int round = 0; round < 5; ++round) {
    const SpanArgs args{memory.data(), memory.bytes(), 0, nullptr};
    UHMM_ASSERT_OK(launch(second, increment_kernel, args, 3));
    UHMM_ASSERT_OK(uhmm_stream_synchronize(second));
    device_increment(memory.data(), memory.bytes());
  }
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 10)) << i;
  // Both may read at the same time.
  fill(memory.data(), memory.bytes(), 4);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 4), 0u);
  std::vector<std::byte> copy(memory.bytes());
  UHMM_ASSERT_OK(uhmm_device_read(2, memory.data(), copy.data(), copy.size(), nullptr));
  EXPECT_EQ(first_wrong(copy.data(), copy.size(), 4), copy.size());
  for (const auto& page : snapshot(memory.data(), memory.bytes())) {
    ASSERT_EQ(page.state, UHMM_PAGE_SHARED);
    ASSERT_EQ(page.devices, 3u);
  }
  UHMM_EXPECT_OK(uhmm_stream_destroy(second));
}

TEST_F(Capacity, LinkModelCostsWhatItSays) {
  start_with([](uhmm_config& config) { config.link_latency_ns = 2'000'000; });
  Memory memory(4 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  for (const uhmm_processor to : {1u, UHMM_CPU}) {
    const auto before = stats().copy_ns;
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), to, nullptr));
    EXPECT_GE(stats().copy_ns - before, 2'000'000u);
  }
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(memory.data()[0], static_cast<std::byte>(std::to_integer<int>(pattern(1, 0)) + 1));
  start_with([](uhmm_config& config) { config.link_bytes_per_sec = std::uint64_t{1} << 30; });
  Memory more(std::size_t{4} << 20);
  fill(more.data(), more.bytes(), 1);
  const auto before = stats().copy_ns;
  UHMM_ASSERT_OK(uhmm_migrate(more.data(), more.bytes(), 1, nullptr));
  EXPECT_GE(stats().copy_ns - before, 3'900'000u);
  EXPECT_EQ(first_wrong(more.data(), more.bytes(), 1), more.bytes());
}

TEST_F(Capacity, CoherentMemoryIsAccessedInPlace) {
  start_with([](uhmm_config& config) { config.flags |= UHMM_CONFIG_COHERENT; });
  EXPECT_NE(device_info().flags & UHMM_DEVICE_COHERENT, 0u);
  Memory memory(40 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  const auto before = range_stats(memory.data());
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  fill(memory.data(), memory.bytes(), 2);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 40u);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 2), 0u);
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(memory.data()[123], static_cast<std::byte>(std::to_integer<int>(pattern(2, 123)) + 1));
  const auto after = range_stats(memory.data());
  EXPECT_EQ(after.bytes_to_system, before.bytes_to_system);
  EXPECT_EQ(after.cpu_faults, before.cpu_faults);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), 40u);
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(2, i)) + 1)) << i;
}

}  // namespace
}  // namespace uhmm::test
