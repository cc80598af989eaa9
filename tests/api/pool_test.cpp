// SPDX-License-Identifier: Apache-2.0
// Memory pools: quota, and what their owners are told and asked.
#include <array>
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

constexpr std::size_t kPages = 64;

// Notes what the callbacks say about the pages of one piece of memory, itself outside managed memory.
struct Owner {
  std::uint64_t base = 0;
  std::array<std::atomic<int>, kPages> freed{};
  std::array<std::atomic<int>, kPages> faulted{};
  std::atomic<int> last_cause{0};
  std::atomic<int> writes{0};
  std::atomic<int> strange{0};
  std::atomic<uhmm_fault_action> answer{UHMM_FAULT_MIGRATE};

  static uhmm_fault_action page_fault(void* self, const uhmm_fault_info* fault) {
    auto& owner = *static_cast<Owner*>(self);
    const std::uint64_t page = (fault->address - owner.base) / kPage;
    if (fault->size < sizeof(*fault) || fault->address % kPage != 0 || page >= kPages || fault->device != 1)
      ++owner.strange;
    else
      ++owner.faulted[page];
    owner.writes += static_cast<int>(fault->is_write);
    return owner.answer;
  }
  static void page_free(void* self, std::uint64_t address, uhmm_cause cause) {
    auto& owner = *static_cast<Owner*>(self);
    const std::uint64_t page = (address - owner.base) / kPage;
    owner.last_cause = cause;
    if (address % kPage != 0 || page >= kPages)
      ++owner.strange;
    else
      ++owner.freed[page];
  }
  int all_freed() const {
    int sum = 0;
    for (const auto& each : freed) sum += each;
    return sum;
  }
};

class Pools : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    memory_ = std::make_unique<Memory>(kPages * kPage);
    owner_.base = reinterpret_cast<std::uint64_t>(memory_->data());
    fill(memory_->data(), memory_->bytes(), 1);
    pool_ = create(256 * kPage, &owner_);
    UHMM_ASSERT_OK(uhmm_range_set_pool(memory_->page(3), pool_));
  }
  void TearDown() override {
    memory_.reset();
    RuntimeTest::TearDown();  // no callback after it
    EXPECT_EQ(owner_.strange, 0);
  }
  static uhmm_pool create(std::uint64_t bytes, Owner* owner) {
    uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
    ops.page_fault = Owner::page_fault;
    ops.page_free = Owner::page_free;
    uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
    desc.bytes = bytes;
    desc.ops = owner != nullptr ? &ops : nullptr;
    desc.context = owner;
    uhmm_pool pool = 0;
    UHMM_EXPECT_OK(uhmm_pool_create(&desc, &pool));
    return pool;
  }
  void to_device() { UHMM_ASSERT_OK(uhmm_migrate(memory_->data(), memory_->bytes(), 1, nullptr)); }
  // Callbacks may come a little after the work that caused them. A call that waits for them all ends the doubt.
  void expect_each_freed(int times, uhmm_cause cause) {
    while (owner_.all_freed() < times * static_cast<int>(kPages)) std::this_thread::yield();
    for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], times) << "page " << i;
    EXPECT_EQ(owner_.last_cause, cause);
  }

  Owner owner_;
  std::unique_ptr<Memory> memory_;
  uhmm_pool pool_ = 0;
};

TEST_F(Pools, PagesAreFreedOnceForEveryWayOut) {
  int times = 0;
  to_device();
  EXPECT_EQ(owner_.all_freed(), 0);
  UHMM_ASSERT_OK(uhmm_migrate(memory_->data(), memory_->bytes(), UHMM_CPU, nullptr));
  expect_each_freed(++times, UHMM_CAUSE_USER);

  to_device();
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 1), memory_->bytes());
  while (owner_.all_freed() < (times + 1) * static_cast<int>(kPages)) std::this_thread::yield();
  ++times;
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], times) << "page " << i;

  EXPECT_EQ(device_count_wrong(memory_->data(), memory_->bytes(), 1), 0u);
  fill(memory_->data(), memory_->bytes(), 1);  // copies on the device become stale
  expect_each_freed(++times, UHMM_CAUSE_COHERENCE);

  to_device();
  UHMM_ASSERT_OK(uhmm_discard(memory_->data(), memory_->bytes()));
  expect_each_freed(++times, UHMM_CAUSE_DISCARD);

  fill(memory_->data(), memory_->bytes(), 1);
  to_device();
  UHMM_ASSERT_OK(uhmm_pool_destroy(pool_));
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], times + 1) << "page " << i;
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_pool_destroy(pool_));
  // The range uses the default pool from now on, and nobody is called.
  to_device();
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 1), memory_->bytes());
  EXPECT_EQ(owner_.all_freed(), (times + 1) * static_cast<int>(kPages));
}

