// SPDX-License-Identifier: Apache-2.0
// Programs that change the map of managed memory without a word, by raw system calls: no byte may turn into a zero.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class MovedMemory : public RuntimeTest {
 protected:
  void for_each_kind(const std::function<void(int sharing)>& body) {
    for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE}) {
      for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
        SCOPED_TRACE(std::string(sharing == MAP_PRIVATE ? "private" : "shared") + ", flags " + std::to_string(flags));
        start_with([&](uhmm_config& config) { config.flags |= flags; });
        body(sharing | MAP_ANONYMOUS);
      }
    }
  }
  static std::byte* map(std::size_t bytes, int flags) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    return static_cast<std::byte*>(memory);
  }
  // Registered, with pages away, duplicated and at home.
  std::byte* mixed(std::size_t pages, int flags) {
    std::byte* memory = map(pages * kPage, flags);
    UHMM_EXPECT_OK(uhmm_register(memory, pages * kPage));
    fill(memory, pages * kPage, 1);
    std::memset(memory, 0x77, pages / 2 * kPage);
    device_fill(memory, pages / 2 * kPage, 1);  // only the device knows
    std::byte byte{};
    UHMM_EXPECT_OK(uhmm_device_read(1, memory + pages * 3 / 4 * kPage, &byte, 1, nullptr));
    return memory;
  }
  static std::byte* move(std::byte* from, std::size_t bytes, std::size_t new_bytes, int flags,
                         std::byte* to = nullptr) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<std::byte*>(syscall(SYS_mremap, from, bytes, new_bytes, flags, to));
  }
};

constexpr std::size_t kCount = 700;  // more than a block

TEST_F(MovedMemory, ContentsFollow) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(kCount, flags);
    std::byte* place = map(kCount * kPage, flags);
    ASSERT_EQ(move(memory, kCount * kPage, kCount * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, place), place);
    EXPECT_EQ(first_wrong(place, kCount * kPage, 1), kCount * kPage);
    fill(place, kCount * kPage, 2);
    EXPECT_EQ(first_wrong(place, kCount * kPage, 2), kCount * kPage);
    while (stats().ranges != 0) usleep(100);
    // Registered anew it is as any other memory.
    UHMM_ASSERT_OK(uhmm_register(place, kCount * kPage));
    device_increment(place, kCount * kPage);
    EXPECT_EQ(place[0], static_cast<std::byte>(std::to_integer<int>(pattern(2, 0)) + 1));
    UHMM_ASSERT_OK(uhmm_unregister(place));
    munmap(place, kCount * kPage);
  });
}

TEST_F(MovedMemory, APartOfARange) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(kCount, flags);
    std::byte* moved =
        move(memory + 100 * kPage, 200 * kPage, 200 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, map(200 * kPage, flags));
    ASSERT_NE(moved, MAP_FAILED);
    for (std::size_t i = 0; i < 200 * kPage; ++i) ASSERT_EQ(moved[i], pattern(1, 100 * kPage + i)) << i;
    while (stats().ranges != 2) usleep(100);
    EXPECT_EQ(first_wrong(memory, 100 * kPage, 1), 100 * kPage);
    for (std::size_t i = 300 * kPage; i < kCount * kPage; ++i) ASSERT_EQ(memory[i], pattern(1, i)) << i;
    UHMM_EXPECT_OK(uhmm_unregister(memory));
    UHMM_EXPECT_OK(uhmm_unregister(memory + 300 * kPage));
    // What lay between them may be somebody else's by now.
    munmap(memory, 100 * kPage);
    munmap(memory + 300 * kPage, (kCount - 300) * kPage);
    munmap(moved, 200 * kPage);
  });
}

TEST_F(MovedMemory, GrownWhileItMoves) {
  std::byte* memory = mixed(kCount, MAP_PRIVATE | MAP_ANONYMOUS);
  std::byte* place = map(2 * kCount * kPage, MAP_PRIVATE | MAP_ANONYMOUS);
  ASSERT_EQ(move(memory, kCount * kPage, 2 * kCount * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, place), place);
  EXPECT_EQ(first_wrong(place, kCount * kPage, 1), kCount * kPage);
  for (std::size_t i = kCount * kPage; i < 2 * kCount * kPage; i += kPage) ASSERT_EQ(place[i], std::byte{0}) << i;
  munmap(place, 2 * kCount * kPage);
}

