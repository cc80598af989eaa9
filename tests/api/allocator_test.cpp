// SPDX-License-Identifier: Apache-2.0
// The uhmm_malloc family.
#include <cerrno>
#include <thread>

#include "tests/support/runtime.hpp"

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

}  // namespace
}  // namespace uhmm::test
