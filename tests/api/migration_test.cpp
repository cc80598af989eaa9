// SPDX-License-Identifier: Apache-2.0
// What moves when, and how much. Everything runs with UFFDIO_MOVE and without.
#include <thread>

#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

const auto kModes = testing::Values(Mode{"Move", 0}, Mode{"NoMove", UHMM_CONFIG_NO_MOVE});
std::string mode_name(const testing::TestParamInfo<Mode>& mode) { return mode.param.name; }

class Migration : public RuntimeTest, public testing::WithParamInterface<Mode> {
 protected:
  bool starts_itself() const override { return false; }
  void SetUp() override {
    start_with([](uhmm_config&) {});
  }
  void start_with(const std::function<void(uhmm_config&)>& change) {
    stop();
    uhmm_config config = test_config();
    config.flags |= GetParam().flags;
    change(config);
    start(config);
  }
  static uhmm_migrate_result migrate(void* address, std::size_t bytes, uhmm_processor to,
                                     uhmm_status expected = UHMM_OK) {
    uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
    UHMM_EXPECT_STATUS(expected, uhmm_migrate(address, bytes, to, &result));
    return result;
  }
  static void expect_counts(const uhmm_migrate_result& got, std::uint64_t moved, std::uint64_t populated,
                            std::uint64_t there, std::uint64_t skipped = 0) {
    EXPECT_EQ(got.pages_requested, moved + populated + there + skipped);
    EXPECT_EQ(got.pages_moved, moved);
    EXPECT_EQ(got.pages_populated, populated);
    EXPECT_EQ(got.pages_there, there);
    EXPECT_EQ(got.pages_skipped, skipped);
    EXPECT_EQ(got.bytes_moved, moved * kPage);
  }
  static void expect_states(const Memory& memory, uhmm_page_state state) {
    EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), state), memory.pages());
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, Migration, kModes, mode_name);

TEST_P(Migration, CountsBothWaysAndIsIdempotent) {
  Memory memory(700 * kPage);  // over a block boundary
  fill(memory.data(), memory.bytes(), 1);
  expect_counts(migrate(memory.data(), memory.bytes(), 1), 700, 0, 0);
  expect_states(memory, UHMM_PAGE_DEVICE);
  expect_counts(migrate(memory.data(), memory.bytes(), 1), 0, 0, 700);
  expect_counts(migrate(memory.data(), memory.bytes(), UHMM_CPU), 700, 0, 0);
  expect_states(memory, UHMM_PAGE_SYSTEM);
  expect_counts(migrate(memory.data(), memory.bytes(), UHMM_CPU), 0, 0, 700);
  const uhmm_stats now = range_stats(memory.data());
  EXPECT_EQ(now.pages_to_device[UHMM_CAUSE_USER], 700u);
  EXPECT_EQ(now.pages_to_system[UHMM_CAUSE_USER], 700u);
  EXPECT_EQ(now.bytes_to_device, 700 * kPage);
  EXPECT_EQ(now.bytes_to_system, 700 * kPage);
  EXPECT_EQ(now.cpu_faults + now.device_faults, 0u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_P(Migration, PopulatesNeverTouchedPages) {
  Memory memory(32 * kPage);
  fill(memory.data(), 8 * kPage, 1);
  expect_counts(migrate(memory.data(), memory.bytes(), 1), 8, 24, 0);
  EXPECT_EQ(range_stats(memory.data()).pages_populated, 24u);
  EXPECT_EQ(first_wrong(memory.data(), 8 * kPage, 1), 8 * kPage);
  for (std::size_t i = 8 * kPage; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], std::byte{0}) << i;
}

TEST_P(Migration, UnalignedRequestsCoverEveryPageTheyTouch) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  expect_counts(migrate(memory.data() + kPage - 1, 2, 1), 2, 0, 0);
  expect_counts(migrate(memory.data(), memory.bytes(), 1), 6, 0, 2);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_P(Migration, SeveralRangesInOneRequest) {
  Memory memory(8 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), 3 * kPage + 100));
  UHMM_ASSERT_OK(uhmm_register(memory.data() + 3 * kPage + 100, 5 * kPage - 100));
  fill(memory.data(), memory.bytes(), 1);
  expect_counts(migrate(memory.data(), memory.bytes(), 1), 8, 0, 0);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_OK(uhmm_unregister(memory.data()));
  UHMM_EXPECT_OK(uhmm_unregister(memory.data() + 3 * kPage + 100));
}

