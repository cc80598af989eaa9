// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/copy.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "runtime/base/types.hpp"
#include "tests/support/seed.hpp"

namespace uhmm {
namespace {

TEST(CopyPages, CopiesEveryByteAndNothingElse) {
  struct alignas(kPageBytes) Page {
    std::byte bytes[kPageBytes];
  };
  constexpr std::size_t kMost = 130;
  const auto from = std::make_unique<Page[]>(kMost);
  const auto to = std::make_unique<Page[]>(kMost + 2);
  std::mt19937_64 random(test::seed());
  for (std::size_t page = 0; page < kMost; ++page)
    for (std::byte& byte : from[page].bytes) byte = static_cast<std::byte>(random());
  for (const std::size_t pages : {1u, 2u, 31u, 32u, 33u, 128u, 130u}) {
    std::memset(static_cast<void*>(to.get()), 7, (kMost + 2) * kPageBytes);
    copy_pages(to[1].bytes, from[0].bytes, pages * kPageBytes);
    EXPECT_EQ(std::memcmp(to[1].bytes, from[0].bytes, pages * kPageBytes), 0) << pages;
    EXPECT_EQ(to[0].bytes[kPageBytes - 1], std::byte{7});
    EXPECT_EQ(to[pages + 1].bytes[0], std::byte{7}) << pages;
  }
}

}  // namespace
}  // namespace uhmm
