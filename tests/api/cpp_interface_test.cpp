// SPDX-License-Identifier: Apache-2.0
// The C++ interface does what it says: objects own what they stand for, failures are exceptions, lambdas and functions
// are kernels, containers live in managed memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <list>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "uhmm/uhmm.hpp"

namespace {

uhmm_config small_config() {
  uhmm_config config = uhmm::default_config();
  config.flags = UHMM_CONFIG_NO_ENV;
  config.device_memory = std::uint64_t{64} << 20;
  return config;
}

template <typename Call>
uhmm_status status_of(Call&& call) {
  try {
    call();
  } catch (const uhmm::error& error) {
    return error.status();
  }
  return UHMM_OK;
}

class CppInterface : public testing::Test {
 protected:
  uhmm::runtime runtime_{small_config()};
  uhmm::processor device_ = uhmm::devices().front();
};

struct AddArgs {
  int* numbers;
  int what;
};
void add(const uhmm_kernel_item& item, const AddArgs& args) { args.numbers[item.index[0]] += args.what; }
void do_nothing(const uhmm_kernel_item&) {}

TEST_F(CppInterface, RunsFunctionsAndLambdas) {
  std::vector<int> numbers(10'000);
  std::iota(numbers.begin(), numbers.end(), 0);
  const uhmm::registration managed(numbers);
  uhmm::stream stream(device_);
  const auto count = static_cast<std::uint32_t>(numbers.size());
  stream.launch<add>(count, AddArgs{numbers.data(), 5});
  stream.launch<do_nothing>(1);
  stream.launch({100, count / 100}, [data = numbers.data()](const uhmm_kernel_item& item) {
    data[item.index[1] * item.grid[0] + item.index[0]] *= 2;
  });
  stream.synchronize();
  for (int i = 0; i < 10'000; ++i) ASSERT_EQ(numbers[static_cast<std::size_t>(i)], (i + 5) * 2);
}

// Pages that the program wrote before the runtime started are shared with the device's process, copy on write.
TEST(CppInterfaceEarlyMemory, WrittenBeforeTheRuntimeStarts) {
  std::vector<double> numbers(1'000'000, 3.0);
  const uhmm::runtime runtime(small_config());
  const uhmm::registration managed(numbers);
  uhmm::stream stream(uhmm::devices().front());
  stream.launch(1000, [data = numbers.data()](const uhmm_kernel_item& item) {
    for (std::uint32_t i = 0; i < 1000; ++i) data[item.index[0] * 1000 + i] *= 14.0;
  });
  stream.synchronize();
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), 42.0), 1'000'000);
}

TEST_F(CppInterface, FailuresAreExceptionsWithDetail) {
  std::vector<int> numbers(100);
  try {
    uhmm::migrate(numbers, device_);
    FAIL() << "not registered, but migrated";
  } catch (const uhmm::error& error) {
    EXPECT_EQ(error.status(), UHMM_ERR_NOT_REGISTERED);
    const std::string what = error.what();
    EXPECT_NE(what.find("uhmm_migrate: UHMM_ERR_NOT_REGISTERED: "), std::string::npos) << what;
    EXPECT_NE(what.find(uhmm_error_detail()), std::string::npos) << what;
  }
  EXPECT_EQ(status_of([] { uhmm::runtime second(small_config()); }), UHMM_ERR_ALREADY);
  EXPECT_EQ(status_of([] { uhmm::stream nowhere(7); }), UHMM_ERR_NO_DEVICE);
  const std::vector<int> empty;
  EXPECT_EQ(status_of([&] { uhmm::prefetch(empty, 1); }), UHMM_ERR_INVALID);
}

TEST_F(CppInterface, RegistrationEndsOnceAndMoves) {
  std::vector<int> numbers(5000, 1);
  const auto registered = [] { return uhmm::stats().ranges; };
  const std::uint64_t before = registered();
  {
    uhmm::registration first(numbers);
    EXPECT_EQ(registered(), before + 1);
    uhmm::registration second = std::move(first);
    EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): that it is empty is what is tested
    EXPECT_TRUE(second);
    EXPECT_EQ(registered(), before + 1);
    uhmm::migrate(numbers, device_);
  }
  EXPECT_EQ(registered(), before);
  EXPECT_EQ(std::accumulate(numbers.begin(), numbers.end(), 0), 5000);
  uhmm::registration again(numbers);
  again.end();
  EXPECT_FALSE(again);
  again.end();
  EXPECT_EQ(registered(), before);
}

TEST_F(CppInterface, RegionsComeFromRangesAndPointers) {
  // On a page with nothing else on it: the heap's other blocks near the edges are the CPU's to touch at any time.
  constexpr std::size_t kInside = 2048;
  std::vector<std::uint64_t> numbers(4096);
  const uhmm::registration managed(numbers);
  const std::vector<std::uint64_t>& constant = numbers;
  EXPECT_GE(uhmm::migrate(constant, device_).pages_requested, 8u);
  EXPECT_LE(uhmm::migrate(std::span(numbers).first(1), uhmm::cpu).pages_requested, 1u);
  EXPECT_EQ(uhmm::migrate({numbers.data(), 1}, device_).pages_requested, 1u);
  uhmm::advise(constant, uhmm::advice::preferred_location, device_);
  uhmm::advise(constant, uhmm::advice::none);
  std::array<std::uint64_t, 2> seen{};
  numbers[0] = 7;
  numbers[1] = 8;
  EXPECT_LE(uhmm::device_read(device_, numbers.data(), seen), 1u);
  EXPECT_EQ(seen, (std::array<std::uint64_t, 2>{7, 8}));
  uhmm::device_write(device_, &numbers[kInside], std::array<std::uint64_t, 1>{9});
  EXPECT_EQ(uhmm::snapshot({&numbers[kInside], 8}).front().state, UHMM_PAGE_DEVICE);
  EXPECT_EQ(numbers[kInside], 9u);
  EXPECT_EQ(uhmm::snapshot({&numbers[kInside], 8}).front().state, UHMM_PAGE_SYSTEM);
  EXPECT_EQ(uhmm::make_exclusive({&numbers[kInside], 8}, device_), 1u);
  EXPECT_EQ(numbers[kInside], 9u);
}

