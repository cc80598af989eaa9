// SPDX-License-Identifier: Apache-2.0
// A set of pages of one block.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "runtime/base/types.hpp"

namespace uhmm {

// A run of consecutive pages of one block.
struct PageRun {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  constexpr std::uint32_t end() const { return first + count; }
  constexpr std::size_t bytes() const { return std::size_t{count} << kPageShift; }
  constexpr std::size_t offset() const { return std::size_t{first} << kPageShift; }
  constexpr bool operator==(const PageRun&) const = default;
};

class PageMask {
 public:
  static constexpr std::uint32_t kWords = kPagesPerBlock / 64;

  constexpr PageMask() = default;
  static constexpr PageMask of(PageRun run) {
    PageMask mask;
    mask.set(run);
    return mask;
  }
  static constexpr PageMask all() { return of({0, kPagesPerBlock}); }

  constexpr bool test(std::uint32_t page) const { return (words_[page / 64] >> (page % 64)) & 1; }
  constexpr void set(std::uint32_t page) { words_[page / 64] |= std::uint64_t{1} << (page % 64); }
  constexpr void reset(std::uint32_t page) { words_[page / 64] &= ~(std::uint64_t{1} << (page % 64)); }
  constexpr void set(PageRun run) {
    for_words(run, [this](std::uint32_t word, std::uint64_t bits) { words_[word] |= bits; });
  }
  constexpr void reset(PageRun run) {
    for_words(run, [this](std::uint32_t word, std::uint64_t bits) { words_[word] &= ~bits; });
  }
  constexpr void clear() { words_ = {}; }

  constexpr bool any() const {
    for (auto word : words_)
      if (word != 0) return true;
    return false;
  }
  constexpr bool none() const { return !any(); }
  constexpr std::uint32_t count() const {
    std::uint32_t pages = 0;
    for (auto word : words_) pages += static_cast<std::uint32_t>(std::popcount(word));
    return pages;
  }
  constexpr bool contains(const PageMask& other) const { return other.minus(*this).none(); }
  constexpr bool intersects(const PageMask& other) const { return (*this & other).any(); }
  constexpr PageMask minus(const PageMask& other) const {
    PageMask result;
    for (std::uint32_t i = 0; i < kWords; ++i) result.words_[i] = words_[i] & ~other.words_[i];
    return result;
  }
  constexpr PageMask operator|(const PageMask& other) const {
    PageMask result = *this;
    return result |= other;
  }
  constexpr PageMask operator&(const PageMask& other) const {
    PageMask result = *this;
    return result &= other;
  }
  constexpr PageMask& operator|=(const PageMask& other) {
    for (std::uint32_t i = 0; i < kWords; ++i) words_[i] |= other.words_[i];
    return *this;
  }
  constexpr PageMask& operator&=(const PageMask& other) {
    for (std::uint32_t i = 0; i < kWords; ++i) words_[i] &= other.words_[i];
    return *this;
  }
  constexpr PageMask& operator-=(const PageMask& other) { return *this = minus(other); }
  constexpr bool operator==(const PageMask&) const = default;

  // First member >= from, or kPagesPerBlock.
  constexpr std::uint32_t next_set(std::uint32_t from) const { return next(from, 0); }
  // First non-member >= from, or kPagesPerBlock.
  constexpr std::uint32_t next_clear(std::uint32_t from) const { return next(from, ~std::uint64_t{0}); }
  // The maximal run of members that starts at or after `from`; count 0 when there is none.
  constexpr PageRun next_run(std::uint32_t from) const {
    const std::uint32_t first = next_set(from);
    if (first >= kPagesPerBlock) return {kPagesPerBlock, 0};
    return {first, next_clear(first) - first};
  }
  // Calls visit(PageRun) for each maximal run, ascending.
  template <typename Visit>
  constexpr void for_each_run(Visit&& visit) const {
    for (PageRun run = next_run(0); run.count != 0; run = next_run(run.end())) visit(run);
  }

  // As 64 pages a word, for sets that are kept elsewhere than in a PageMask.
  constexpr std::uint64_t word(std::uint32_t index) const { return words_[index]; }
  constexpr void set_word(std::uint32_t index, std::uint64_t pages) { words_[index] = pages; }

 private:
  constexpr std::uint32_t next(std::uint32_t from, std::uint64_t invert) const {
    for (std::uint32_t word = from / 64; word < kWords; ++word) {
      std::uint64_t bits = words_[word] ^ invert;
      if (word == from / 64) bits &= ~std::uint64_t{0} << (from % 64);
      if (bits != 0) return word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
    }
    return kPagesPerBlock;
  }
  template <typename Apply>
  static constexpr void for_words(PageRun run, Apply&& apply) {
    for (std::uint32_t page = run.first; page < run.end();) {
      const std::uint32_t bit = page % 64;
      const std::uint32_t span = std::min(64 - bit, run.end() - page);
      const std::uint64_t bits = (span == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << span) - 1) << bit;
      apply(page / 64, bits);
      page += span;
    }
  }

  std::array<std::uint64_t, kWords> words_{};
};

}  // namespace uhmm
