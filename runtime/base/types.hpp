// SPDX-License-Identifier: Apache-2.0
// Strong types for addresses, pages and byte ranges. A page is the system page; a block is the aligned 2 MiB piece of
// address space that has one lock.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>

namespace uhmm {

inline constexpr std::size_t kPageShift = 12;
inline constexpr std::size_t kPageBytes = std::size_t{1} << kPageShift;
inline constexpr std::size_t kBlockShift = 21;
inline constexpr std::size_t kBlockBytes = std::size_t{1} << kBlockShift;
inline constexpr std::uint32_t kPagesPerBlock = kBlockBytes / kPageBytes;
inline constexpr std::uint64_t kUserSpaceEnd = 0x7ffffffff000;
inline constexpr std::uint32_t kMaxDevices = 8;

// A virtual address of the program. Device memory has the same addresses.
struct VirtAddr {
  std::uint64_t value = 0;

  constexpr VirtAddr() = default;
  constexpr explicit VirtAddr(std::uint64_t address) : value(address) {}
  explicit VirtAddr(const void* pointer) : value(reinterpret_cast<std::uint64_t>(pointer)) {}

  constexpr auto operator<=>(const VirtAddr&) const = default;
  constexpr VirtAddr operator+(std::uint64_t bytes) const { return VirtAddr{value + bytes}; }
  constexpr VirtAddr operator-(std::uint64_t bytes) const { return VirtAddr{value - bytes}; }
  constexpr std::uint64_t operator-(VirtAddr other) const { return value - other.value; }
  constexpr VirtAddr page_floor() const { return VirtAddr{value & ~(kPageBytes - 1)}; }
  constexpr VirtAddr page_ceil() const { return VirtAddr{(value + kPageBytes - 1) & ~(kPageBytes - 1)}; }
  constexpr VirtAddr block_floor() const { return VirtAddr{value & ~(kBlockBytes - 1)}; }
  // Index of the address's page inside its block.
  constexpr std::uint32_t page_in_block() const {
    return static_cast<std::uint32_t>((value & (kBlockBytes - 1)) >> kPageShift);
  }
  // For system calls only: managed memory is never dereferenced by the runtime's service threads.
  void* pointer() const { return reinterpret_cast<void*>(value); }
};

// [begin, end) in bytes.
struct ByteRange {
  VirtAddr begin;
  VirtAddr end;

  constexpr std::uint64_t bytes() const { return end - begin; }
  constexpr std::uint64_t pages() const { return bytes() >> kPageShift; }
  constexpr bool empty() const { return begin >= end; }
  constexpr bool contains(VirtAddr address) const { return begin <= address && address < end; }
  constexpr bool overlaps(const ByteRange& other) const { return begin < other.end && other.begin < end; }
  constexpr bool operator==(const ByteRange&) const = default;
  // Every page the range touches.
  constexpr ByteRange to_pages() const { return {begin.page_floor(), end.page_ceil()}; }
  constexpr ByteRange intersect(const ByteRange& other) const {
    return {std::max(begin, other.begin), std::max(std::max(begin, other.begin), std::min(end, other.end))};
  }
};

// Device slot, 0 .. kMaxDevices-1; the public processor id is one more.
struct DeviceIndex {
  std::uint32_t value = 0;
  constexpr auto operator<=>(const DeviceIndex&) const = default;
  constexpr std::uint32_t processor() const { return value + 1; }
};

}  // namespace uhmm
