// SPDX-License-Identifier: Apache-2.0
// The program's address space as the runtime sees it: ranges by address, blocks by number. Guarded by one lock that
// every operation on memory holds shared, and that is held exclusively only to add or remove entries: so a range or
// block found under it stays valid until it is let go.
#pragma once

#include <map>
#include <memory_resource>

#include "runtime/base/lock.hpp"
#include "runtime/base/status.hpp"
#include "runtime/state/block.hpp"
#include "runtime/state/range.hpp"
#include "runtime/state/range_index.hpp"

namespace uhmm::state {

// The part of a range that lies in one block.
struct Segment {
  Range* range = nullptr;
  Block* block = nullptr;
  PageRun run;  // pages of the block
};

class VaSpace {
 public:
  using Mutex = RankedSharedMutex<LockRank::VaSpace>;
  using RangeMap = std::pmr::map<std::uint64_t, Range*>;

  VaSpace();
  ~VaSpace();
  VaSpace(const VaSpace&) = delete;
  VaSpace& operator=(const VaSpace&) = delete;

  Mutex& mutex() { return mutex_; }

  // Shared lock. OVERLAP if some of the bytes are registered.
  Status check_free(ByteRange bytes) const;
  // Exclusive lock. Takes ownership on success. Errors: OVERLAP, NO_MEMORY.
  Status insert(Range* range);
  // Exclusive lock. The caller owns the range again; blocks that no other range touches are destroyed.
  void remove(Range* range);
  // Exclusive lock. `range` ends at `at` from now on, a page boundary inside it, and `upper`, made for the rest, takes
  // the rest. Takes ownership of `upper` on success. Errors: NO_MEMORY (nothing changed).
  Status split(Range* range, VirtAddr at, Range* upper);

  // Shared lock. The lowest range that touches the page; it answers for a page that several ranges touch.
  Range* find_page(VirtAddr page) const;
  // Shared lock. The range whose bytes contain the address.
  Range* find_byte(VirtAddr address) const;
  // Shared lock. Does a range that doesn't begin where `bytes` begin touch the page?
  bool touched_by_others(ByteRange page, ByteRange bytes) const;
  // Shared lock. Are all bytes registered?
  bool covers(ByteRange bytes) const;
  // Shared lock. The pages that `range` answers for alone or as the lowest: no other range touches them, or only later.
  ByteRange pages_not_shared(const Range& range) const;
  const RangeMap& ranges() const { return ranges_; }
  // No lock at all: what is registered, for threads of the program.
  const RangeIndex& index() const { return index_; }

  // Shared lock. The block at the address; made on first use, nullptr when out of memory or when no range touches it.
  Block* block(VirtAddr address);
  Block* find_block(VirtAddr address) const;

  // Shared lock. Calls visit(Segment) for the pages of `pages` block by block, range by range, ascending; each page
  // once. Blocks are made when `make` is set, else segments of untouched blocks are skipped. Stops at a failed Status.
  template <typename Visit>
  Status for_each_segment(ByteRange pages, bool make, Visit&& visit);

  std::uint64_t registered_bytes() const { return registered_bytes_; }

 private:
  // Two levels over 26 bits of block number; leaves are made on demand and cost nothing where untouched.
  static constexpr std::uint32_t kLeafBits = 13;
  static constexpr std::uint32_t kLeafEntries = 1u << kLeafBits;
  struct Leaf {
    std::array<std::atomic<Block*>, kLeafEntries> blocks{};
  };
  std::atomic<Block*>* slot(std::uint64_t number, bool make);

  Mutex mutex_;
  RangeMap ranges_;
  RangeIndex index_;
  std::uint64_t registered_bytes_ = 0;
  std::array<std::atomic<Leaf*>, kLeafEntries> leaves_{};
};

template <typename Visit>
Status VaSpace::for_each_segment(ByteRange pages, bool make, Visit&& visit) {
  VirtAddr at = pages.begin;
  while (at < pages.end) {
    Range* range = find_page(at);
    if (range == nullptr) {
      const auto next = ranges_.lower_bound(at.value + kPageBytes);
      if (next == ranges_.end()) break;
      at = next->second->pages.begin;
      continue;
    }
    const VirtAddr base = at.block_floor();
    const VirtAddr end = std::min({pages.end, range->pages.end, base + kBlockBytes});
    Block* found = make ? block(at) : find_block(at);
    if (make && found == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a block's metadata");
    if (found != nullptr) {
      const PageRun run{at.page_in_block(), static_cast<std::uint32_t>((end - at) >> kPageShift)};
      UHMM_TRY(visit(Segment{range, found, run}));
    }
    at = end;
  }
  return {};
}

}  // namespace uhmm::state
