// SPDX-License-Identifier: Apache-2.0
// What the demo computes: kernels for the device, and the same answers from the CPU, written apart where they can be
// wrong in different ways.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include <uhmm/uhmm.hpp>

namespace demo {

using Byte = unsigned char;
using Counts = std::array<std::uint64_t, 256>;

// Bits per byte.
inline double entropy_of(const Counts& counts) {
  double total = 0;
  for (const std::uint64_t count : counts) total += static_cast<double>(count);
  double bits = 0;
  for (const std::uint64_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / total;
    bits -= share * std::log2(share);
  }
  return bits;
}

// A key that depends on the position, so that a page at the wrong place or applied twice does not go unnoticed.
inline Byte key_at(std::size_t position) { return static_cast<Byte>((position * 0x9E3779B97F4A7C15u) >> 56); }
inline Byte scramble(Byte byte, std::size_t position) {
  return std::rotl(static_cast<Byte>(byte ^ key_at(position)), static_cast<int>(position % 7));
}
inline Byte unscramble(Byte byte, std::size_t position) {
  return static_cast<Byte>(std::rotr(byte, static_cast<int>(position % 7)) ^ key_at(position));
}

// ------------------------------------------------------------------------------------------------------- the device

// The part of `bytes` that belongs to a cell.
struct Slice {
  std::size_t begin;
  std::size_t end;
  Slice(const uhmm_kernel_item& item, std::size_t bytes)
      : begin(bytes / item.grid[0] * item.index[0]),
        end(item.index[0] + 1 == item.grid[0] ? bytes : bytes / item.grid[0] * (item.index[0] + 1)) {}
};

struct HistogramArgs {
  const Byte* data;
  std::size_t bytes;
  Counts* partial;  // one per cell
};
inline void histogram_kernel(const uhmm_kernel_item& item, const HistogramArgs& args) {
  Counts counts{};
  const Slice slice(item, args.bytes);
  for (std::size_t i = slice.begin; i < slice.end; ++i) ++counts[args.data[i]];
  args.partial[item.index[0]] = counts;
}

struct Summary {
  Counts counts;
  double entropy;
};
struct SummaryArgs {
  const Counts* partial;
  std::size_t cells;
  Summary* out;
};
inline void summary_kernel(const uhmm_kernel_item&, const SummaryArgs& args) {
  Counts counts{};
  for (std::size_t cell = 0; cell < args.cells; ++cell) {
    for (std::size_t byte = 0; byte < counts.size(); ++byte) counts[byte] += args.partial[cell][byte];
  }
  args.out->counts = counts;
  args.out->entropy = entropy_of(counts);
}

struct TransformArgs {
  Byte* data;
  std::size_t bytes;
};
inline void scramble_kernel(const uhmm_kernel_item& item, const TransformArgs& args) {
  const Slice slice(item, args.bytes);
  for (std::size_t i = slice.begin; i < slice.end; ++i) args.data[i] = scramble(args.data[i], i);
}
inline void unscramble_kernel(const uhmm_kernel_item& item, const TransformArgs& args) {
  const Slice slice(item, args.bytes);
  for (std::size_t i = slice.begin; i < slice.end; ++i) args.data[i] = unscramble(args.data[i], i);
}

// A linked list with real pointers: the device follows what the CPU stored.
struct alignas(64) Node {
  Node* next;
  std::uint64_t value;
  std::uint64_t seen;  // what the walk had when it came by
};
struct List {
  Node* head;
  std::uint64_t sum;
};
// Depends on the order, so that a walk that goes astray can't end at the right sum.
inline std::uint64_t fold(std::uint64_t sum, std::uint64_t value) { return std::rotl(sum, 5) * 31 + value; }

struct WalkArgs {
  List* lists;  // one per cell
};
inline void walk_kernel(const uhmm_kernel_item& item, const WalkArgs& args) {
  List& list = args.lists[item.index[0]];
  std::uint64_t sum = 0;
  for (Node* node = list.head; node != nullptr; node = node->next) {
    sum = fold(sum, node->value);
    node->seen = sum;
  }
  list.sum = sum;
}

// ------------------------------------------------------------------------------------------------ the CPU's answers

inline Counts reference_histogram(std::span<const Byte> bytes) {
  Counts counts{};
  for (const Byte byte : bytes) ++counts[byte];
  return counts;
}
inline void reference_scramble(std::span<Byte> bytes) {
  std::size_t position = 0;
  for (Byte& byte : bytes) {
    byte = scramble(byte, position);
    ++position;
  }
}
inline void reference_unscramble(std::span<Byte> bytes) {
  std::size_t position = 0;
  for (Byte& byte : bytes) {
    byte = unscramble(byte, position);
    ++position;
  }
}

}  // namespace demo
