// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/va_space.hpp"

#include <gtest/gtest.h>

#include <mutex>
#include <vector>

#include "runtime/base/arena.hpp"

namespace uhmm::state {
namespace {

constexpr std::uint64_t kBase = std::uint64_t{1} << 32;

class VaSpaceTest : public testing::Test {
 protected:
  Range* add(std::uint64_t begin, std::uint64_t end) {
    Range* range = make_in_arena<Range>(ByteRange{VirtAddr{begin}, VirtAddr{end}}, Backing::Private);
    if (space_.insert(range).ok()) return range;
    destroy_in_arena(range);
    return nullptr;
  }
  void drop(Range* range) {
    space_.remove(range);
    destroy_in_arena(range);
  }
  static ByteRange page(std::uint64_t n) {
    return {VirtAddr{kBase + n * kPageBytes}, VirtAddr{kBase + (n + 1) * kPageBytes}};
  }
  VaSpace space_;
};

TEST_F(VaSpaceTest, RefusesWhatOverlapsAndNothingElse) {
  ASSERT_NE(add(kBase + 1000, kBase + 9000), nullptr);
  for (const auto& [begin, end] : {std::pair{1000, 9000}, {0, 1001}, {8999, 20000}, {2000, 3000}, {0, 20000}}) {
    EXPECT_EQ(space_.check_free({VirtAddr{kBase + begin}, VirtAddr{kBase + end}}).code(), UHMM_ERR_OVERLAP) << begin;
    EXPECT_EQ(add(kBase + begin, kBase + end), nullptr) << begin;
  }
  EXPECT_NE(add(kBase + 9000, kBase + 9001), nullptr);
  EXPECT_NE(add(kBase + 999, kBase + 1000), nullptr);
  EXPECT_EQ(space_.registered_bytes(), 8002u);
}

TEST_F(VaSpaceTest, TheLowestRangeAnswersForASharedPage) {
  Range* low = add(kBase, kBase + 100);
  Range* middle = add(kBase + 200, kBase + 300);
  Range* high = add(kBase + 300, kBase + 3 * kPageBytes);
  EXPECT_EQ(space_.find_page(page(0).begin), low);
  EXPECT_EQ(space_.find_page(page(1).begin), high);
  EXPECT_EQ(space_.find_byte(VirtAddr{kBase + 250}), middle);
  EXPECT_EQ(space_.find_byte(VirtAddr{kBase + 150}), nullptr);
  EXPECT_TRUE(low->had_neighbours && middle->had_neighbours && high->had_neighbours);
  EXPECT_TRUE(space_.pages_not_shared(*low).empty());
  EXPECT_TRUE(space_.pages_not_shared(*middle).empty());
  const ByteRange own{page(1).begin, page(2).end};
  EXPECT_EQ(space_.pages_not_shared(*high), own);
  EXPECT_TRUE(space_.touched_by_others(page(0), high->bytes));
  EXPECT_FALSE(space_.touched_by_others(page(2), high->bytes));
  drop(low);
  EXPECT_EQ(space_.find_page(page(0).begin), middle);
  drop(middle);
  EXPECT_EQ(space_.find_page(page(0).begin), high);
  EXPECT_FALSE(space_.touched_by_others(page(0), high->bytes));
}

TEST_F(VaSpaceTest, CoversOnlyWithoutHoles) {
  (void)add(kBase, kBase + 5000);
  (void)add(kBase + 5000, kBase + 9000);
  EXPECT_TRUE(space_.covers({VirtAddr{kBase + 1}, VirtAddr{kBase + 9000}}));
  EXPECT_FALSE(space_.covers({VirtAddr{kBase + 1}, VirtAddr{kBase + 9001}}));
  EXPECT_FALSE(space_.covers({VirtAddr{kBase - 1}, VirtAddr{kBase + 10}}));
}

TEST_F(VaSpaceTest, SegmentsCoverEachPageOnceAndMakeBlocksOnlyWhenAsked) {
  const Range* first = add(kBase + kBlockBytes - 2 * kPageBytes, kBase + kBlockBytes + kPageBytes + 7);
  const Range* second = add(kBase + kBlockBytes + kPageBytes + 7, kBase + kBlockBytes + 4 * kPageBytes);
  const ByteRange all{VirtAddr{kBase}, VirtAddr{kBase + 2 * kBlockBytes}};
  std::uint32_t count = 0;
  const auto visit = [&](const Segment&) {
    ++count;
    return Status{};
  };
  ASSERT_TRUE(space_.for_each_segment(all, false, visit).ok());
  EXPECT_EQ(count, 0u);
  std::vector<std::uint64_t> seen;
  ASSERT_TRUE(space_
                  .for_each_segment(all, true,
                                    [&](const Segment& segment) {
                                      const bool belongs = segment.range == first || segment.range == second;
                                      EXPECT_TRUE(belongs);
                                      const ByteRange run = segment.block->range_of(segment.run);
                                      for (VirtAddr at = run.begin; at < run.end; at = at + kPageBytes)
                                        seen.push_back((at.value - kBase) / kPageBytes);
                                      return Status{};
                                    })
                  .ok());
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{510, 511, 512, 513, 514, 515}));
  const Status stopped = space_.for_each_segment(all, false, [](const Segment&) { return Status{UHMM_ERR_BUSY}; });
  EXPECT_EQ(stopped.code(), UHMM_ERR_BUSY);
}

TEST_F(VaSpaceTest, ABlockLivesAsLongAsARangeTouchesIt) {
  Range* low = add(kBase, kBase + 100);
  Block* block = space_.block(VirtAddr{kBase});
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block->references, 1u);
  Range* high = add(kBase + 10 * kPageBytes, kBase + 11 * kPageBytes);
  EXPECT_EQ(block->references, 2u);
  drop(low);
  EXPECT_EQ(space_.find_block(VirtAddr{kBase}), block);
  drop(high);
  EXPECT_EQ(space_.find_block(VirtAddr{kBase}), nullptr);
}

}  // namespace
}  // namespace uhmm::state
