// SPDX-License-Identifier: Apache-2.0
// The backend conformance suite: memory, page table, kernels, death.
#include "tests/conformance/device_conformance.hpp"

#include <stdlib.h>
#include <unistd.h>

namespace uhmm::test {
namespace {

using backend::DeviceFault;
using backend::MapAccess;

// Kernels.
void add_value(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  const std::uint64_t cells = std::uint64_t{item->grid[0]} * item->grid[1] * item->grid[2];
  const std::uint64_t cell =
      (std::uint64_t{item->index[2]} * item->grid[1] + item->index[1]) * item->grid[0] + item->index[0];
  for (std::uint64_t i = cell; i < args->words; i += cells) args->data[i] += args->value;
}
// Not checked by the sanitizer, which would end the process ahead of the fault.
__attribute__((no_sanitize("undefined"))) void store_value(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  *static_cast<volatile std::uint64_t*>(args->data) = args->value;
}
void load_value(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  args->data[1] = *static_cast<volatile std::uint64_t*>(args->data);
}
// One count per cell, so that every call is seen.
void count_cell(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  const std::uint64_t cell =
      (std::uint64_t{item->index[2]} * item->grid[1] + item->index[1]) * item->grid[0] + item->index[0];
  std::atomic_ref<std::uint64_t>(args->data[cell]).fetch_add(1);
}
// Waits until all of `value` launches have arrived at data[0]: proves that they run beside each other.
void meet(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  std::atomic_ref<std::uint64_t> arrived(args->data[0]);
  arrived.fetch_add(1);
  while (arrived.load() < args->value) {
  }
}
void wait_for_flag(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  while (std::atomic_ref<std::uint64_t>(args->data[0]).load() == 0) {
  }
}
void call_exit(const uhmm_kernel_item*, void*) { exit(7); }
void call_exit_now(const uhmm_kernel_item*, void*) { _exit(9); }
void call_abort(const uhmm_kernel_item*, void*) { abort(); }
void throw_something(const uhmm_kernel_item*, void*) { throw 1; }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winfinite-recursion"
__attribute__((noinline)) int recurse(volatile char* from, int depth) {
  volatile char frame[4096];
  frame[0] = from[0];
  return recurse(frame, depth + 1) + frame[0];
}
#pragma GCC diagnostic pop
void overflow_stack(const uhmm_kernel_item*, void* raw) {
  volatile char first = 0;
  static_cast<KernelArgs*>(raw)->value = static_cast<std::uint64_t>(recurse(&first, 0));
}

TEST_P(DeviceConformance, KernelReadsWhatWasCopiedInAndItsWritesAreCopiedOut) {
  fill(0, kPages, 1000, MapAccess::ReadWrite);
  ASSERT_TRUE(run(add_value, {words(0), kBytes / 8, 5}, 16).ok()) << last_detail();
  const auto data = contents(0, kPages);
  for (std::size_t i = 0; i < data.size(); ++i) ASSERT_EQ(data[i], 1005 + i);
  EXPECT_FALSE(device_->busy());
}

TEST_P(DeviceConformance, CopiesOverwritePagesThatHaveMemoryAndPagesThatHaveNone) {
  fill(2, 3, 10, MapAccess::Read);
  ASSERT_TRUE(device_->unmap(std::array{pages(2, 3)}).ok());
  fill(0, 8, 77, MapAccess::Read);
  const auto data = contents(0, 8);
  for (std::size_t i = 0; i < data.size(); ++i) ASSERT_EQ(data[i], 77 + i);
  ASSERT_TRUE(device_->zero(window_, pages(4, 10)).ok());
  const auto zeroed = contents(4, 10);
  for (const auto word : zeroed) ASSERT_EQ(word, 0u);
}

TEST_P(FaultingDeviceConformance, AbsentPageFaultsAndGoesOnWhenMapped) {
  FaultServer server(*device_, window_);
  server.start();
  ASSERT_TRUE(run(store_value, {words(3), 0, 42}).ok()) << last_detail();
  server.stop();
  const auto seen = server.seen();
  ASSERT_GE(seen.size(), 1u);
  EXPECT_EQ(seen[0].address, pages(3, 1).begin);
  EXPECT_TRUE(seen[0].is_write);
  EXPECT_FALSE(seen[0].is_protection);
  EXPECT_EQ(contents(3, 1)[0], 42u);
}

TEST_P(FaultingDeviceConformance, WriteToReadOnlyPageIsAProtectionFault) {
  if (!device_->capabilities().read_only_maps) GTEST_SKIP() << "no read-only mappings";
  fill(1, 1, 8, MapAccess::Read);
  FaultServer server(*device_, window_);
  server.start([&](const DeviceFault& fault) {
    EXPECT_TRUE(device_->protect({fault.address, fault.address + kPageBytes}, MapAccess::ReadWrite).ok());
  });
  ASSERT_TRUE(run(store_value, {words(1), 0, 99}).ok()) << last_detail();
  server.stop();
  const auto seen = server.seen();
  ASSERT_GE(seen.size(), 1u);
  EXPECT_EQ(seen[0].address, pages(1, 1).begin);
  EXPECT_TRUE(seen[0].is_write);
  EXPECT_TRUE(seen[0].is_protection);
  EXPECT_EQ(contents(1, 1)[0], 99u);
}

TEST_P(FaultingDeviceConformance, ProtectTakesWritePermissionAway) {
  if (!device_->capabilities().read_only_maps) GTEST_SKIP() << "no read-only mappings";
  fill(0, 4, 1, MapAccess::ReadWrite);
  ASSERT_TRUE(device_->protect(pages(0, 4), MapAccess::Read).ok()) << last_detail();
  FaultServer server(*device_, window_);
  server.start([&](const DeviceFault& fault) {
    EXPECT_TRUE(device_->map({fault.address, fault.address + kPageBytes}, MapAccess::ReadWrite).ok());
  });
  ASSERT_TRUE(run(store_value, {words(2), 0, 5}).ok()) << last_detail();
  server.stop();
  ASSERT_GE(server.seen().size(), 1u);
  EXPECT_TRUE(server.seen()[0].is_protection);
  EXPECT_EQ(contents(2, 1)[0], 5u);
}

TEST_P(FaultingDeviceConformance, MapGivesPagesThatAreMappedTheAccessAskedFor) {
  if (!device_->capabilities().read_only_maps) GTEST_SKIP() << "no read-only mappings";
  fill(0, 4, 1, MapAccess::Read);
  ASSERT_TRUE(device_->zero(window_, pages(4, 4)).ok());
  ASSERT_TRUE(device_->map(pages(0, 8), MapAccess::ReadWrite).ok()) << last_detail();
  // No fault server: a fault would hang, and the time limit of the test would end it.
  ASSERT_TRUE(run(add_value, {words(0), 8 * kPageBytes / 8, 1}, 4).ok()) << last_detail();
  EXPECT_EQ(contents(0, 1)[0], 2u);
  EXPECT_EQ(contents(7, 1)[0], 1u);
}

TEST_P(FaultingDeviceConformance, UnmappedPagesKeepTheirMemoryAndFaultAgain) {
  fill(0, kPages, 30, MapAccess::ReadWrite);
  std::vector<ByteRange> every_other;
  for (std::size_t page = 0; page < kPages; page += 2) every_other.push_back(pages(page, 1));
  ASSERT_GT(every_other.size(), 256u);
  ASSERT_TRUE(device_->unmap(every_other).ok()) << last_detail();
  EXPECT_EQ(contents(10, 1)[0], 30 + 10 * kPageBytes / 8);
  FaultServer server(*device_, window_);
  server.start([&](const DeviceFault& fault) {
    EXPECT_TRUE(device_->map({fault.address, fault.address + kPageBytes}, MapAccess::ReadWrite).ok());
  });
  ASSERT_TRUE(run(add_value, {words(9), 2 * kPageBytes / 8, 1}).ok()) << last_detail();
  server.stop();
  const auto seen = server.seen();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].address, pages(10, 1).begin);
  EXPECT_EQ(contents(10, 1)[0], 31 + 10 * kPageBytes / 8);
}