TEST_F(MovedMemory, GrownWhereItIs) {
  // Where the kernel puts nothing on its own.
  void* const place = reinterpret_cast<void*>(0x7e90'0000'0000);
  auto* const area = static_cast<std::byte*>(
      mmap(place, kCount * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  ASSERT_EQ(area, place);
  UHMM_ASSERT_OK(uhmm_register(area, kCount * kPage));
  fill(area, kCount * kPage, 1);
  UHMM_ASSERT_OK(uhmm_migrate(area, kCount * kPage, 1, nullptr));
  std::byte* grown = move(area, kCount * kPage, 2 * kCount * kPage, 0);
  ASSERT_EQ(grown, area);
  // The kernel watches what has been added, too.
  for (std::size_t i = kCount * kPage; i < 2 * kCount * kPage; i += kPage) ASSERT_EQ(area[i], std::byte{0}) << i;
  std::memset(area + kCount * kPage, 7, kCount * kPage);
  EXPECT_EQ(first_wrong(area, kCount * kPage, 1), kCount * kPage);
  UHMM_EXPECT_OK(uhmm_unregister(area));
  munmap(area, 2 * kCount * kPage);
}

TEST_F(MovedMemory, TheOldMappingStays) {
  std::byte* memory = mixed(kCount, MAP_PRIVATE | MAP_ANONYMOUS);
  std::byte* moved = move(memory, kCount * kPage, kCount * kPage, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */);
  if (moved == MAP_FAILED) GTEST_SKIP() << "no MREMAP_DONTUNMAP (5.7)";
  EXPECT_EQ(first_wrong(moved, kCount * kPage, 1), kCount * kPage);
  while (stats().ranges != 0) usleep(100);
  for (std::size_t i = 0; i < kCount * kPage; i += kPage) ASSERT_EQ(memory[i], std::byte{0}) << i;
  munmap(moved, kCount * kPage);
  munmap(memory, kCount * kPage);
}

TEST_F(MovedMemory, ASecondViewOfSharedMemory) {
  std::byte* memory = mixed(kCount, MAP_SHARED | MAP_ANONYMOUS);
  std::byte* view = move(memory, 0, kCount * kPage, MREMAP_MAYMOVE);
  ASSERT_NE(view, MAP_FAILED);
  // A second view sees what was home last; what matters here: it can be used, and the first is as it was.
  for (std::size_t i = 0; i < kCount * kPage; i += kPage) (void)*static_cast<volatile std::byte*>(view + i);
  EXPECT_EQ(first_wrong(memory, kCount * kPage, 1), kCount * kPage);
  UHMM_EXPECT_OK(uhmm_unregister(memory));
  EXPECT_EQ(first_wrong(view, kCount * kPage, 1), kCount * kPage);
  munmap(view, kCount * kPage);
  munmap(memory, kCount * kPage);
}

// realloc() moves large blocks inside the C library, where nobody can be in its place.
TEST_F(MovedMemory, TheCLibrarysOwnMoves) {
  const std::size_t bytes = 8 << 20;
  auto* memory = static_cast<std::byte*>(malloc(bytes));
  UHMM_ASSERT_OK(uhmm_register(memory, bytes));
  fill(memory, bytes, 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory, bytes, 1, nullptr));
  memory = static_cast<std::byte*>(realloc(memory, 32 * bytes));
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(first_wrong(memory, bytes, 1), bytes);
  std::memset(memory + bytes, 1, 31 * bytes);
  // The C library's own words about the block are on its first page, and others' memory may follow its last one.
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(memory) & ~(kPage - 1);
  const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(memory) + 32 * bytes;
  UHMM_EXPECT_OK(uhmm_unregister_pages(reinterpret_cast<void*>(first), end - first));
  free(memory);
}

// Others use memory of the runtime meanwhile, and wait for it.
TEST_F(MovedMemory, BesideFaultsAndMigrations) {
  for_each_kind([&](int flags) {
    Memory busy(256 * kPage);
    fill(busy.data(), busy.bytes(), 5);
    std::atomic<bool> end{false};
    std::thread mover([&] {
      while (!end) (void)uhmm_migrate(busy.data(), busy.bytes(), 1, nullptr);
    });
    std::thread toucher([&] {
      while (!end) EXPECT_EQ(first_wrong(busy.data(), busy.bytes(), 5), busy.bytes());
    });
    for (int round = 0; round < 20; ++round) {
      std::byte* memory = mixed(64, flags);
      std::byte* moved = move(memory, 64 * kPage, 64 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, map(64 * kPage, flags));
      EXPECT_EQ(first_wrong(moved, 64 * kPage, 1), 64 * kPage) << round;
      while (stats().ranges != 1) usleep(100);
      munmap(moved, 64 * kPage);
    }
    end = true;
    mover.join();
    toucher.join();
  });
}

}  // namespace
}  // namespace uhmm::test