TEST_P(Migration, DeviceReadsShareAndCpuReadsOfSharedPagesDoNotFault) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  expect_states(memory, UHMM_PAGE_SHARED);
  const auto before = range_stats(memory.data());
  EXPECT_EQ(before.bytes_to_device, memory.bytes());
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  const auto after = range_stats(memory.data());
  EXPECT_EQ(after.cpu_faults, before.cpu_faults);
  EXPECT_EQ(after.bytes_to_system, 0u);
  expect_states(memory, UHMM_PAGE_SHARED);
}

TEST_P(Migration, SecondVisitMovesOnlyWhatTheCpuWrote) {
  Memory memory(512 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  const auto before = range_stats(memory.data());
  const std::size_t written[] = {3, 40, 110, 290, 500};
  for (const std::size_t page : written) memory.page(page)[17] = pattern(2, 17);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), std::size(written));
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), std::size(written));
  const auto after = range_stats(memory.data());
  EXPECT_EQ(after.bytes_to_device - before.bytes_to_device, std::size(written) * kPage);
  EXPECT_EQ(after.bytes_to_system, before.bytes_to_system);
  expect_states(memory, UHMM_PAGE_SHARED);
}

TEST_P(Migration, DeviceWritesComeBackOnCpuReads) {
  Memory memory(300 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  device_fill(memory.data(), memory.bytes(), 2);
  expect_states(memory, UHMM_PAGE_DEVICE);
  const auto before = range_stats(memory.data());
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  const auto after = range_stats(memory.data());
  EXPECT_EQ(after.bytes_to_system - before.bytes_to_system, memory.bytes());
  EXPECT_GT(after.cpu_faults, before.cpu_faults);
  EXPECT_LE(after.cpu_faults - before.cpu_faults, 30u);  // windows grow along the walk
  expect_states(memory, UHMM_PAGE_SYSTEM);
}

TEST_P(Migration, ManyRoundsOfBothSides) {
  Memory memory(100 * kPage);
  fill(memory.data(), memory.bytes(), 0);
  for (int round = 0; round < 10; ++round) {
    device_increment(memory.data(), memory.bytes());
    for (std::size_t i = 0; i < memory.bytes(); i += 1000)
      memory.data()[i] = static_cast<std::byte>(std::to_integer<int>(memory.data()[i]) + 1);
  }
  for (std::size_t i = 0; i < memory.bytes(); ++i) {
    const int added = i % 1000 == 0 ? 20 : 10;
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(0, i)) + added)) << i;
  }
}

// A device's process begins as a copy of the program: what was written before is shared with it, copy on write. The
// same holds for any child.
TEST_P(Migration, PagesSharedWithAChildMoveToo) {
  stop();
  Memory memory(600 * kPage, false);
  fill(memory.data(), memory.bytes(), 1);
  start_with([](uhmm_config&) {});
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  device_increment(memory.data(), 200 * kPage);  // reads first, and shares; then writes
  UHMM_ASSERT_OK(uhmm_acquire(memory.page(200), 200 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(memory.page(200), 200 * kPage, 1, UHMM_ACCESS_READ));
  EXPECT_EQ(migrate(memory.page(200), 200 * kPage, 1).pages_skipped, 0u);
  EXPECT_EQ(migrate(memory.page(400), 200 * kPage, 1).pages_skipped, 0u);
  expect_states(memory, UHMM_PAGE_DEVICE);
  for (std::size_t i = 0; i < memory.bytes(); ++i) {
    const int added = i < 200 * kPage ? 1 : 0;
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + added)) << i;
  }
  UHMM_ASSERT_OK(uhmm_unregister(memory.data()));
}