TEST_P(FaultingDeviceConformance, UnmapAndFreeThenMapAgainReadsZeros) {
  fill(5, 2, 123, MapAccess::ReadWrite);
  ASSERT_TRUE(device_->unmap_and_free(window_, pages(5, 2)).ok()) << last_detail();
  FaultServer server(*device_, window_);
  server.start();
  ASSERT_TRUE(run(load_value, {words(5), 0, 0}).ok()) << last_detail();
  server.stop();
  EXPECT_GE(server.seen().size(), 1u);
  EXPECT_EQ(contents(5, 1)[1], 0u);
}

TEST_P(FaultingDeviceConformance, UnmapStopsAKernelThatIsRunning) {
  fill(0, 1, 0, MapAccess::ReadWrite);
  auto ticket = launch(wait_for_flag, {words(0), 0, 0});
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(device_->busy());
  ASSERT_TRUE(device_->unmap(std::array{pages(0, 1)}).ok()) << last_detail();
  std::vector<std::uint64_t> ones(kPageBytes / 8, 1);
  ASSERT_TRUE(device_->copy_in(window_, pages(0, 1), as_bytes(ones)).ok());
  EXPECT_FALSE(device_->finished(*ticket));  // it can't have seen the flag
  ASSERT_TRUE(device_->map(pages(0, 1), MapAccess::Read).ok());
  EXPECT_TRUE(device_->wait(*ticket).ok()) << last_detail();
  EXPECT_TRUE(device_->finished(*ticket));
}