TEST_F(Pools, UnregisterShutdownAndLossFreeTooAndOnce) {
  to_device();
  const int all = static_cast<int>(kPages);
  memory_.reset();
  while (owner_.all_freed() < all) std::this_thread::yield();
  EXPECT_EQ(owner_.last_cause, UHMM_CAUSE_UNREGISTER);
  memory_ = std::make_unique<Memory>(kPages * kPage);
  owner_.base = reinterpret_cast<std::uint64_t>(memory_->data());
  fill(memory_->data(), memory_->bytes(), 2);
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory_->data(), pool_));
  to_device();
  stop();
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], 2) << "page " << i;
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 2), memory_->bytes());
}

TEST_F(Pools, OwnerIsAskedOnCpuFaults) {
  to_device();
  EXPECT_EQ(memory_->page(7)[5], pattern(1, 7 * kPage + 5));
  EXPECT_EQ(owner_.faulted[7], 1);
  EXPECT_EQ(owner_.writes, 0);
  memory_->page(40)[0] = pattern(1, 40 * kPage);
  EXPECT_EQ(owner_.faulted[40], 1);
  EXPECT_EQ(owner_.writes, 1);
  EXPECT_EQ(memory_->page(7)[6], pattern(1, 7 * kPage + 6));
  EXPECT_EQ(owner_.faulted[7], 1) << "it is home now";
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 1), memory_->bytes());
}

TEST_F(Pools, OwnerMayRefuse) {
  may_lose_data_ = true;
  to_device();
  owner_.answer = UHMM_FAULT_SIGBUS;
  const Raised raised = raised_by_read(memory_->page(5) + 17);
  EXPECT_EQ(raised.signal, SIGBUS);
  EXPECT_EQ(snapshot(memory_->page(5), 1)[0].state, UHMM_PAGE_LOST);
  while (owner_.freed[5] == 0) std::this_thread::yield();
  EXPECT_EQ(stats().pages_lost, 1u);
  owner_.answer = UHMM_FAULT_MIGRATE;
  EXPECT_EQ(raised_by_read(memory_->page(5)).signal, SIGBUS) << "lost is lost";
  EXPECT_EQ(memory_->page(6)[0], pattern(1, 6 * kPage));
  UHMM_ASSERT_OK(uhmm_discard(memory_->page(5), kPage));
  EXPECT_EQ(memory_->page(5)[0], std::byte{0});
  EXPECT_EQ(owner_.freed[5], 1);
}

TEST_F(Pools, QuotaIsKept) {
  const std::uint64_t before = device_info().memory_free;
  const uhmm_pool small = create(20 * kPage, nullptr);
  Memory memory(kPages * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), small));
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
  EXPECT_EQ(result.pages_moved, 20u);
  EXPECT_EQ(result.pages_skipped, kPages - 20);
  EXPECT_EQ(device_info().memory_free, before - 20 * kPage);
  EXPECT_EQ(device_count_wrong(memory.data(), 10 * kPage, 1), 0u);
  // A pool is no smaller for what others do.
  UHMM_ASSERT_OK(uhmm_pool_destroy(small));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), kPages);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Pools, MoreDataThanQuotaIsEvictedFromThePoolOnly) {
  const uhmm_pool small = create(4 * kBlock, nullptr);
  Memory other(2 * kBlock);
  fill(other.data(), other.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(other.data(), other.bytes(), 1, nullptr));
  Memory memory(12 * kBlock);
  fill(memory.data(), memory.bytes(), 2);
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), small));
  device_increment(memory.data(), memory.bytes());
  EXPECT_GT(range_stats(memory.data()).pages_freed[UHMM_CAUSE_EVICTION], 0u);
  EXPECT_LE(range_stats(memory.data()).pages_on_devices, 4 * 512u);
  EXPECT_EQ(pages_in_state(other.data(), other.bytes(), UHMM_PAGE_DEVICE), other.pages());
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(2, i)) + 1)) << i;
}

