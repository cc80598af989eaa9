// SPDX-License-Identifier: Apache-2.0
#include "runtime/policy/fault_around.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace uhmm::policy {
namespace {

constexpr std::uint32_t kMost = 512;

TEST(FaultAround, WindowsDoubleAlongAWalkAndStreamAtTheLimit) {
  state::Locality locality;
  std::uint64_t page = 1000;
  std::uint32_t expected = 1;
  for (int i = 0; i < 12; ++i) {
    const FaultWindow window = fault_window(locality, page, 1, kMost);
    EXPECT_EQ(window.pages, expected) << i;
    EXPECT_EQ(window.streaming(), i != 0 && expected == kMost) << i;
    page += window.pages;
    expected = std::min(expected * 2, kMost);
  }
}

TEST(FaultAround, ElsewhereIsTheSmallestWindowAgain) {
  state::Locality locality;
  std::uint64_t page = 0;
  for (int i = 0; i < 6; ++i) page += fault_window(locality, page, 1, kMost).pages;
  EXPECT_EQ(fault_window(locality, 100'000, 1, kMost).pages, 1u);
  EXPECT_EQ(fault_window(locality, page, 1, kMost).pages, 64u);  // the first walk goes on beside it
}

TEST(FetchAhead, EveryBlockOfAWalkOnce) {
  state::Locality::Stream stream;
  std::uint64_t fetched_to = 100;
  for (std::uint64_t next = 100; next < 120; ++next) {
    const FetchAhead blocks = fetch_ahead(stream, next);
    EXPECT_EQ(blocks.begin, fetched_to) << next;
    EXPECT_GT(blocks.end, blocks.begin);
    fetched_to = blocks.end;
  }
}

TEST(FetchAhead, AWalkThatJumpsBeginsAnew) {
  state::Locality::Stream stream;
  const FetchAhead first = fetch_ahead(stream, 100);
  EXPECT_EQ(fetch_ahead(stream, 500).begin, 500u);
  EXPECT_EQ(fetch_ahead(stream, 50).begin, 50u);
  EXPECT_EQ(first.begin, 100u);
}

}  // namespace
}  // namespace uhmm::policy