TEST_P(DeviceConformance, GridCellsRunExactlyOnce) {
  constexpr std::uint32_t kX = 37, kY = 11, kZ = 5;
  ASSERT_TRUE(device_->zero(window_, pages(0, kPages)).ok());
  ASSERT_TRUE(device_->map(pages(0, kPages), MapAccess::ReadWrite).ok());
  for (int round = 0; round < 50; ++round) {
    const auto status = run(count_cell, {words(0), 0, 0}, kX, kY, kZ);
    ASSERT_TRUE(status.ok()) << last_detail();
  }
  const auto data = contents(0, kPages);
  for (std::size_t i = 0; i < data.size(); ++i) ASSERT_EQ(data[i], i < kX * kY * kZ ? 50u : 0u) << i;
  backend::Launch huge;
  huge.kernel = count_cell;
  for (auto& extent : huge.grid) extent = 0xffffffff;
  EXPECT_EQ(device_->launch(huge).status().code(), UHMM_ERR_INVALID);
}

TEST_P(DeviceConformance, LaunchesRunBesideEachOther) {
  if (device_->capabilities().workers < 2) GTEST_SKIP() << "one worker";
  fill(0, 1, 0, MapAccess::ReadWrite);
  std::vector<std::uint64_t> zeros(kPageBytes / 8, 0);
  ASSERT_TRUE(device_->copy_in(window_, pages(0, 1), as_bytes(zeros)).ok());
  auto first = launch(meet, {words(0), 0, 2});
  auto second = launch(meet, {words(0), 0, 2});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(device_->wait(*second).ok());
  EXPECT_TRUE(device_->wait(*first).ok());
}

TEST_P(DeviceConformance, MoreLaunchesThanSlotsFromSeveralThreads) {
  ASSERT_TRUE(device_->zero(window_, pages(0, 1)).ok());
  ASSERT_TRUE(device_->map(pages(0, 1), MapAccess::ReadWrite).ok());
  constexpr int kThreads = 4, kLaunches = 200;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&] {
      std::vector<backend::Ticket> tickets;
      for (int i = 0; i < kLaunches; ++i) {
        auto ticket = launch(count_cell, {words(0), 0, 0}, 3);
        ASSERT_TRUE(ticket.ok()) << last_detail();
        tickets.push_back(*ticket);
      }
      for (const auto ticket : tickets) ASSERT_TRUE(device_->wait(ticket).ok()) << last_detail();
    });
  for (auto& thread : threads) thread.join();
  EXPECT_FALSE(device_->busy());
  const auto data = contents(0, 1);
  for (int cell = 0; cell < 3; ++cell) EXPECT_EQ(data[cell], std::uint64_t{kThreads * kLaunches});
}

TEST_P(DeviceConformance, BusyIsAnnouncedAheadOfWork) {
  EXPECT_FALSE(device_->busy());
  device_->begin_work();
  EXPECT_TRUE(device_->busy());
  device_->end_work();
  EXPECT_FALSE(device_->busy());
}

TEST_P(FaultingDeviceConformance, AccessGoesThroughThePageTableAndTakesFaults) {
  FaultServer server(*device_, window_);
  server.start();
  std::vector<std::uint64_t> data(kBytes / 8 - 10);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = i * 3;
  const std::size_t bytes = data.size() * 8;
  ASSERT_TRUE(device_->access(VirtAddr{memory_} + 40, as_bytes(data), bytes, true).ok()) << last_detail();
  std::vector<std::uint64_t> back(data.size());
  ASSERT_TRUE(device_->access(VirtAddr{memory_} + 40, as_bytes(back), bytes, false).ok()) << last_detail();
  server.stop();
  EXPECT_EQ(data, back);
  EXPECT_GE(server.seen().size(), kPages - 1);
  EXPECT_EQ(contents(0, 1)[6], 3u);
}

TEST_P(FaultingDeviceConformance, PoisonedPageCrashesTheKernelAndTheReasonNamesTheAddress) {
  ASSERT_TRUE(device_->poison(pages(7, 1)).ok()) << last_detail();
  EXPECT_EQ(run(store_value, {words(7), 0, 1}).code(), UHMM_ERR_KERNEL_FAILED);
  const std::string reason = death();
  char address[32];
  std::snprintf(address, sizeof(address), "0x%llx", static_cast<unsigned long long>(pages(7, 1).begin.value));
  EXPECT_TRUE(reason.find("SIGBUS") != std::string::npos || reason.find("SIGSEGV") != std::string::npos) << reason;
  EXPECT_NE(reason.find(address), std::string::npos) << reason;
}

