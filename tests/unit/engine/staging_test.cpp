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

TEST_F(StagingTest, AcquiringCanFail) {
  inject::arm(inject::Point::StagingAcquire, 1);
  EXPECT_EQ(staging_.acquire_empty(PageMask::all()), nullptr);
  EXPECT_NE(staging_.acquire_empty(PageMask::all()), nullptr);
}

}  // namespace
}  // namespace uhmm::engine
