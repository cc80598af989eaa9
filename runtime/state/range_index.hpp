// SPDX-License-Identifier: Apache-2.0
// What is registered, for those who may hold no lock: a thread of the program's own, whose stack may be away. Readers
// see one moment of it; who changes it never waits for them.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::state {

// Sorted by begin. An insertion or removal moves what is above it: some nanoseconds for each.
class RangeIndex {
 public:
  struct Entry {
    ByteRange bytes;
    bool shared = false;  // backed by memory that others may see
  };

  RangeIndex() = default;
  ~RangeIndex();
  RangeIndex(const RangeIndex&) = delete;
  RangeIndex& operator=(const RangeIndex&) = delete;

  // By one thread at a time. Room for one entry more: then insert() and cut() have it. Errors: NO_MEMORY.
  Status reserve();
  void insert(const Entry& entry);
  void remove(VirtAddr begin);
  // The entry that begins at `begin` ends at `at`, and another like it takes the rest.
  void cut(VirtAddr begin, VirtAddr at);

  // Any thread, at any time. The first entries that overlap `bytes`, ascending, as many as there is room for.
  std::size_t find(ByteRange bytes, std::span<Entry> out) const;

 private:
  struct Slot {
    std::atomic<std::uint64_t> begin{0};
    std::atomic<std::uint64_t> end{0};  // and kShared
  };
  static constexpr std::uint64_t kShared = std::uint64_t{1} << 63;
  static constexpr std::size_t kFirstCapacity = 64;

  std::size_t position(VirtAddr begin) const;
  void make_room(std::size_t at);
  static void set(Slot& slot, std::uint64_t begin, std::uint64_t end);
  class Change;

  std::atomic<std::uint64_t> sequence_{0};  // odd: being changed
  std::atomic<std::size_t> count_{0};
  std::atomic<Slot*> slots_{nullptr};
  // Each twice as large as the one before. The old ones stay: somebody may be reading there.
  std::array<Slot*, 40> all_{};
  std::size_t generations_ = 0;
};

}  // namespace uhmm::state