// The child is not the only one: another device has the pages too, so their protection is not this device's doing.
TEST_P(Migration, PagesSharedWithAChildAndAnotherDeviceMoveToo) {
  stop();
  Memory memory(300 * kPage, false);
  fill(memory.data(), memory.bytes(), 1);
  start_with([](uhmm_config& config) { config.soft_devices = 2; });
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  expect_states(memory, UHMM_PAGE_SHARED);
  EXPECT_EQ(migrate(memory.data(), 100 * kPage, 2).pages_skipped, 0u);
  UHMM_ASSERT_OK(uhmm_acquire(memory.page(100), 100 * kPage, 2, UHMM_ACCESS_READ_WRITE));
  UHMM_ASSERT_OK(uhmm_release(memory.page(100), 100 * kPage, 2, UHMM_ACCESS_READ_WRITE));
  for (std::size_t page = 200; page < 300; ++page) {
    const std::byte value = pattern(2, page);
    UHMM_ASSERT_OK(uhmm_device_write(2, memory.page(page), &value, 1, nullptr));
  }
  expect_states(memory, UHMM_PAGE_DEVICE);
  for (std::size_t i = 0; i < memory.bytes(); ++i) {
    const bool written = i >= 200 * kPage && i % kPage == 0;
    ASSERT_EQ(memory.data()[i], written ? pattern(2, i / kPage) : pattern(1, i)) << i;
  }
  UHMM_ASSERT_OK(uhmm_unregister(memory.data()));
}

TEST_P(Migration, DiscardDropsWholePagesWhereverTheyAre) {
  Memory memory(12 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 4 * kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_acquire(memory.page(4), 4 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(memory.page(4), 4 * kPage, 1, UHMM_ACCESS_READ));
  EXPECT_EQ(device_info().memory_free, device_info().memory_bytes - 8 * kPage);
  const auto before = range_stats(memory.data());
  UHMM_ASSERT_OK(uhmm_discard(memory.data() + 100, 11 * kPage));  // pages 1 to 10
  EXPECT_EQ(device_info().memory_free, device_info().memory_bytes - kPage);
  for (std::size_t i = 0; i < memory.bytes(); ++i) {
    const bool dropped = i >= kPage && i < 11 * kPage;
    ASSERT_EQ(memory.data()[i], dropped ? std::byte{0} : pattern(1, i)) << i;
  }
  const auto after = range_stats(memory.data());
  EXPECT_EQ(after.bytes_to_system - before.bytes_to_system, kPage);  // page 0 only
  EXPECT_EQ(after.pages_freed[UHMM_CAUSE_DISCARD], 7u);
  EXPECT_EQ(device_count_wrong(memory.data(), kPage, 1), 0u);
  UHMM_EXPECT_OK(uhmm_discard(memory.data() + 1, 100));  // no whole page: nothing happens
  EXPECT_EQ(first_wrong(memory.data(), kPage, 1), kPage);
}

TEST_P(Migration, ReadMostlyDuplicatesOnCpuReads) {
  Memory memory(16 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_READ_MOSTLY, 0));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  expect_states(memory, UHMM_PAGE_SHARED);
  const auto before = range_stats(memory.data());
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  EXPECT_EQ(range_stats(memory.data()).bytes_to_device, before.bytes_to_device);
  memory.data()[0] = pattern(9, 9);  // a write ends it for that page
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 1u);
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_NOT_READ_MOSTLY, 0));
  device_fill(memory.data(), memory.bytes(), 3);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 3), memory.bytes());
  expect_states(memory, UHMM_PAGE_SYSTEM);
}

