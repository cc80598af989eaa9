// SPDX-License-Identifier: Apache-2.0
// Recycled pages: which slot is taken, what is kept, what is freed.
#include "runtime/engine/staging.hpp"

#include <gtest/gtest.h>

#include "runtime/base/inject.hpp"

namespace uhmm::engine {
namespace {

class StagingTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kLimit = 2 * kBlockBytes;
  static constexpr std::uint32_t kUsers = 2;
  void SetUp() override {
    auto opened = os::Userfaultfd::open();
    if (!opened.ok()) GTEST_SKIP() << last_detail();
    uffd_ = std::move(*opened);
    ASSERT_TRUE(staging_.open(uffd_, kLimit, kUsers).ok()) << last_detail();
  }
  void TearDown() override {
    inject::disarm_all();
    staging_.close();
  }
  // As a departure does: pages that were moved out are in the slot now.
  static void fill(Staging::Slot& slot, const PageMask& pages) { slot.filled |= pages; }

  os::Userfaultfd uffd_;
  Staging staging_;
};

TEST_F(StagingTest, WhatWasMovedOutIsThereToMoveIn) {
  const PageMask pages = PageMask::of({10, 20});
  EXPECT_EQ(staging_.acquire_filled(pages), nullptr) << "nothing is there yet";
  Staging::Slot* slot = staging_.acquire_empty(pages);
  ASSERT_NE(slot, nullptr);
  EXPECT_FALSE(slot->filled.intersects(pages));
  fill(*slot, pages);
  staging_.release(slot);
  EXPECT_EQ(staging_.bytes_held(), 20 * kPageBytes);
  EXPECT_EQ(staging_.acquire_filled(PageMask::of({100, 5})), nullptr) << "other pages";
  EXPECT_EQ(staging_.acquire_filled(PageMask::of({0, kPagesPerBlock})), slot);
  EXPECT_EQ(staging_.bytes_held(), 0u) << "in use";
  staging_.release(slot);
}

TEST_F(StagingTest, TheSlotWithMostOfThePagesIsChosen) {
  Staging::Slot* few = staging_.acquire_empty(PageMask::all());
  Staging::Slot* many = staging_.acquire_empty(PageMask::all());
  ASSERT_NE(few, nullptr);
  ASSERT_NE(many, nullptr);
  ASSERT_NE(few, many);
  fill(*few, PageMask::of({0, 3}));
  fill(*many, PageMask::of({0, 30}));
  staging_.release(few);
  staging_.release(many);
  EXPECT_EQ(staging_.acquire_filled(PageMask::of({0, 40})), many);
  EXPECT_EQ(staging_.acquire_filled(PageMask::of({0, 40})), few);
}

TEST_F(StagingTest, SlotsRunOutAndComeBack) {
  std::vector<Staging::Slot*> slots;
  while (Staging::Slot* slot = staging_.acquire_empty(PageMask::all())) slots.push_back(slot);
  EXPECT_EQ(slots.size(), kLimit / kBlockBytes + kUsers);
  staging_.release(slots.back());
  EXPECT_EQ(staging_.acquire_empty(PageMask::all()), slots.back());
}

TEST_F(StagingTest, NoMoreIsKeptThanTheLimit) {
  std::vector<Staging::Slot*> slots;
  while (Staging::Slot* slot = staging_.acquire_empty(PageMask::all())) slots.push_back(slot);
  for (Staging::Slot* slot : slots) {
    fill(*slot, PageMask::all());
    staging_.release(slot);
    EXPECT_LE(staging_.bytes_held(), kLimit);
  }
  EXPECT_EQ(staging_.bytes_held(), kLimit);
}

TEST_F(StagingTest, AFullSlotIsEmptiedForWhoNeedsRoom) {
  std::vector<Staging::Slot*> slots;
  while (Staging::Slot* slot = staging_.acquire_empty(PageMask::all())) slots.push_back(slot);
  fill(*slots[0], PageMask::all());
  staging_.release(slots[0]);
  Staging::Slot* again = staging_.acquire_empty(PageMask::of({7, 1}));
  ASSERT_EQ(again, slots[0]);
  EXPECT_FALSE(again->filled.test(7));
}

TEST_F(StagingTest, AHugePageIsKeptForHugePages) {
  os::ProcessMemory process;
  ASSERT_TRUE(process.open().ok());
  Staging::Slot* fresh = staging_.acquire_huge(process);
  if (fresh == nullptr) GTEST_SKIP() << "no huge page can be had here";
  EXPECT_TRUE(fresh->source);
  EXPECT_EQ(fresh->filled, PageMask::all());
  EXPECT_TRUE(process.is_huge(VirtAddr{fresh->memory}));
  // As an arrival and a departure do: from the fresh one to the program, from the program to a slot.
  std::byte* program = os::map_private(kBlockBytes);
  const VirtAddr place{program};
  ASSERT_EQ(uffd_.register_range({place, place + kBlockBytes}, os::kMissing), 0);
  ASSERT_EQ(uffd_.move(place, VirtAddr{fresh->memory}, kBlockBytes).done, kBlockBytes);
  EXPECT_TRUE(process.is_huge(place));
  fresh->filled.clear();
  staging_.release(fresh);
  // Single pages have been everywhere: a slot has to be made anew.
  std::vector<Staging::Slot*> slots;
  while (Staging::Slot* slot = staging_.acquire_empty(PageMask::all())) slots.push_back(slot);
  for (Staging::Slot* slot : slots) {
    ASSERT_EQ(uffd_.copy(VirtAddr{slot->memory}, program, kPageBytes).done, kPageBytes);
    fill(*slot, PageMask::of({0, 1}));
    staging_.release(slot);
  }
  Staging::Slot* slot = staging_.acquire_for_huge();
  ASSERT_NE(slot, nullptr);
  EXPECT_TRUE(slot->filled.none());
  ASSERT_EQ(uffd_.move(VirtAddr{slot->memory}, place, kBlockBytes).done, kBlockBytes);
  EXPECT_TRUE(process.is_huge(VirtAddr{slot->memory}));
  fill(*slot, PageMask::all());
  slot->huge = true;
  staging_.release(slot);
  EXPECT_NE(staging_.acquire_filled(PageMask::of({100, 5})), slot) << "not for single pages";
  EXPECT_EQ(staging_.acquire_huge(process), slot);
  // What is left of one that was parted serves single pages.
  slot->filled = PageMask::of({0, 40});
  staging_.release(slot);
  EXPECT_FALSE(slot->huge);
  EXPECT_EQ(staging_.acquire_filled(PageMask::of({30, 5})), slot);
  os::unmap(program, kBlockBytes);
  process.close();
}

TEST_F(StagingTest, AcquiringCanFail) {
  inject::arm(inject::Point::StagingAcquire, 1);
  EXPECT_EQ(staging_.acquire_empty(PageMask::all()), nullptr);
  EXPECT_NE(staging_.acquire_empty(PageMask::all()), nullptr);
}

}  // namespace
}  // namespace uhmm::engine
