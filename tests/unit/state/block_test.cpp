// SPDX-License-Identifier: Apache-2.0
// A block's masks against the protocol's table: for every state of a page and every event that it allows, the masks end
// up saying what the table says, and pages beside it are as before.
#include "runtime/state/block.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace uhmm::state {
namespace {

constexpr std::uint32_t kDevices = 3;
constexpr std::uint32_t kPage = 70;  // in the mask's second word
constexpr VirtAddr kBase{std::uint64_t{7} << kBlockShift};

PageMask one(std::uint32_t page) { return PageMask::of({page, 1}); }

// Puts a page into a state, mask by mask.
void put(Block& block, std::uint32_t page, PageState state) {
  for (std::uint32_t d = 0; d < kDevices; ++d)
    if (state.held_by(DeviceIndex{d})) block.device(DeviceIndex{d})->resident |= one(page);
  if (state.kind == PageKind::Shared) block.system |= one(page);
  if (state.kind == PageKind::Exclusive) block.exclusive |= one(page);
  if (state.kind == PageKind::Lost) block.lost |= one(page);
}

PageState get(const Block& block, std::uint32_t page) {
  PageState state{block.kind_of(page), 0};
  for (std::uint32_t d = 0; d < kDevices; ++d)
    if (block.devices[d] != nullptr && block.devices[d]->resident.test(page))
      state.holders |= static_cast<std::uint8_t>(1u << d);
  return state;
}

// All of them; a block doesn't tell none from system.
std::vector<PageState> states() {
  std::vector<PageState> all;
  for (unsigned kind = 0; kind <= static_cast<unsigned>(PageKind::Lost); ++kind)
    for (std::uint8_t holders = 0; holders < 1u << kDevices; ++holders)
      if (const PageState state{static_cast<PageKind>(kind), holders}; state.well_formed()) all.push_back(state);
  return all;
}
PageState as_block_says(PageState state) {
  return state.kind == PageKind::None ? PageState{PageKind::System, 0} : state;
}

TEST(Block, EveryEventDoesWhatTheTableSays) {
  int tried = 0;
  for (const PageState before : states()) {
    for (unsigned number = 0; number < kPageEvents; ++number) {
      const auto event = static_cast<PageEvent>(number);
      for (std::uint32_t d = 0; d < kDevices; ++d) {
        const std::optional<PageState> after = next(before, event, DeviceIndex{d});
        if (!after) continue;
        Block block(kBase);
        for (std::uint32_t i = 0; i < kDevices; ++i) ASSERT_NE(block.device(DeviceIndex{i}), nullptr);
        put(block, kPage, before);
        const PageState neighbour{PageKind::Shared, 0b101};
        put(block, kPage + 1, neighbour);
        ASSERT_EQ(get(block, kPage), as_block_says(before));
        block.commit(event, one(kPage), DeviceIndex{d});
        // Unregistering ends the masks, not the data.
        const PageState expected = event == PageEvent::Unregister && before.kind == PageKind::Lost ? before : *after;
        EXPECT_EQ(get(block, kPage), as_block_says(expected))
            << page_event_text(event) << ", from kind " << static_cast<int>(before.kind) << " on "
            << static_cast<int>(before.holders) << ", device " << d;
        EXPECT_EQ(get(block, kPage + 1), neighbour) << page_event_text(event);
        ++tried;
      }
    }
  }
  EXPECT_GT(tried, 100);
}

TEST(Block, SetsOfPagesFollowFromTheMasks) {
  Block block(kBase);
  put(block, 1, {PageKind::Device, 0b10});
  put(block, 2, {PageKind::Shared, 0b01});
  put(block, 3, {PageKind::Exclusive, 0b10});
  put(block, 4, {PageKind::Lost, 0});
  EXPECT_EQ(block.on_devices(), PageMask::of({1, 3}));
  EXPECT_EQ(block.away(), one(1) | one(3));
  EXPECT_EQ(block.shared(), one(2));
  EXPECT_EQ(block.holder(1), 1u);
  EXPECT_EQ(block.holder(5), kMaxDevices);
  EXPECT_EQ(block.kind_of(4), PageKind::Lost);
  EXPECT_EQ(block.kind_of(5), PageKind::System);
  EXPECT_EQ(block.range_of({2, 3}), (ByteRange{kBase + 2 * kPageBytes, kBase + 5 * kPageBytes}));
}

#ifdef UHMM_CHECKS
TEST(BlockDeathTest, AnEventThatTheTableForbidsStops) {
  Block block(kBase);
  ASSERT_NE(block.device(DeviceIndex{0}), nullptr);
  put(block, 0, {PageKind::Lost, 0});
  EXPECT_DEATH(block.commit(PageEvent::MigrateToDevice, one(0), DeviceIndex{0}), "moved to d");
}
#endif

}  // namespace
}  // namespace uhmm::state