TEST_P(FaultingDeviceConformance, UnmapLiftsPoison) {
  if (!device_->poison(pages(7, 2)).ok()) GTEST_SKIP() << last_detail();
  ASSERT_TRUE(device_->unmap(std::array{pages(7, 2)}).ok());
  fill(7, 2, 50, MapAccess::ReadWrite);
  EXPECT_TRUE(run(add_value, {words(7), 4, 1}).ok()) << last_detail();
  EXPECT_EQ(contents(7, 1)[0], 51u);
}

TEST_P(FaultingDeviceConformance, CrashIsReportedAndAReopenedDeviceIsEmptyAndWorks) {
  fill(0, 2, 5, MapAccess::ReadWrite);
  auto innocent = launch(wait_for_flag, {words(4), 0, 0});  // sleeps in a fault
  ASSERT_TRUE(innocent.ok());
  EXPECT_EQ(run(store_value, {nullptr, 0, 1}).code(), UHMM_ERR_KERNEL_FAILED);
  EXPECT_NE(std::string(last_detail()).find("SIGSEGV at address 0x0"), std::string::npos) << last_detail();
  EXPECT_EQ(device_->wait(*innocent).code(), UHMM_ERR_DEVICE_LOST);
  const std::string reason = death();
  EXPECT_NE(reason.find("kernel 0x"), std::string::npos) << reason;
  EXPECT_NE(reason.find("store_value"), std::string::npos) << reason;
  EXPECT_FALSE(device_->busy());
  EXPECT_TRUE(device_->finished(*innocent));

  // Everything fails cleanly, and again with the same reason.
  char again[192] = {};
  device_->handle_death(again);
  EXPECT_EQ(reason, again);
  EXPECT_EQ(device_->map(pages(0, 1), MapAccess::Read).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_EQ(device_->unmap(std::array{pages(0, 1)}).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_EQ(run(store_value, {words(0), 0, 1}).code(), UHMM_ERR_DEVICE_LOST);
  device_->wake(pages(0, 1));
  device_->detach(window_, window_.range);

  ASSERT_TRUE(device_->open().ok()) << last_detail();
  EXPECT_FALSE(device_->lost());
  attach();
  EXPECT_EQ(contents(0, 1)[0], 0u);
  EXPECT_EQ(device_->wait(*innocent).code(), UHMM_ERR_DEVICE_LOST);
  fill(0, 2, 5, MapAccess::ReadWrite);
  ASSERT_TRUE(run(add_value, {words(0), 10, 1}).ok()) << last_detail();
  EXPECT_EQ(contents(0, 1)[9], 15u);
}

TEST_P(FaultingDeviceConformance, KernelThatEndsItsProcessIsADeviceLoss) {
  struct Case {
    uhmm_kernel kernel;
    const char* text;
  };
  for (const Case& one : {Case{call_exit, "exit(7)"}, Case{call_abort, "SIGABRT"}, Case{call_exit_now, "_exit"},
                          Case{throw_something, "SIGABRT"}, Case{overflow_stack, "SIGSEGV"}}) {
    SCOPED_TRACE(one.text);
    const Status status = run(one.kernel, {});
    EXPECT_TRUE(status.code() == UHMM_ERR_KERNEL_FAILED || status.code() == UHMM_ERR_DEVICE_LOST);
    const std::string reason = death();
    EXPECT_NE(reason.find(one.text), std::string::npos) << reason;
    EXPECT_NE(reason.find("kernel"), std::string::npos) << reason;
    device_->detach(window_, window_.range);
    ASSERT_TRUE(device_->open().ok()) << last_detail();
    attach();
  }
}

TEST_P(DeviceConformance, DetachEndsAccessAndOverlappingWindowsKeepTheirPages) {
  fill(0, kPages, 9, MapAccess::ReadWrite);
  // A second window shares pages 590..599 and reaches beyond; what is mapped stays mapped.
  backend::Window second{{pages(590, 1).begin, pages(kPages + kSparePages, 1).begin}, nullptr};
  ASSERT_TRUE(device_->attach({&second, 1}).ok()) << last_detail();
  ASSERT_TRUE(run(add_value, {words(590), 10 * kPageBytes / 8, 1}).ok()) << last_detail();
  device_->detach(second, pages(kPages, kSparePages));
  ASSERT_TRUE(run(add_value, {words(590), 10 * kPageBytes / 8, 1}).ok()) << last_detail();
  EXPECT_EQ(contents(590, 1)[0], 11 + 590 * kPageBytes / 8);
  // Without faults nothing tells a page of a mapped block from its neighbours.
  if (!device_->capabilities().faulting) return;
  EXPECT_EQ(run(store_value, {words(kPages), 0, 1}).code(), UHMM_ERR_KERNEL_FAILED);
  (void)death();
}

}  // namespace
}  // namespace uhmm::test
