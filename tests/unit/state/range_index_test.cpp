// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/range_index.hpp"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/seed.hpp"

namespace uhmm::state {
namespace {

ByteRange bytes(std::uint64_t begin, std::uint64_t end) { return {VirtAddr{begin}, VirtAddr{end}}; }

void insert(RangeIndex& index, std::uint64_t begin, std::uint64_t end, bool shared = false) {
  ASSERT_TRUE(index.reserve().ok());
  index.insert({bytes(begin, end), shared});
}
std::vector<RangeIndex::Entry> find(const RangeIndex& index, std::uint64_t begin, std::uint64_t end,
                                    std::size_t most = 1000) {
  std::vector<RangeIndex::Entry> found(most);
  found.resize(index.find(bytes(begin, end), found));
  return found;
}

TEST(RangeIndexTest, FindsWhatOverlapsInOrder) {
  RangeIndex index;
  EXPECT_TRUE(find(index, 0, ~std::uint64_t{0}).empty());
  insert(index, 300, 400, true);
  insert(index, 100, 200);
  insert(index, 200, 250);
  EXPECT_TRUE(find(index, 0, 100).empty());
  EXPECT_TRUE(find(index, 250, 300).empty());
  EXPECT_TRUE(find(index, 400, 500).empty());
  const auto found = find(index, 199, 301);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].bytes, bytes(100, 200));
  EXPECT_EQ(found[1].bytes, bytes(200, 250));
  EXPECT_EQ(found[2].bytes, bytes(300, 400));
  EXPECT_FALSE(found[1].shared);
  EXPECT_TRUE(found[2].shared);
  EXPECT_EQ(find(index, 0, 1000, 2).size(), 2u);
}

TEST(RangeIndexTest, CutsAndForgets) {
  RangeIndex index;
  insert(index, 100, 200, true);
  ASSERT_TRUE(index.reserve().ok());
  index.cut(VirtAddr{std::uint64_t{100}}, VirtAddr{std::uint64_t{150}});
  index.remove(VirtAddr{std::uint64_t{100}});
  index.remove(VirtAddr{std::uint64_t{101}});  // none begins there
  const auto found = find(index, 0, 1000);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].bytes, bytes(150, 200));
  EXPECT_TRUE(found[0].shared);
}

TEST(RangeIndexTest, AgreesWithAMap) {
  std::mt19937_64 random(test::seed());
  RangeIndex index;
  std::map<std::uint64_t, std::uint64_t> plain;
  for (int step = 0; step < 5000; ++step) {
    const std::uint64_t begin = random() % 1000 * 10;
    if (const auto known = plain.find(begin); known == plain.end()) {
      plain[begin] = begin + 1 + random() % 10;
      insert(index, begin, plain[begin]);
    } else {
      plain.erase(known);
      index.remove(VirtAddr{begin});
    }
    const std::uint64_t from = random() % 10000;
    const std::uint64_t to = from + 1 + random() % 500;
    std::vector<ByteRange> expected;
    for (const auto& [start, end] : plain)
      if (start < to && end > from) expected.push_back(bytes(start, end));
    const auto found = find(index, from, to);
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i].bytes, expected[i]);
  }
}

// Three ranges are always there, whatever else comes and goes before and between them.
TEST(RangeIndexTest, ReadersSeeOneMoment) {
  RangeIndex index;
  for (const std::uint64_t begin : {1'000'000, 2'000'000, 3'000'000}) insert(index, begin, begin + 10);
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> looks{0};
  std::vector<std::thread> readers;
  readers.reserve(2);
  for (int i = 0; i < 2; ++i)
    readers.emplace_back([&] {
      std::array<RangeIndex::Entry, 4> found;
      while (!over.load()) {
        for (const std::uint64_t begin : {1'000'000, 2'000'000, 3'000'000})
          if (index.find(bytes(begin, begin + 1), found) != 1 || found[0].bytes != bytes(begin, begin + 10))
            wrong.fetch_add(1);
        looks.fetch_add(1);
      }
    });
  std::mt19937_64 random(test::seed());
  std::map<std::uint64_t, bool> there;
  // Long enough that slots have grown and everybody has looked.
  for (int step = 0; step < 20'000 || looks.load() < 100; ++step) {
    const std::uint64_t begin = random() % 4000 * 1000 + 500;
    if (there[begin])
      index.remove(VirtAddr{begin});
    else
      insert(index, begin, begin + 20);
    there[begin] = !there[begin];
  }
  over.store(true);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong.load(), 0u);
}

}  // namespace
}  // namespace uhmm::state
