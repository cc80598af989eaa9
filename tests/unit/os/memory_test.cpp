// SPDX-License-Identifier: Apache-2.0
// The memory map as the kernel tells it, and ways around faults.
#include "runtime/os/memory.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "runtime/os/userfaultfd.hpp"

namespace uhmm::os {
namespace {

class MemoryTest : public testing::Test {
 protected:
  static constexpr std::size_t kPages = 6;
  static constexpr std::size_t kBytes = kPages * kPageBytes;
  void SetUp() override { ASSERT_TRUE(process_.open().ok()) << last_detail(); }
  void TearDown() override {
    process_.close();
    unmap(memory_, kBytes);
  }
  void map(int flags, int protection = PROT_READ | PROT_WRITE) {
    void* memory = mmap(nullptr, kBytes, protection, flags | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    memory_ = static_cast<std::byte*>(memory);
  }
  std::byte* page(std::size_t n) const { return memory_ + n * kPageBytes; }
  ByteRange pages(std::size_t first, std::size_t count) const {
    return {VirtAddr{page(first)}, VirtAddr{page(first + count)}};
  }
  Mapping mapping_at(const void* address) {
    auto found = process_.find_mapping(VirtAddr{address});
    EXPECT_TRUE(found.ok()) << last_detail();
    return found.ok() ? *found : Mapping{};
  }
  // Of the pages of memory_, those that have backing.
  std::string backed() {
    std::string text;
    for (std::size_t n = 0; n < kPages; ++n) {
      const VirtAddr at{page(n)};
      auto mask = process_.backed(at.block_floor(), {at.page_in_block(), 1});
      EXPECT_TRUE(mask.ok()) << last_detail();
      text += mask.ok() && mask->any() ? 'x' : '.';
    }
    return text;
  }

  ProcessMemory process_;
  std::byte* memory_ = nullptr;
};

TEST_F(MemoryTest, GuardPagesAreToldFromPoisonedOnes) {
  constexpr int kInstall = 102;  // MADV_GUARD_INSTALL
  map(MAP_PRIVATE);
  std::memset(memory_, 1, kBytes);
  if (madvise(page(2), 2 * kPageBytes, kInstall) != 0) GTEST_SKIP() << "no guard pages before Linux 6.13";
  // One by one: they may be of two blocks.
  std::string guards;
  std::string poisoned;
  for (std::size_t n = 0; n < 4; ++n) {
    const VirtAddr at{page(n)};
    const PageRun one{at.page_in_block(), 1};
    Result<PageMask> guard = process_.guarded(at.block_floor(), one);
    Result<PageMask> poison = process_.poisoned(at.block_floor(), one);
    ASSERT_TRUE(guard.ok() && poison.ok()) << last_detail();
    guards += guard->any() ? 'x' : '.';
    poisoned += poison->any() ? 'x' : '.';
  }
  if (guards == "....") GTEST_SKIP() << "this kernel does not tell of guard pages (6.15)";
  EXPECT_EQ(guards, "..xx");
  EXPECT_EQ(poisoned, "....");
}

TEST_F(MemoryTest, MappingsAreToldApart) {
  map(MAP_PRIVATE);
  ASSERT_EQ(mprotect(page(2), kPageBytes, PROT_READ | PROT_EXEC), 0);
  const Mapping first = mapping_at(page(1));
  EXPECT_EQ(first.kind, MappingKind::PrivateAnonymous);
  EXPECT_TRUE(first.readable && first.writable && !first.executable);
  EXPECT_EQ(first.range.end, VirtAddr{page(2)});
  EXPECT_EQ(first.page_bytes, kPageBytes);
  const Mapping second = mapping_at(page(2) + 5);
  EXPECT_EQ(second.range, pages(2, 1));
  EXPECT_TRUE(second.readable && !second.writable && second.executable);

  // A hole: what comes next is found, and does not contain the address.
  ASSERT_EQ(munmap(page(3), kPageBytes), 0);
  EXPECT_EQ(mapping_at(page(3)).range.begin, VirtAddr{page(4)});
  EXPECT_EQ(mapping_at(reinterpret_cast<void*>(&unmap)).kind, MappingKind::PrivateFile);
  // Nothing comes after user space, or what the kernel prints as the last of every map.
  const MappingKind beyond = process_.find_mapping(VirtAddr{kUserSpaceEnd})->kind;
  EXPECT_TRUE(beyond == MappingKind::None || beyond == MappingKind::Special);
}

TEST_F(MemoryTest, SharedMemoryHasASecondViewOfTheSameBytes) {
  map(MAP_SHARED);
  EXPECT_EQ(mapping_at(memory_).kind, MappingKind::Shared);
  std::byte* view = reserve_addresses(kBytes);
  ASSERT_NE(view, nullptr);
  ASSERT_EQ(map_alias(pages(0, kPages), view), 0);
  *page(4) = std::byte{9};
  EXPECT_EQ(view[4 * kPageBytes], std::byte{9});
  EXPECT_EQ(cached(view, {0, kPages}), PageMask::of({4, 1}));
  // Out of the page table, still in the page cache; then gone from both.
  EXPECT_EQ(drop_pages(pages(4, 1)), 0);
  EXPECT_EQ(backed(), "......");
  EXPECT_EQ(*page(4), std::byte{9});
  EXPECT_EQ(remove_shared({VirtAddr{view + 4 * kPageBytes}, VirtAddr{view + 5 * kPageBytes}}), 0);
  EXPECT_TRUE(cached(view, {0, kPages}).none());
  EXPECT_EQ(*page(4), std::byte{0});
  EXPECT_EQ(populate_write({VirtAddr{view}, VirtAddr{view + 2 * kPageBytes}}), 0);
  EXPECT_TRUE(cached(view, {0, 2}).contains(PageMask::of({0, 2})));
  unmap(view, kBytes);
}

TEST_F(MemoryTest, BackedPagesAreThoseThatWereTouched) {
  map(MAP_PRIVATE);
  *page(1) = std::byte{1};
  *page(4) = std::byte{1};
  EXPECT_EQ(backed(), ".x..x.");
  EXPECT_EQ(drop_pages(pages(1, 1)), 0);
  EXPECT_EQ(backed(), "....x.");
}

TEST_F(MemoryTest, ReadingEndsAtAnAbsentWatchedPageInsteadOfSleeping) {
  map(MAP_PRIVATE);
  auto uffd = Userfaultfd::open();
  if (!uffd.ok()) GTEST_SKIP() << last_detail();
  std::memset(memory_, 3, 2 * kPageBytes);
  ASSERT_EQ(uffd->register_range(pages(0, kPages), kMissing), 0);
  std::vector<std::byte> copy(kBytes);
  EXPECT_EQ(process_.read(VirtAddr{page(0) + 100}, copy.data(), 3 * kPageBytes), 2 * kPageBytes - 100);
  EXPECT_EQ(copy[2 * kPageBytes - 101], std::byte{3});
  EXPECT_EQ(copy[2 * kPageBytes - 100], std::byte{0});
}

TEST_F(MemoryTest, TouchingForWriteChangesNothingAndNeverSleeps) {
  map(MAP_PRIVATE);
  auto uffd = Userfaultfd::open();
  if (!uffd.ok()) GTEST_SKIP() << last_detail();
  std::memset(memory_, 0x5a, 2 * kPageBytes);
  ASSERT_EQ(uffd->register_range(pages(0, kPages), kMissing), 0);
  EXPECT_TRUE(touch_for_write(VirtAddr{page(0)}));
  EXPECT_EQ(*page(0), std::byte{0x5a});
  EXPECT_FALSE(touch_for_write(VirtAddr{page(3)})) << "absent";
  ASSERT_EQ(mprotect(page(1), kPageBytes, PROT_READ), 0);
  EXPECT_FALSE(touch_for_write(VirtAddr{page(1)})) << "read-only";
}

TEST_F(MemoryTest, AMappingTakesTheOthersPlaceWithItsContents) {
  map(MAP_PRIVATE);
  std::memset(memory_, 1, kBytes);
  std::byte* fresh = map_plain(2 * kPageBytes);
  ASSERT_NE(fresh, nullptr);
  std::memset(fresh, 2, 2 * kPageBytes);
  ASSERT_EQ(move_mapping(fresh, pages(2, 2)), 0);
  for (std::size_t n = 0; n < kPages; ++n)
    EXPECT_EQ(*page(n), std::byte{static_cast<unsigned char>(n / 2 == 1 ? 2 : 1)});
}

TEST_F(MemoryTest, ReplacedByABusErrorAndByZeros) {
  map(MAP_PRIVATE);
  std::memset(memory_, 1, kBytes);
  ASSERT_EQ(map_bus_error(pages(1, 1)), 0);
  EXPECT_EXIT(
      {
        signal(SIGBUS, [](int) { _exit(42); });
        *static_cast<volatile std::byte*>(page(1)) = std::byte{1};
        _exit(0);
      },
      testing::ExitedWithCode(42), "");
  ASSERT_EQ(map_zeros(pages(1, 1)), 0);
  EXPECT_EQ(*page(1), std::byte{0});
  EXPECT_EQ(*page(0), std::byte{1});
  EXPECT_EQ(*page(2), std::byte{1});
}

}  // namespace
}  // namespace uhmm::os