TEST_P(Migration, PinnedPagesStayButCpuAccessWins) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 4 * kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_PINNED, 0));
  migrate(memory.data(), memory.bytes(), UHMM_CPU, UHMM_ERR_BUSY);
  migrate(memory.data(), memory.bytes(), 1, UHMM_ERR_BUSY);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 4u);
  EXPECT_EQ(memory.data()[0], pattern(1, 0));
  EXPECT_LT(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 4u);
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_UNPINNED, 0));
  const auto result = migrate(memory.data(), memory.bytes(), 1);
  EXPECT_EQ(result.pages_skipped, 0u);
  expect_states(memory, UHMM_PAGE_DEVICE);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

void add_kernel(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  for (std::size_t i = 0; i < args->bytes; i += kPage)
    reinterpret_cast<std::atomic<std::uint64_t>*>(args->data + i)->fetch_add(1);
}

TEST_P(Migration, ExclusivePagesAreTheDevicesUntilTheCpuTouchesThem) {
  Memory memory(8 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  std::uint64_t pages = 0;
  UHMM_ASSERT_OK(uhmm_make_exclusive(memory.data(), memory.bytes(), 1, &pages));
  EXPECT_EQ(pages, 8u);
  expect_states(memory, UHMM_PAGE_EXCLUSIVE);
  UHMM_ASSERT_OK(run(add_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}, 100));
  expect_states(memory, UHMM_PAGE_EXCLUSIVE);
  EventReader events;
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(memory.page(3)), 100u);
  // Looking at the page waits for who still has its block, and so for the event.
  EXPECT_EQ(snapshot(memory.page(3), 1)[0].state, UHMM_PAGE_SYSTEM);
  std::uint64_t revoked = 0;
  for (const auto& event : events.next())
    if (event.kind == UHMM_EVENT_REVOKE) revoked += event.pages;
  EXPECT_GE(revoked, 1u);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(memory.page(i)), 100u) << i;
  UHMM_ASSERT_OK(run(add_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}, 10));
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(memory.page(i)), 110u) << i;
}

TEST_P(Migration, ExclusiveOfPinnedMemoryIsBusyAndLeavesNothingBehind) {
  Memory memory(8 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), 4 * kPage));
  UHMM_ASSERT_OK(uhmm_register(memory.page(4), 4 * kPage));
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_advise(memory.page(4), 1, UHMM_ADVISE_PINNED, 0));
  std::uint64_t pages = 77;
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_make_exclusive(memory.data(), memory.bytes(), 1, &pages));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_EXCLUSIVE), 0u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_OK(uhmm_unregister(memory.data()));
  UHMM_EXPECT_OK(uhmm_unregister(memory.page(4)));
}

TEST_P(Migration, AcquireMakesCurrentAndHoldsUntilRelease) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_acquire(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ));
  expect_states(memory, UHMM_PAGE_SHARED);
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_unregister(memory.data()));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_release(memory.data(), memory.bytes(), 1, UHMM_ACCESS_WRITE));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_release(memory.data(), kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_release(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ));
  const auto before = range_stats(memory.data());
  UHMM_ASSERT_OK(uhmm_acquire(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ_WRITE));
  expect_states(memory, UHMM_PAGE_DEVICE);
  EXPECT_EQ(range_stats(memory.data()).bytes_to_device, before.bytes_to_device);  // it was there
  UHMM_ASSERT_OK(uhmm_release(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ_WRITE));
  UHMM_ASSERT_OK(uhmm_acquire(memory.data(), memory.bytes(), UHMM_CPU, UHMM_ACCESS_READ_WRITE));
  expect_states(memory, UHMM_PAGE_SYSTEM);
  UHMM_ASSERT_OK(uhmm_release(memory.data(), memory.bytes(), UHMM_CPU, UHMM_ACCESS_READ_WRITE));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_P(Migration, AcquireForWritingCopiesOnlyEdges) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_acquire(memory.data() + 100, 6 * kPage, 1, UHMM_ACCESS_WRITE));
  EXPECT_EQ(range_stats(memory.data()).bytes_to_device, 2 * kPage);
  UHMM_ASSERT_OK(uhmm_release(memory.data() + 100, 6 * kPage, 1, UHMM_ACCESS_WRITE));
  device_fill(memory.data() + 100, 6 * kPage, 2);
  EXPECT_EQ(first_wrong(memory.data() + 100, 6 * kPage, 2), 6 * kPage);
  EXPECT_EQ(first_wrong(memory.data(), 100, 1), 100u);
  for (std::size_t i = 6 * kPage + 100; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], pattern(1, i)) << i;
}

