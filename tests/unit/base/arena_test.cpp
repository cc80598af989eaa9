// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/arena.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/inject.hpp"
#include "tests/support/seed.hpp"

namespace uhmm {
namespace {

// Allocated by a constructor that runs before main.
struct Early {
  void* memory = Arena::instance().allocate(100);
  ~Early() { Arena::instance().deallocate(memory, 100); }
} early;

TEST(Arena, works_before_main) { EXPECT_NE(early.memory, nullptr); }

TEST(Arena, sizes_and_alignments) {
  Arena& arena = Arena::instance();
  const std::size_t before = arena.bytes_in_use();
  for (std::size_t bytes : {0u, 1u, 16u, 17u, 24u, 100u, 4096u, 5000u, 32768u, 32769u, 300000u, 5000000u}) {
    for (std::size_t alignment : {1u, 8u, 16u, 64u, 4096u, 8192u, 65536u, 2097152u}) {
      void* memory = arena.allocate(bytes, alignment);
      ASSERT_NE(memory, nullptr) << bytes << " " << alignment;
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % alignment, 0u) << bytes << " " << alignment;
      std::memset(memory, 0xAB, bytes);
      EXPECT_EQ(arena.bytes_in_use(), before + bytes);
      arena.deallocate(memory, bytes, alignment);
    }
  }
  EXPECT_EQ(arena.bytes_in_use(), before);
  arena.deallocate(nullptr, 5);
  EXPECT_EQ(arena.bytes_in_use(), before);
}

TEST(Arena, memory_is_recycled) {
  Arena& arena = Arena::instance();
  void* first = arena.allocate(1000);
  arena.deallocate(first, 1000);
  EXPECT_EQ(arena.allocate(1000), first);
  arena.deallocate(first, 1000);
}

TEST(Arena, out_of_memory_is_nullptr) {
  Arena& arena = Arena::instance();
  const std::size_t before = arena.bytes_in_use();
  EXPECT_EQ(arena.allocate(SIZE_MAX), nullptr);
  EXPECT_EQ(arena.allocate(SIZE_MAX / 4), nullptr);
  EXPECT_EQ(arena.allocate(SIZE_MAX / 2, std::size_t{1} << 62), nullptr);
  EXPECT_EQ(arena.bytes_in_use(), before);
}

TEST(Arena, fails_on_request) {
  inject::arm(inject::Point::ArenaAlloc, 2);
  int* first = make_in_arena<int>(1);
  int* second = make_in_arena<int>(2);
  int* third = make_in_arena<int>(3);
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(second, nullptr);
  EXPECT_NE(third, nullptr);
  destroy_in_arena(first);
  destroy_in_arena(second);
  destroy_in_arena(third);
  inject::arm(inject::Point::ArenaAlloc, 1);
  EXPECT_THROW(static_cast<void>(Arena::instance().resource()->allocate(8)), std::bad_alloc);
  inject::disarm_all();
}

TEST(Arena, feeds_standard_containers) {
  const std::size_t before = Arena::instance().bytes_in_use();
  {
    std::pmr::map<int, std::pmr::string> map(Arena::instance().resource());
    for (int i = 0; i < 1000; ++i) map.emplace(i, std::string(static_cast<std::size_t>(i % 100), 'x'));
    EXPECT_GT(Arena::instance().bytes_in_use(), before + 1000 * sizeof(int));
  }
  EXPECT_EQ(Arena::instance().bytes_in_use(), before);
}

// Blocks never overlap: each is filled with its own pattern and still has it when it is given back.
void churn(std::uint64_t seed) {
  struct Block {
    unsigned char* memory;
    std::size_t bytes;
    std::size_t alignment;
    unsigned char pattern;
  };
  std::mt19937_64 random(seed);
  std::vector<Block> blocks;
  for (int step = 0; step < 5000; ++step) {
    if (blocks.size() < 200 && random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % (std::size_t{1} << (random() % 18));
      const std::size_t alignment = std::size_t{1} << (random() % 8);
      auto* memory = static_cast<unsigned char*>(Arena::instance().allocate(bytes, alignment));
      ASSERT_NE(memory, nullptr);
      const auto pattern = static_cast<unsigned char>(random());
      std::memset(memory, pattern, bytes);
      blocks.push_back({memory, bytes, alignment, pattern});
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block block = blocks.back();
      blocks.pop_back();
      for (std::size_t i = 0; i < block.bytes; ++i) ASSERT_EQ(block.memory[i], block.pattern);
      Arena::instance().deallocate(block.memory, block.bytes, block.alignment);
    }
  }
  for (const Block& block : blocks) Arena::instance().deallocate(block.memory, block.bytes, block.alignment);
}

TEST(Arena, many_threads) {
  const std::size_t before = Arena::instance().bytes_in_use();
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 4; ++i) threads.emplace_back(churn, test::seed() + i);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Arena::instance().bytes_in_use(), before);
}

}  // namespace
}  // namespace uhmm
