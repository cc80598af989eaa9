// SPDX-License-Identifier: Apache-2.0
// A device's physical memory as a number of pages, who pays for them, and in which order blocks would have to go.
// Least recently *used*: blocks that the device has mapped are "active"; the oldest of them lose their mapping (not
// their data) under pressure and become "inactive"; a device fault makes them active again; victims are the oldest
// inactive ones. Pages that are no longer current but still have memory are "retained": reused without allocation by
// the same pages, given back first under pressure.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/base/lock.hpp"
#include "runtime/state/block.hpp"

namespace uhmm::state {

inline constexpr std::uint32_t kMaxPools = 16;  // per device; 0 is the default pool

class DeviceMemory {
 public:
  // Everything is free afterwards; pools other than the default are gone.
  void reset(std::uint64_t pages);

  // Promise `pages` of a pool's quota to an operation. False when the pool (or the device) has not that many left.
  bool reserve(std::uint32_t pool, std::uint64_t pages);
  // Promises what is left, `most` at most; 0 when nothing is.
  std::uint64_t reserve_some(std::uint32_t pool, std::uint64_t most);
  // The operation is over: of `reserved` pages it allocated `allocated` for good.
  void settle(std::uint32_t pool, std::uint64_t reserved, std::uint64_t allocated);
  // Somebody has a promise that is not settled: what becomes of those pages is not known yet.
  bool promised(std::uint32_t pool) const;
  // Allocated pages were given back.
  void release(std::uint32_t pool, std::uint64_t pages);

  // A pool with its own quota, taken from the default pool's. False when the default pool has less quota than that.
  bool add_pool(std::uint32_t pool, std::uint64_t pages);
  void remove_pool(std::uint32_t pool);

  // Put the block's part on a list as its newest member, or off all lists.
  void place(BlockDevice* part, MemoryList list);
  // Put it on the list that fits what it holds: pages with current copies, or only allocated ones. `used`: just now.
  void refresh(BlockDevice* part, bool resident, bool allocated, bool used);
  // The oldest member that belongs to `pool` and for which `fits` holds; it stays where it is. nullptr if none.
  template <typename Fits>
  BlockDevice* oldest(MemoryList list, std::uint32_t pool, Fits&& fits);
  // Under pressure: less than a quarter of the pool is free.
  bool pressed(std::uint32_t pool) const;
  // Active blocks outnumber inactive ones more than three to one.
  bool wants_aging() const;

  // Blocks whose device page table may hold entries of pages that are no longer current. Returns false, and lists
  // nothing, while `busy()` holds: then the caller unmaps at once.
  template <typename Busy>
  bool defer_unmap(BlockDevice* part, Busy&& busy);
  // Take one block off that list; nullptr when it is empty. Put it back when it could not be unmapped.
  BlockDevice* pop_stale();
  void push_stale(BlockDevice* part);
  // The block's part is being destroyed: off every list.
  void forget(BlockDevice* part);

  std::uint64_t capacity() const;

 private:
  using Mutex = RankedMutex<LockRank::DeviceMemory>;
  struct List {
    BlockDevice* newest = nullptr;
    BlockDevice* oldest = nullptr;
    std::uint64_t count = 0;
  };
  struct Pool {
    std::uint64_t quota = 0;
    std::uint64_t used = 0;  // allocated and reserved
    std::uint64_t reserved = 0;
  };
  List& list_of(MemoryList list) { return lists_[static_cast<std::size_t>(list)]; }
  void unlink(BlockDevice* part);
  void place_locked(BlockDevice* part, MemoryList list);
  void list_stale(BlockDevice* part) {
    if (part->stale_listed) return;
    part->stale_listed = true;
    part->next_stale = stale_;
    stale_ = part;
  }

  mutable Mutex mutex_;
  std::uint64_t capacity_ = 0;
  std::array<Pool, kMaxPools> pools_{};
  std::array<List, 4> lists_{};
  BlockDevice* stale_ = nullptr;
};

template <typename Fits>
BlockDevice* DeviceMemory::oldest(MemoryList list, std::uint32_t pool, Fits&& fits) {
  const std::scoped_lock lock(mutex_);
  for (BlockDevice* part = list_of(list).oldest; part != nullptr; part = part->newer)
    if (part->pool == pool && fits(*part)) return part;
  return nullptr;
}

template <typename Busy>
bool DeviceMemory::defer_unmap(BlockDevice* part, Busy&& busy) {
  const std::scoped_lock lock(mutex_);
  if (busy()) return false;
  list_stale(part);
  return true;
}

}  // namespace uhmm::state