TEST_F(CppInterface, FencesOrderStreams) {
  uhmm::vector<int> numbers(1024, 1);
  uhmm::stream first(device_);
  uhmm::stream second(device_);
  int* data = numbers.data();
  first.launch(1024, [data](const uhmm_kernel_item& item) { data[item.index[0]] += 1; });
  const uhmm::fence done = first.record();
  second.wait(done);
  second.launch(1024, [data](const uhmm_kernel_item& item) { data[item.index[0]] *= 10; });
  second.migrate(numbers, uhmm::cpu);
  const uhmm::fence all = second.record();
  EXPECT_TRUE(all.wait_for(std::chrono::minutes(1)));
  EXPECT_TRUE(done.done());
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), 20), 1024);
}

TEST_F(CppInterface, AcquisitionHoldsAndReleases) {
  std::vector<int> numbers(100'000, 4);
  const uhmm::registration managed(numbers);
  {
    uhmm::acquisition held(numbers, device_, uhmm::access::read);
    uhmm::acquisition moved = std::move(held);
    const auto pages = uhmm::snapshot(numbers);
    // The first and the last page are the heap's too, which this thread writes to.
    EXPECT_TRUE(
        std::all_of(pages.begin() + 1, pages.end() - 1, [](const auto& page) { return (page.devices & 1) != 0; }));
  }
  uhmm::acquisition again(numbers, device_, uhmm::access::read_write);
  again.release();
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), 4), 100'000);
}

TEST_F(CppInterface, PoolHandlersAreCalled) {
  struct Counting final : uhmm::pool_handler {
    uhmm_fault_action page_fault(const uhmm_fault_info&) noexcept override {
      faults.fetch_add(1);
      return UHMM_FAULT_MIGRATE;
    }
    void page_free(std::uint64_t, uhmm_cause) noexcept override { freed.fetch_add(1); }
    std::atomic<int> faults{0};
    std::atomic<int> freed{0};
  } counting;
  std::vector<int> numbers(100'000, 6);
  const uhmm::registration managed(numbers);
  uhmm::pool pool(device_, std::uint64_t{4} << 20, counting);
  pool.place(numbers.data());
  uhmm::migrate(numbers, device_);
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), 6), 100'000);
  pool.end();
  EXPECT_GE(counting.faults.load(), 1);
  EXPECT_GE(counting.freed.load(), 1);
}

TEST_F(CppInterface, SubscriptionsMoveAndEnd) {
  std::atomic<int> calls{0};
  std::vector<int> numbers(10'000);
  const uhmm::registration managed(numbers);
  {
    uhmm::subscription first(uhmm::subscription::mask(UHMM_EVENT_TO_DEVICE, UHMM_EVENT_POPULATE),
                             [&calls](const uhmm_event&) { calls.fetch_add(1); });
    const uhmm::subscription second = std::move(first);
    numbers[0] = 1;
    uhmm::migrate(numbers, device_);
    while (calls.load() == 0) std::this_thread::yield();
  }
  const int seen = calls.load();
  numbers[0] = 2;
  uhmm::migrate(numbers, device_);
  EXPECT_EQ(calls.load(), seen);
}

TEST_F(CppInterface, ContainersLiveInManagedMemory) {
  uhmm::vector<double> numbers(1000, 1.5);
  EXPECT_EQ(uhmm::migrate(numbers, device_).pages_skipped, 0u);
  EXPECT_EQ(std::accumulate(numbers.begin(), numbers.end(), 0.0), 1500.0);
  std::list<std::string, uhmm::allocator<std::string>> words{"a", "b"};
  words.emplace_back("c");
  EXPECT_EQ(words.size(), 3u);
  std::pmr::vector<int> pmr(uhmm::managed_resource());
  for (int i = 0; i < 10'000; ++i) pmr.push_back(i);
  EXPECT_EQ(uhmm::migrate(pmr, device_).pages_skipped, 0u);
  EXPECT_EQ(pmr.back(), 9'999);
  EXPECT_TRUE(uhmm::memory_resource().is_equal(*uhmm::managed_resource()));
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  const uhmm::vector<Page> pages(3);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pages.data()) % 4096, 0u);
  EXPECT_THROW((void)uhmm::allocator<Page>().allocate(SIZE_MAX / 4096), std::bad_alloc);
}

TEST_F(CppInterface, DevicesComeAndGo) {
  uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  desc.memory_bytes = 16 << 20;
  const uhmm::processor added = uhmm::add_device(desc);
  EXPECT_EQ(uhmm::devices().size(), 2u);
  EXPECT_EQ(uhmm::device_info(added).memory_bytes, std::uint64_t{16} << 20);
  uhmm::restart_device(added);
  uhmm::remove_device(added);
  EXPECT_EQ(uhmm::devices().size(), 1u);
  EXPECT_EQ(uhmm::runtime::config().device_memory, std::uint64_t{64} << 20);
}

}  // namespace
