// SPDX-License-Identifier: Apache-2.0
// The wrapper: what was done, how far it got, and why not further.
#include "runtime/os/userfaultfd.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "runtime/os/memory.hpp"

namespace uhmm::os {
namespace {

class UserfaultfdTest : public testing::Test {
 protected:
  static constexpr std::size_t kPages = 8;
  static constexpr std::size_t kBytes = kPages * kPageBytes;
  void SetUp() override {
    auto opened = Userfaultfd::open();
    if (!opened.ok()) GTEST_SKIP() << last_detail();
    uffd_ = std::move(*opened);
    memory_ = map_private(kBytes);
    source_ = map_private(kBytes);
    ASSERT_NE(memory_, nullptr);
    ASSERT_NE(source_, nullptr);
    std::memset(source_, 5, kBytes);
  }
  void TearDown() override {
    unmap(memory_, kBytes);
    unmap(source_, kBytes);
  }
  VirtAddr page(std::size_t n) const { return VirtAddr{memory_ + n * kPageBytes}; }
  ByteRange pages(std::size_t first, std::size_t count) const { return {page(first), page(first + count)}; }

  Userfaultfd uffd_;
  std::byte* memory_ = nullptr;
  std::byte* source_ = nullptr;
};

TEST_F(UserfaultfdTest, CopyStopsAtAPresentPageAndSaysSo) {
  ASSERT_EQ(uffd_.register_range(pages(0, kPages), kMissing), 0);
  EXPECT_EQ(uffd_.zero(page(2), kPageBytes).done, kPageBytes);
  const Progress progress = uffd_.copy(page(0), source_, 4 * kPageBytes);
  EXPECT_EQ(progress.done, 2 * kPageBytes);
  const Progress again = uffd_.copy(page(2), source_, kPageBytes);
  EXPECT_EQ(again.done, 0u);
  EXPECT_EQ(again.error, EEXIST);
  EXPECT_EQ(memory_[kPageBytes], std::byte{5});
  EXPECT_EQ(memory_[2 * kPageBytes], std::byte{0});
}

TEST_F(UserfaultfdTest, MoveTakesThePageAway) {
  if (!uffd_.features().move) GTEST_SKIP() << "no UFFDIO_MOVE here";
  ASSERT_EQ(uffd_.register_range(pages(0, kPages), kMissing), 0);
  ASSERT_EQ(uffd_.move(page(0), VirtAddr{source_}, 2 * kPageBytes).done, 2 * kPageBytes);
  EXPECT_EQ(memory_[2 * kPageBytes - 1], std::byte{5});
  EXPECT_EQ(source_[0], std::byte{0});
  const Progress hole = uffd_.move(page(4), VirtAddr{memory_ + 6 * kPageBytes}, kPageBytes);
  EXPECT_EQ(hole.done, 0u);
  EXPECT_EQ(hole.error, ENOENT);
}

// The kernel splits a huge page whose mapping is in two while two threads move its halves: calls fail that have moved
// pages.
TEST_F(UserfaultfdTest, AFailedMoveCountsWhatItMoved) {
  if (!uffd_.features().move) GTEST_SKIP() << "no UFFDIO_MOVE here";
  constexpr std::size_t kHalf = kBlockBytes / 2;
  for (int round = 0; round < 60; ++round) {
    std::byte* whole = map_private(3 * kBlockBytes);
    std::byte* target = map_private(kBlockBytes);
    (void)madvise(whole, kBlockBytes, MADV_HUGEPAGE);
    for (std::size_t i = 0; i < kBlockBytes; i += kPageBytes)
      whole[i] = static_cast<std::byte>(i / kPageBytes % 251 + 1);
    std::byte* source = whole + kBlockBytes + kHalf;
    ASSERT_EQ(mremap(whole, kBlockBytes, kBlockBytes, MREMAP_MAYMOVE | MREMAP_FIXED, source), source);
    const VirtAddr to{target};
    ASSERT_EQ(uffd_.register_range({to, to + kBlockBytes}, kMissing), 0);
    const auto move_half = [&](std::size_t begin) {
      for (std::size_t at = begin; at < begin + kHalf;) {
        const Progress moved = uffd_.move(to + at, VirtAddr{source + at}, begin + kHalf - at);
        at += moved.done;
        if (moved.done == 0) {
          EXPECT_EQ(moved.error, EBUSY) << at;
        }
        if (moved.error != 0 && moved.error != EBUSY) return;
      }
    };
    std::thread other(move_half, kHalf);
    move_half(0);
    other.join();
    for (std::size_t i = 0; i < kBlockBytes; i += kPageBytes)
      ASSERT_EQ(target[i], static_cast<std::byte>(i / kPageBytes % 251 + 1)) << "page " << i / kPageBytes;
    unmap(whole, 3 * kBlockBytes);
    unmap(target, kBlockBytes);
    if (HasFailure()) return;
  }
}

TEST_F(UserfaultfdTest, AFaultTellsWhereAndWhatAndACopyEndsIt) {
  ASSERT_EQ(uffd_.register_range(pages(0, kPages), kMissing), 0);
  std::thread toucher([&] { memory_[3 * kPageBytes + 17] = std::byte{9}; });
  pollfd entry{uffd_.fd(), POLLIN, 0};
  ASSERT_EQ(poll(&entry, 1, -1), 1);
  UffdFault fault;
  ASSERT_EQ(uffd_.read({&fault, 1}), 1u);
  EXPECT_EQ(fault.address.page_floor(), page(3));
  EXPECT_TRUE(fault.is_write);
  EXPECT_FALSE(fault.is_write_protect);
  EXPECT_EQ(uffd_.read({&fault, 1}), 0u);
  EXPECT_EQ(uffd_.copy(page(3), source_, kPageBytes).done, kPageBytes);
  toucher.join();
  EXPECT_EQ(memory_[3 * kPageBytes + 17], std::byte{9});
  EXPECT_EQ(memory_[3 * kPageBytes + 18], std::byte{5});
}

TEST_F(UserfaultfdTest, AProtectedPageFaultsOnWriteOnly) {
  if (!uffd_.features().write_protect) GTEST_SKIP() << "no write protection here";
  std::memset(memory_, 1, kBytes);
  ASSERT_EQ(uffd_.register_range(pages(0, kPages), kMissing | kWriteProtect), 0);
  ASSERT_EQ(uffd_.write_protect(pages(0, kPages), true), 0);
  EXPECT_EQ(memory_[0], std::byte{1});
  std::thread writer([&] { memory_[kPageBytes] = std::byte{2}; });
  pollfd entry{uffd_.fd(), POLLIN, 0};
  ASSERT_EQ(poll(&entry, 1, -1), 1);
  UffdFault fault;
  ASSERT_EQ(uffd_.read({&fault, 1}), 1u);
  EXPECT_TRUE(fault.is_write_protect);
  EXPECT_EQ(fault.address.page_floor(), page(1));
  EXPECT_EQ(uffd_.write_protect(pages(1, 1), false), 0);
  writer.join();
  EXPECT_EQ(memory_[kPageBytes], std::byte{2});
}

TEST_F(UserfaultfdTest, ReadingThroughProcEndsAtAnAbsentPage) {
  ProcessMemory process;
  ASSERT_TRUE(process.open().ok()) << last_detail();
  ASSERT_EQ(uffd_.register_range(pages(0, kPages), kMissing), 0);
  ASSERT_EQ(uffd_.copy(page(0), source_, 3 * kPageBytes).done, 3 * kPageBytes);
  std::byte buffer[kBytes];
  EXPECT_EQ(process.read(page(0), buffer, kBytes), 3 * kPageBytes);
  EXPECT_EQ(buffer[3 * kPageBytes - 1], std::byte{5});
  EXPECT_FALSE(touch_for_write(page(5)));
  EXPECT_TRUE(touch_for_write(page(1)));
  const VirtAddr block = page(0).block_floor();
  Result<PageMask> backed = process.backed(block, {page(0).page_in_block(), 1});
  ASSERT_TRUE(backed.ok());
  EXPECT_EQ(backed->count(), 1u);
  process.close();
}

}  // namespace
}  // namespace uhmm::os
