// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/device_memory.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"

namespace uhmm::state {

void DeviceMemory::reset(std::uint64_t pages) {
  const std::scoped_lock lock(mutex_);
  capacity_ = pages;
  pools_ = {};
  pools_[0].quota = pages;
  lists_ = {};
  stale_ = nullptr;
}

bool DeviceMemory::reserve(std::uint32_t pool, std::uint64_t pages) {
  const std::scoped_lock lock(mutex_);
  Pool& account = pools_[pool];
  if (account.used + pages > account.quota) return false;
  account.used += pages;
  account.reserved += pages;
  return true;
}

std::uint64_t DeviceMemory::reserve_some(std::uint32_t pool, std::uint64_t most) {
  const std::scoped_lock lock(mutex_);
  Pool& account = pools_[pool];
  const std::uint64_t granted = account.used < account.quota ? std::min(most, account.quota - account.used) : 0;
  account.used += granted;
  account.reserved += granted;
  return granted;
}

void DeviceMemory::settle(std::uint32_t pool, std::uint64_t reserved, std::uint64_t allocated) {
  const std::scoped_lock lock(mutex_);
  UHMM_CHECK(allocated <= reserved, "allocated more device memory than was promised");
  UHMM_CHECK(reserved <= pools_[pool].reserved, "settled more than was promised");
  pools_[pool].used -= reserved - allocated;
  pools_[pool].reserved -= reserved;
}

bool DeviceMemory::promised(std::uint32_t pool) const {
  const std::scoped_lock lock(mutex_);
  return pools_[pool].reserved != 0;
}

void DeviceMemory::release(std::uint32_t pool, std::uint64_t pages) {
  const std::scoped_lock lock(mutex_);
  UHMM_CHECK(pages <= pools_[pool].used, "released more device memory than was allocated");
  pools_[pool].used -= pages;
}

bool DeviceMemory::add_pool(std::uint32_t pool, std::uint64_t pages) {
  const std::scoped_lock lock(mutex_);
  if (pages > pools_[0].quota) return false;
  pools_[0].quota -= pages;
  pools_[pool] = {pages, 0, 0};
  return true;
}

void DeviceMemory::remove_pool(std::uint32_t pool) {
  const std::scoped_lock lock(mutex_);
  UHMM_CHECK(pools_[pool].used == 0, "a pool was removed with pages in it");
  pools_[0].quota += pools_[pool].quota;
  pools_[pool] = {};
}

void DeviceMemory::unlink(BlockDevice* part) {
  if (part->list == MemoryList::None) return;
  List& list = list_of(part->list);
  (part->newer != nullptr ? part->newer->older : list.newest) = part->older;
  (part->older != nullptr ? part->older->newer : list.oldest) = part->newer;
  --list.count;
  part->newer = part->older = nullptr;
  part->list = MemoryList::None;
}

void DeviceMemory::place(BlockDevice* part, MemoryList to) {
  const std::scoped_lock lock(mutex_);
  place_locked(part, to);
}

void DeviceMemory::place_locked(BlockDevice* part, MemoryList to) {
  unlink(part);
  if (to == MemoryList::None) return;
  List& list = list_of(to);
  part->list = to;
  part->older = list.newest;
  (list.newest != nullptr ? list.newest->newer : list.oldest) = part;
  list.newest = part;
  ++list.count;
}

void DeviceMemory::refresh(BlockDevice* part, bool resident, bool allocated, bool used) {
  const std::scoped_lock lock(mutex_);
  MemoryList list = MemoryList::None;
  if (resident)
    list = used || part->list == MemoryList::Active ? MemoryList::Active : MemoryList::Inactive;
  else if (allocated)
    list = MemoryList::Retained;
  if (list != part->list || used) place_locked(part, list);
}

bool DeviceMemory::pressed(std::uint32_t pool) const {
  const std::scoped_lock lock(mutex_);
  return pools_[pool].used > pools_[pool].quota - pools_[pool].quota / 4;
}

bool DeviceMemory::wants_aging() const {
  const std::scoped_lock lock(mutex_);
  return lists_[static_cast<std::size_t>(MemoryList::Active)].count >
         3 * lists_[static_cast<std::size_t>(MemoryList::Inactive)].count;
}

BlockDevice* DeviceMemory::pop_stale() {
  const std::scoped_lock lock(mutex_);
  BlockDevice* taken = stale_;
  if (taken == nullptr) return nullptr;
  stale_ = taken->next_stale;
  taken->next_stale = nullptr;
  taken->stale_listed = false;
  return taken;
}

void DeviceMemory::push_stale(BlockDevice* part) {
  const std::scoped_lock lock(mutex_);
  list_stale(part);
}

void DeviceMemory::forget(BlockDevice* part) {
  const std::scoped_lock lock(mutex_);
  unlink(part);
  if (!part->stale_listed) return;
  for (BlockDevice** link = &stale_; *link != nullptr; link = &(*link)->next_stale) {
    if (*link != part) continue;
    *link = part->next_stale;
    break;
  }
  part->stale_listed = false;
}

std::uint64_t DeviceMemory::capacity() const {
  const std::scoped_lock lock(mutex_);
  return capacity_;
}

}  // namespace uhmm::state
