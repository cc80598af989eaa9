// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/page_mask.hpp"

#include <gtest/gtest.h>

#include <bitset>
#include <vector>

#include "tests/support/seed.hpp"

namespace uhmm {
namespace {

using Model = std::bitset<kPagesPerBlock>;

PageMask mask_of(const Model& model) {
  PageMask mask;
  for (std::uint32_t i = 0; i < kPagesPerBlock; ++i)
    if (model[i]) mask.set(i);
  return mask;
}

void expect_same(const PageMask& mask, const Model& model) {
  for (std::uint32_t i = 0; i < kPagesPerBlock; ++i) ASSERT_EQ(mask.test(i), model[i]) << "page " << i;
  ASSERT_EQ(mask.count(), model.count());
  ASSERT_EQ(mask.any(), model.any());
  ASSERT_EQ(mask.none(), model.none());
}

std::vector<PageRun> runs_of(const Model& model) {
  std::vector<PageRun> runs;
  for (std::uint32_t i = 0; i < kPagesPerBlock; ++i) {
    if (!model[i]) continue;
    if (runs.empty() || runs.back().end() != i) runs.push_back({i, 0});
    ++runs.back().count;
  }
  return runs;
}

class PageMaskRandom : public testing::Test {
 protected:
  std::uint32_t below(std::uint32_t bound) {
    return std::uniform_int_distribution<std::uint32_t>(0, bound - 1)(random_);
  }
  PageRun any_run() {
    const std::uint32_t first = below(kPagesPerBlock + 1);
    return {first, below(kPagesPerBlock - first + 1)};
  }
  // Sparse, dense and clustered sets.
  Model any_model() {
    Model model;
    const std::uint32_t density = below(4);
    if (density == 3) {
      for (std::uint32_t i = below(8); i > 0; --i) {
        const PageRun run = any_run();
        for (std::uint32_t page = run.first; page < run.end(); ++page) model.flip(page);
      }
      return model;
    }
    const std::uint32_t percent[] = {2, 50, 98};
    for (std::uint32_t i = 0; i < kPagesPerBlock; ++i) model[i] = below(100) < percent[density];
    return model;
  }
  std::mt19937_64 random_{test::seed()};
};

TEST_F(PageMaskRandom, behaves_like_a_bitset_under_mutation) {
  PageMask mask;
  Model model;
  for (int step = 0; step < 2000; ++step) {
    const PageRun run = any_run();
    const std::uint32_t page = below(kPagesPerBlock);
    switch (below(6)) {
      case 0: mask.set(page), model.set(page); break;
      case 1: mask.reset(page), model.reset(page); break;
      case 2:
        mask.set(run);
        for (std::uint32_t i = run.first; i < run.end(); ++i) model.set(i);
        break;
      case 3:
        mask.reset(run);
        for (std::uint32_t i = run.first; i < run.end(); ++i) model.reset(i);
        break;
      case 4:
        model = any_model();
        mask = mask_of(model);
        break;
      case 5:
        if (below(10) == 0) mask.clear(), model.reset();
        break;
    }
    expect_same(mask, model);
    if (HasFatalFailure()) return;
  }
}

TEST_F(PageMaskRandom, set_algebra_matches) {
  for (int step = 0; step < 1000; ++step) {
    const Model a = any_model();
    const Model b = below(3) == 0 ? (a & any_model()) : any_model();
    const PageMask x = mask_of(a);
    const PageMask y = mask_of(b);
    expect_same(x | y, a | b);
    expect_same(x & y, a & b);
    expect_same(x.minus(y), a & ~b);
    PageMask z = x;
    z -= y;
    ASSERT_EQ(z, x.minus(y));
    ASSERT_EQ(x.contains(y), (b & ~a).none());
    ASSERT_EQ(x.intersects(y), (a & b).any());
    ASSERT_EQ(x == y, a == b);
    if (HasFatalFailure()) return;
  }
}

TEST_F(PageMaskRandom, iteration_matches) {
  for (int step = 0; step < 500; ++step) {
    const Model model = any_model();
    const PageMask mask = mask_of(model);
    std::vector<PageRun> seen;
    mask.for_each_run([&](PageRun run) { seen.push_back(run); });
    ASSERT_EQ(seen, runs_of(model));
    const std::uint32_t from = below(kPagesPerBlock);
    std::uint32_t set = from;
    while (set < kPagesPerBlock && !model[set]) ++set;
    std::uint32_t clear = from;
    while (clear < kPagesPerBlock && model[clear]) ++clear;
    ASSERT_EQ(mask.next_set(from), set);
    ASSERT_EQ(mask.next_clear(from), clear);
    const PageRun run = mask.next_run(from);
    ASSERT_EQ(run.first, set);
    if (set == kPagesPerBlock) {
      ASSERT_EQ(run.count, 0u);
    } else {
      ASSERT_FALSE(run.end() < kPagesPerBlock && model[run.end()]);
      ASSERT_GT(run.count, 0u);
    }
  }
}

TEST(PageMask, edges) {
  EXPECT_EQ(PageMask::all().count(), kPagesPerBlock);
  EXPECT_EQ(PageMask::all().next_run(0), (PageRun{0, kPagesPerBlock}));
  EXPECT_EQ(PageMask::all().next_clear(0), kPagesPerBlock);
  EXPECT_EQ(PageMask().next_set(0), kPagesPerBlock);
  EXPECT_EQ(PageMask().next_run(0).count, 0u);
  EXPECT_EQ(PageMask::all().next_set(kPagesPerBlock), kPagesPerBlock);
  EXPECT_TRUE(PageMask::of({7, 0}).none());
  EXPECT_TRUE(PageMask::of({kPagesPerBlock, 0}).none());
  for (std::uint32_t first : {0u, 1u, 63u, 64u, 65u, 127u, 448u, 511u}) {
    const PageMask one = PageMask::of({first, 1});
    EXPECT_EQ(one.next_run(0), (PageRun{first, 1}));
    const PageMask rest = PageMask::of({first, kPagesPerBlock - first});
    EXPECT_EQ(rest.next_run(0), (PageRun{first, kPagesPerBlock - first}));
    EXPECT_EQ(rest.count(), kPagesPerBlock - first);
  }
  EXPECT_EQ((PageRun{3, 2}.bytes()), 8192u);
  EXPECT_EQ((PageRun{3, 2}.offset()), 12288u);
  static_assert(PageMask::all().minus(PageMask::of({0, 511})).next_set(0) == 511, "usable in constant expressions");
}

}  // namespace
}  // namespace uhmm
