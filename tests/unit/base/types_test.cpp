// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/types.hpp"

#include <gtest/gtest.h>

namespace uhmm {
namespace {

TEST(VirtAddr, rounding) {
  const VirtAddr address{0x7f00'0030'1234};
  EXPECT_EQ(address.page_floor(), VirtAddr{0x7f00'0030'1000});
  EXPECT_EQ(address.page_ceil(), VirtAddr{0x7f00'0030'2000});
  EXPECT_EQ(address.page_floor().page_ceil(), address.page_floor());
  EXPECT_EQ(address.block_floor(), VirtAddr{0x7f00'0020'0000});
  EXPECT_EQ(address.page_in_block(), 0x101u);
  EXPECT_EQ(VirtAddr{0x7f00'003f'ffff}.page_in_block(), kPagesPerBlock - 1);
}

TEST(VirtAddr, arithmetic_and_pointers) {
  int object = 0;
  const VirtAddr address{&object};
  EXPECT_EQ(address.pointer(), &object);
  EXPECT_EQ((address + 8) - address, 8u);
  EXPECT_EQ((address + 8) - 8, address);
  EXPECT_LT(address, address + 1);
}

TEST(ByteRange, sets) {
  const ByteRange range{VirtAddr{0x1100}, VirtAddr{0x2001}};
  EXPECT_EQ(range.bytes(), 0xf01u);
  EXPECT_EQ(range.to_pages(), (ByteRange{VirtAddr{0x1000}, VirtAddr{0x3000}}));
  EXPECT_EQ(range.to_pages().pages(), 2u);
  EXPECT_TRUE(range.contains(VirtAddr{0x1100}));
  EXPECT_FALSE(range.contains(VirtAddr{0x2001}));
  EXPECT_TRUE(range.overlaps({VirtAddr{0x2000}, VirtAddr{0x3000}}));
  EXPECT_FALSE(range.overlaps({VirtAddr{0x2001}, VirtAddr{0x3000}})) << "neighbours don't overlap";
}

TEST(ByteRange, intersections) {
  const ByteRange range{VirtAddr{0x1000}, VirtAddr{0x5000}};
  EXPECT_EQ(range.intersect({VirtAddr{0x2000}, VirtAddr{0x9000}}), (ByteRange{VirtAddr{0x2000}, VirtAddr{0x5000}}));
  EXPECT_EQ(range.intersect(range), range);
  EXPECT_TRUE(range.intersect({VirtAddr{0x5000}, VirtAddr{0x9000}}).empty());
  EXPECT_TRUE(range.intersect({VirtAddr{0x8000}, VirtAddr{0x9000}}).empty());
  EXPECT_TRUE(range.intersect({VirtAddr{std::uint64_t{0}}, VirtAddr{0x800}}).empty());
  EXPECT_EQ(range.intersect({VirtAddr{0x8000}, VirtAddr{0x9000}}).bytes(), 0u) << "empty, not negative";
}

TEST(DeviceIndex, processor_is_one_more) { EXPECT_EQ(DeviceIndex{3}.processor(), 4u); }

}  // namespace
}  // namespace uhmm