TEST_P(Migration, PrefetchMakesCurrentAndKeepsOtherCopies) {
  Memory memory(40 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_prefetch(memory.data(), memory.bytes(), 1, stream_));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  expect_states(memory, UHMM_PAGE_SHARED);
  auto now = range_stats(memory.data());
  EXPECT_EQ(now.pages_to_device[UHMM_CAUSE_PREFETCH_USER], 40u);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  EXPECT_EQ(range_stats(memory.data()).device_faults, now.device_faults);
  device_fill(memory.data(), memory.bytes(), 2);
  UHMM_ASSERT_OK(uhmm_prefetch(memory.data(), memory.bytes(), UHMM_CPU, stream_));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  now = range_stats(memory.data());
  EXPECT_EQ(now.pages_to_system[UHMM_CAUSE_PREFETCH_USER], 40u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  EXPECT_EQ(range_stats(memory.data()).cpu_faults, now.cpu_faults);
  // Without a stream: some time soon.
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
  UHMM_ASSERT_OK(uhmm_prefetch(memory.data(), memory.bytes(), 1, 0));
  while (pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SHARED) != 40) std::this_thread::yield();
}

TEST_P(Migration, DeviceReadAndWriteCountTheirFaults) {
  Memory memory(256 * kPage);
  std::vector<std::byte> buffer(memory.bytes());
  fill(memory.data(), memory.bytes(), 1);
  std::uint64_t faults = 99;
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.data(), buffer.data(), buffer.size(), &faults));
  EXPECT_EQ(faults, 1u) << "one run of missing pages";
  EXPECT_EQ(first_wrong(buffer.data(), buffer.size(), 1), buffer.size());
  expect_states(memory, UHMM_PAGE_SHARED);
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.data() + 5, buffer.data(), 10'000, &faults));
  EXPECT_EQ(faults, 0u);
  fill(buffer.data(), buffer.size(), 2);
  UHMM_ASSERT_OK(uhmm_device_write(1, memory.data(), buffer.data(), buffer.size(), &faults));
  EXPECT_EQ(faults, 1u) << "one run that may not be written yet";
  expect_states(memory, UHMM_PAGE_DEVICE);
  UHMM_ASSERT_OK(uhmm_device_write(1, memory.data(), buffer.data(), buffer.size(), &faults));
  EXPECT_EQ(faults, 0u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  // Two runs: the page in the middle is there already.
  UHMM_ASSERT_OK(uhmm_migrate(memory.page(2), kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.data(), buffer.data(), 5 * kPage, &faults));
  EXPECT_EQ(faults, 2u);
  EXPECT_EQ(first_wrong(buffer.data(), 5 * kPage, 2), 5 * kPage);
  // From and into managed memory that is on the device itself.
  Memory other(4 * kPage);
  UHMM_ASSERT_OK(uhmm_migrate(other.data(), other.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.data(), other.data(), other.bytes(), nullptr));
  EXPECT_EQ(first_wrong(other.data(), other.bytes(), 2), other.bytes());
}

}  // namespace
}  // namespace uhmm::test