// A pool smaller than what it is asked for within one block of 2 MiB: pages of the block make room for each other.
TEST_F(Pools, AQuotaOfAFewPagesIsEnough) {
  for (const std::uint64_t quota : {1u, 20u}) {
    const uhmm_pool small = create(quota * kPage, nullptr);
    BlockMemory memory(1);
    fill(memory.data(), kBlock, 2);
    UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), small));
    device_increment(memory.data(), kBlock);
    EXPECT_LE(range_stats(memory.data()).pages_on_devices, quota);
    for (std::size_t i = 0; i < kBlock; ++i)
      ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(2, i)) + 1)) << i;
    UHMM_ASSERT_OK(uhmm_pool_destroy(small));
  }
}

TEST_F(Pools, RangesOfOneBlockNeedNotShareAPool) {
  const uhmm_pool small = create(4 * kPage, nullptr);
  BlockMemory memory(1, false);
  fill(memory.data(), kBlock, 2);
  std::byte* const other = memory.data() + kBlock / 2;
  UHMM_ASSERT_OK(uhmm_register(memory.data(), kBlock / 2));
  UHMM_ASSERT_OK(uhmm_register(other, kBlock / 2));
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), small));
  for (int round = 0; round < 3; ++round) {
    device_increment(memory.data(), kBlock / 2);
    device_increment(other, kBlock / 2);
  }
  for (std::size_t i = 0; i < kBlock; ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(2, i)) + 3)) << i;
  UHMM_ASSERT_OK(uhmm_unregister(memory.data()));
  UHMM_ASSERT_OK(uhmm_unregister(other));
}

// A kernel that can't go on is worse than an advice that is not followed.
TEST_F(Pools, PinnedPagesGiveWayToAKernelThatHasNoOtherRoom) {
  const uhmm_pool small = create(20 * kPage, nullptr);
  BlockMemory memory(2, false);
  fill(memory.data(), 2 * kBlock, 2);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), kBlock));
  UHMM_ASSERT_OK(uhmm_register(memory.data() + kBlock, kBlock));
  for (const std::size_t block : {0u, 1u}) UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data() + block * kBlock, small));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 20 * kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), kBlock, UHMM_ADVISE_PINNED, 0));
  device_increment(memory.data() + kBlock, 40 * kPage);  // no page of this block is there
  UHMM_ASSERT_OK(uhmm_advise(memory.data() + kBlock, kBlock, UHMM_ADVISE_PINNED, 0));
  device_increment(memory.data() + kBlock, 40 * kPage);  // its own pages are pinned as well
  for (std::size_t i = 0; i < 2 * kBlock; ++i) {
    const bool written = i >= kBlock && i < kBlock + 40 * kPage;
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(2, i)) + (written ? 2 : 0))) << i;
  }
  UHMM_ASSERT_OK(uhmm_unregister(memory.data()));
  UHMM_ASSERT_OK(uhmm_unregister(memory.data() + kBlock));
}

TEST_F(Pools, ChangingThePoolBringsPagesBack) {
  to_device();
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory_->data(), 0));
  while (owner_.all_freed() < static_cast<int>(kPages)) std::this_thread::yield();
  EXPECT_EQ(pages_in_state(memory_->data(), memory_->bytes(), UHMM_PAGE_SYSTEM), kPages);
  to_device();
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 1), memory_->bytes());
  UHMM_ASSERT_OK(uhmm_pool_destroy(pool_));
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], 1) << i;
}

TEST_F(Pools, RemovingTheDeviceEndsThem) {
  to_device();
  UHMM_ASSERT_OK(uhmm_device_remove(1));
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(owner_.freed[i], 1) << i;
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_pool_destroy(pool_));
  EXPECT_EQ(first_wrong(memory_->data(), memory_->bytes(), 1), memory_->bytes());
}

}  // namespace
}  // namespace uhmm::test
