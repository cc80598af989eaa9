// SPDX-License-Identifier: Apache-2.0
#include "runtime/policy/coldness.hpp"

#include <gtest/gtest.h>

namespace uhmm::policy {
namespace {

TEST(Warmth, WhatNeverCameBackGoesAtOnce) {
  Warmth piece;
  EXPECT_TRUE(piece.cold());
  EXPECT_TRUE(piece.passed());
  EXPECT_TRUE(piece.passed());
}

TEST(Warmth, WhatCameBackStaysForSomeRounds) {
  Warmth piece;
  piece.came_back();
  EXPECT_FALSE(piece.cold());
  int rounds = 0;
  while (!piece.passed()) ++rounds;
  EXPECT_EQ(rounds, 2);
}

TEST(Warmth, ThereIsAHottest) {
  Warmth piece;
  for (int i = 0; i < 100; ++i) piece.came_back();
  int rounds = 0;
  while (!piece.passed()) ++rounds;
  EXPECT_EQ(rounds, Warmth::kHottest);
}

TEST(Surplus, NothingGoesBelowTheLimitAndRoomIsMadeAboveIt) {
  constexpr std::uint64_t kLimit = 64 << 20;
  EXPECT_EQ(surplus(0, kLimit), 0u);
  EXPECT_EQ(surplus(kLimit - kLimit / 32, kLimit), 0u);
  EXPECT_EQ(surplus(kLimit, kLimit), kLimit / 16);
  EXPECT_EQ(surplus(2 * kLimit, kLimit), kLimit + kLimit / 16);
}

TEST(LookAgain, SoonNearTheLimitAndNotTooLateFarFromIt) {
  constexpr std::uint64_t kLimit = 1 << 30;
  EXPECT_EQ(look_again(kLimit, kLimit), 1'000'000u);
  EXPECT_EQ(look_again(2 * kLimit, kLimit), 1'000'000u);
  EXPECT_EQ(look_again(0, kLimit), 20'000'000u);
  EXPECT_EQ(look_again(kLimit - (8 << 20), kLimit), (8u << 20) / 2);
}

}  // namespace
}  // namespace uhmm::policy
