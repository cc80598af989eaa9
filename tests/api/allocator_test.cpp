// SPDX-License-Identifier: Apache-2.0
// The uhmm_malloc family, and uhmm.hpp.
#include <cerrno>
#include <numeric>
#include <thread>

#include "tests/support/runtime.hpp"
#include "uhmm/uhmm.hpp"

namespace uhmm::test {
namespace {

class Allocator : public RuntimeTest {};

TEST_F(Allocator, BlocksOfAnySizeAreManaged) {
  for (const std::size_t size : {0ul, 1ul, 16ul, 100ul, 4096ul, 5000ul, 131072ul, 131073ul, 3000000ul}) {
    SCOPED_TRACE(size);
    auto* block = static_cast<std::byte*>(uhmm_malloc(size));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % 16, 0u);
    EXPECT_GE(uhmm_usable_size(block), std::max<std::size_t>(size, 1));
    fill(block, size, 1);
    if (size != 0) {
      EXPECT_EQ(device_count_wrong(block, size, 1), 0u);
      device_fill(block, size, 2);
    }
    EXPECT_EQ(first_wrong(block, size, 2), size);
    uhmm_free(block);
  }
  uhmm_free(nullptr);
}

TEST_F(Allocator, CallocIsZeroEvenWhenMemoryIsUsedAgain) {
  for (const std::size_t size : {50ul, 2000ul, 200000ul}) {
    for (int round = 0; round < 3; ++round) {
      auto* block = static_cast<std::byte*>(uhmm_calloc(size, 3));
      ASSERT_NE(block, nullptr);
      for (std::size_t i = 0; i < 3 * size; ++i) ASSERT_EQ(block[i], std::byte{0}) << i;
      device_fill(block, 3 * size, 1);
      uhmm_free(block);
    }
  }
  errno = 0;
  EXPECT_EQ(uhmm_calloc(SIZE_MAX / 2, 4), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

TEST_F(Allocator, Alignment) {
  for (std::size_t alignment = 1; alignment <= (std::size_t{4} << 20); alignment *= 4) {
    std::vector<void*> blocks;
    for (const std::size_t size : {0ul, 1ul, 100ul, 5000ul, 300000ul}) {
      void* block = uhmm_aligned_alloc(alignment, size);
      ASSERT_NE(block, nullptr) << alignment;
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % alignment, 0u) << alignment << " " << size;
      EXPECT_GE(uhmm_usable_size(block), size);
      std::memset(block, 7, size);
      blocks.push_back(block);
    }
    for (void* block : blocks) uhmm_free(block);
  }
  errno = 0;
  EXPECT_EQ(uhmm_aligned_alloc(48, 10), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(Allocator, ReallocKeepsContents) {
  auto* block = static_cast<std::byte*>(uhmm_realloc(nullptr, 10));
  ASSERT_NE(block, nullptr);
  fill(block, 10, 1);
  std::size_t filled = 10;
  for (const std::size_t size : {100ul, 5000ul, 400000ul, 5000000ul, 6000ul, 20ul}) {
    UHMM_ASSERT_OK(uhmm_migrate(block, filled, 1, nullptr));
    block = static_cast<std::byte*>(uhmm_realloc(block, size));
    ASSERT_NE(block, nullptr);
    EXPECT_GE(uhmm_usable_size(block), size);
    ASSERT_EQ(first_wrong(block, std::min(filled, size), 1), std::min(filled, size)) << size;
    fill(block, size, 1);
    filled = size;
  }
  EXPECT_EQ(uhmm_realloc(block, SIZE_MAX / 4), nullptr);
  EXPECT_EQ(first_wrong(block, filled, 1), filled) << "the old block stays";
  EXPECT_EQ(uhmm_realloc(block, 0), nullptr);
  EXPECT_EQ(uhmm_usable_size(block), 0u) << "and this freed it";
}

TEST_F(Allocator, FreeingLargeDeviceMemoryBringsNothingBack) {
  auto* block = static_cast<std::byte*>(uhmm_malloc(4 << 20));
  device_fill(block, 4 << 20, 1);
  const auto before = stats();
  uhmm_free(block);
  EXPECT_EQ(stats().bytes_to_system, before.bytes_to_system);
  EXPECT_EQ(device_info().memory_free, device_info().memory_bytes);
  EXPECT_EQ(stats().registered_bytes, before.registered_bytes - (4 << 20));
}

TEST_F(Allocator, ForeignPointersAreIgnored) {
  Memory memory(kPage);
  int local = 5;
  auto* block = static_cast<std::byte*>(uhmm_malloc(100));
  for (void* foreign : {static_cast<void*>(memory.data()), static_cast<void*>(&local), static_cast<void*>(block + 16),
                        static_cast<void*>(block + 1)}) {
    uhmm_free(foreign);
    EXPECT_NE(std::string(uhmm_error_detail()).find("uhmm_malloc"), std::string::npos);
    EXPECT_EQ(uhmm_usable_size(foreign), 0u);
  }
  uhmm_free(block);
  uhmm_free(block);  // a second time: detected while nobody has it again
  EXPECT_EQ(uhmm_usable_size(block), 0u);
}

TEST_F(Allocator, ManyThreads) {
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < 4; ++id)
    threads.emplace_back([id] {
      std::vector<std::pair<std::byte*, std::size_t>> blocks;
      for (std::size_t i = 0; i < 400; ++i) {
        const std::size_t size = i * i % 7000 + 1;
        auto* block = static_cast<std::byte*>(uhmm_malloc(size));
        ASSERT_NE(block, nullptr);
        fill(block, size, id + i);
        blocks.emplace_back(block, size);
        if (i % 50 == 25) {
          UHMM_EXPECT_OK(uhmm_migrate(block, size, 1, nullptr));
        }
      }
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        EXPECT_EQ(first_wrong(blocks[i].first, blocks[i].second, id + i), blocks[i].second);
        uhmm_free(blocks[i].first);
      }
    });
  for (auto& thread : threads) thread.join();
}

TEST_F(Allocator, BlocksOutliveTheRuntimeAndTheNextOneBeginsAnew) {
  auto* small = static_cast<std::byte*>(uhmm_malloc(100));
  auto* large = static_cast<std::byte*>(uhmm_malloc(500'000));
  device_fill(small, 100, 1);
  device_fill(large, 500'000, 2);
  stop();
  EXPECT_EQ(first_wrong(small, 100, 1), 100u);
  EXPECT_EQ(first_wrong(large, 500'000, 2), 500'000u);
  fill(small, 100, 3);
  start(test_config());
  uhmm_free(small);  // can no longer be freed
  EXPECT_EQ(first_wrong(small, 100, 3), 100u);
  auto* fresh = static_cast<std::byte*>(uhmm_malloc(100));
  device_fill(fresh, 100, 4);
  EXPECT_EQ(first_wrong(fresh, 100, 4), 100u);
  uhmm_free(fresh);
}

// ------------------------------------------------------------------------------------------------------------ uhmm.hpp

struct ScaleArgs {
  int* data;
  std::size_t count;
  int factor;
};
void scale(const uhmm_kernel_item& item, const ScaleArgs& args) {
  for (std::size_t i = item.index[0]; i < args.count; i += item.grid[0]) args.data[i] *= args.factor;
}

TEST(Cpp, VectorsOfManagedMemoryAreUsedByKernels) {
  uhmm::runtime runtime(test_config());
  uhmm::stream stream(1);
  std::vector<int, uhmm::allocator<int>> numbers(100'000);
  std::iota(numbers.begin(), numbers.end(), 0);
  stream.launch<scale>(8, ScaleArgs{numbers.data(), numbers.size(), 3});
  int* data = numbers.data();
  const std::size_t count = numbers.size();
  stream.launch(4, [data, count](const uhmm_kernel_item& item) {
    for (std::size_t i = item.index[0]; i < count; i += item.grid[0]) data[i] += 1;
  });
  uhmm::fence fence = stream.record();
  fence.wait();
  EXPECT_TRUE(fence.done());
  stream.synchronize();
  for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(numbers[i], static_cast<int>(i) * 3 + 1);
  for (int i = 0; i < 100'000; ++i) numbers.push_back(i);  // moves device-resident memory
  EXPECT_EQ(numbers[50], 151);
  EXPECT_EQ(numbers.back(), 99'999);
}

TEST(Cpp, PolymorphicContainers) {
  uhmm::runtime runtime(test_config());
  std::pmr::vector<std::pmr::string> words(uhmm::managed_resource());
  for (int i = 0; i < 1000; ++i) words.emplace_back("a word that is too long for the string itself " + std::to_string(i));
  uhmm::migrate(uhmm::const_region(words.data(), words.size() * sizeof(words[0])), 1);
  EXPECT_EQ(words[999], "a word that is too long for the string itself 999");
  EXPECT_TRUE(uhmm::managed_resource()->is_equal(uhmm::memory_resource()));
  EXPECT_THROW((void)uhmm::managed_resource()->allocate(SIZE_MAX / 2), std::bad_alloc);
}

TEST(Cpp, ObjectsEndWhatTheyBegan) {
  std::vector<std::byte> data(10 * kPage);
  fill(data.data(), data.size(), 1);
  {
    uhmm::runtime runtime(test_config());
    EXPECT_EQ(uhmm::devices(), std::vector<uhmm::processor>{1});
    {
      uhmm::registration first{uhmm::region(data)};
      uhmm::registration second = std::move(first);
      EXPECT_FALSE(first);
      EXPECT_TRUE(second);
      EXPECT_THROW(uhmm::registration{uhmm::region(data)}, uhmm::error);
      EXPECT_GE(uhmm::migrate(data, 1).pages_moved, 9u);
      {
        uhmm::acquisition held(data, 1, uhmm::access::read_write);
        try {
          second.end();
          FAIL() << "it is acquired";
        } catch (const uhmm::error& error) {
          EXPECT_EQ(error.status(), UHMM_ERR_BUSY);
          EXPECT_NE(std::string(error.what()).find("uhmm_unregister: UHMM_ERR_BUSY"), std::string::npos);
        }
      }
      EXPECT_EQ(uhmm::stats().ranges, 1u);
      second.end();
      EXPECT_FALSE(second);
    }
    EXPECT_EQ(uhmm::stats().ranges, 0u);
    EXPECT_EQ(first_wrong(data.data(), data.size(), 1), data.size());
    const uhmm::processor added = uhmm::add_device();
    uhmm::stream stream(added);
    uhmm::stream moved = std::move(stream);
    moved.synchronize();
    uhmm::remove_device(added);
    EXPECT_THROW(moved.synchronize(), uhmm::error);
  }
  std::uint32_t count = 0;
  EXPECT_EQ(uhmm_device_count(&count), UHMM_ERR_NOT_INITIALIZED);
}

TEST(Cpp, SubscriptionsAndPools) {
  uhmm::runtime runtime(test_config());
  std::atomic<std::uint32_t> pages{0};
  struct Handler : uhmm::pool_handler {
    std::atomic<int> freed{0};
    void page_free(std::uint64_t, uhmm_cause) noexcept override { ++freed; }
  } handler;
  {
    uhmm::subscription subscription(uhmm::subscription::mask(UHMM_EVENT_TO_DEVICE),
                                    [&](const uhmm_event& event) { pages += event.pages; });
    uhmm::vector<std::byte> data(40 * kPage);
    uhmm::pool pool(1, kBlock, handler);
    pool.place(data.data());
    fill(data.data(), data.size(), 1);
    uhmm::migrate(data, 1);
    while (pages < 40) std::this_thread::yield();
    pool.end();
    EXPECT_GE(handler.freed, 40);
    EXPECT_EQ(first_wrong(data.data(), data.size(), 1), data.size());
  }
}

}  // namespace
}  // namespace uhmm::test
