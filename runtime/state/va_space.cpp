// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/va_space.hpp"

#include "runtime/base/arena.hpp"

namespace uhmm::state {

VaSpace::VaSpace() : ranges_(Arena::instance().resource()) {}

VaSpace::~VaSpace() {
  for (auto& leaf_slot : leaves_) {
    Leaf* leaf = leaf_slot.load();
    if (leaf == nullptr) continue;
    for (auto& entry : leaf->blocks) destroy_in_arena(entry.load());
    destroy_in_arena(leaf);
  }
  for (auto& [begin, range] : ranges_) destroy_in_arena(range);
}

Status VaSpace::check_free(ByteRange bytes) const {
  const auto next = ranges_.lower_bound(bytes.begin.value);
  const Range* other = nullptr;
  if (next != ranges_.end() && next->second->bytes.overlaps(bytes)) other = next->second;
  if (next != ranges_.begin() && std::prev(next)->second->bytes.overlaps(bytes)) other = std::prev(next)->second;
  if (other == nullptr) return {};
  return fail(UHMM_ERR_OVERLAP, "[%#lx, %#lx) overlaps the registered range [%#lx, %#lx)", bytes.begin.value,
              bytes.end.value, other->bytes.begin.value, other->bytes.end.value);
}

bool VaSpace::touched_by_others(ByteRange page, ByteRange bytes) const {
  // Downwards from the page's end: at most two ranges have to be looked at.
  for (auto it = ranges_.lower_bound(page.end.value); it != ranges_.begin();) {
    --it;
    if (it->second->bytes.begin == bytes.begin) continue;
    return it->second->bytes.end > page.begin;
  }
  return false;
}

Status VaSpace::insert(Range* range) {
  UHMM_TRY(check_free(range->bytes));
  UHMM_TRY(index_.reserve());
  try {
    ranges_.emplace(range->bytes.begin.value, range);
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "no memory for a range's metadata");
  }
  index_.insert({range->bytes, range->backing == Backing::Shared});
  registered_bytes_ += range->bytes.bytes();
  const auto self = ranges_.find(range->bytes.begin.value);
  const auto meet = [&](Range& other) {
    if (other.pages.overlaps(range->pages)) other.had_neighbours = range->had_neighbours = true;
  };
  for (auto it = self; it != ranges_.begin() && std::prev(it)->second->pages.overlaps(range->pages);)
    meet(*(--it)->second);
  for (auto it = std::next(self); it != ranges_.end() && it->second->pages.overlaps(range->pages); ++it)
    meet(*it->second);
  // A block that a neighbour made already is shared with it.
  for (VirtAddr at = range->pages.begin.block_floor(); at < range->pages.end; at = at + kBlockBytes)
    if (Block* found = find_block(at)) ++found->references;
  return {};
}

void VaSpace::remove(Range* range) {
  ranges_.erase(range->bytes.begin.value);
  index_.remove(range->bytes.begin);
  registered_bytes_ -= range->bytes.bytes();
  for (VirtAddr at = range->pages.begin.block_floor(); at < range->pages.end; at = at + kBlockBytes) {
    std::atomic<Block*>* entry = slot(at.value >> kBlockShift, false);
    if (entry == nullptr) continue;
    Block* found = entry->load();
    if (found == nullptr || --found->references != 0) continue;
    entry->store(nullptr);
    destroy_in_arena(found);
  }
}

Status VaSpace::split(Range* range, VirtAddr at, Range* upper) {
  UHMM_TRY(index_.reserve());
  try {
    ranges_.emplace(at.value, upper);
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "no memory for a range's metadata");
  }
  index_.cut(range->bytes.begin, at);
  range->bytes.end = range->pages.end = at;
  upper->had_neighbours = range->had_neighbours;
  upper->files = range->files;
  // Of the blocks only the one in which they meet has a range more than before.
  if (at.block_floor() != at)
    if (Block* found = find_block(at)) ++found->references;
  return {};
}

Range* VaSpace::find_page(VirtAddr page) const {
  const auto next = ranges_.upper_bound(page.value);
  if (next != ranges_.begin()) {
    Range* before = std::prev(next)->second;
    if (before->bytes.end > page) return before;
  }
  if (next != ranges_.end() && next->second->bytes.begin < page + kPageBytes) return next->second;
  return nullptr;
}

Range* VaSpace::find_byte(VirtAddr address) const {
  const auto next = ranges_.upper_bound(address.value);
  if (next == ranges_.begin()) return nullptr;
  Range* before = std::prev(next)->second;
  return before->bytes.contains(address) ? before : nullptr;
}

bool VaSpace::covers(ByteRange bytes) const {
  VirtAddr at = bytes.begin;
  while (at < bytes.end) {
    const Range* range = find_byte(at);
    if (range == nullptr) return false;
    at = range->bytes.end;
  }
  return true;
}

ByteRange VaSpace::pages_not_shared(const Range& range) const {
  ByteRange own = range.pages;
  const auto next = ranges_.upper_bound(range.bytes.begin.value);
  if (next != ranges_.end() && next->second->pages.begin < own.end) own.end = next->second->pages.begin;
  auto here = ranges_.lower_bound(range.bytes.begin.value);
  if (here != ranges_.begin() && std::prev(here)->second->pages.end > own.begin)
    own.begin = std::prev(here)->second->pages.end;
  if (own.end < own.begin) own.end = own.begin;
  return own;
}

std::atomic<Block*>* VaSpace::slot(std::uint64_t number, bool make) {
  std::atomic<Leaf*>& leaf_slot = leaves_[number >> kLeafBits];
  Leaf* leaf = leaf_slot.load(std::memory_order_acquire);
  if (leaf == nullptr) {
    if (!make) return nullptr;
    Leaf* fresh = make_in_arena<Leaf>();
    if (fresh == nullptr) return nullptr;
    if (leaf_slot.compare_exchange_strong(leaf, fresh))
      leaf = fresh;
    else
      destroy_in_arena(fresh);
  }
  return &leaf->blocks[number & (kLeafEntries - 1)];
}

Block* VaSpace::find_block(VirtAddr address) const {
  const std::uint64_t number = address.value >> kBlockShift;
  const Leaf* leaf = leaves_[number >> kLeafBits].load(std::memory_order_acquire);
  return leaf == nullptr ? nullptr : leaf->blocks[number & (kLeafEntries - 1)].load(std::memory_order_acquire);
}

Block* VaSpace::block(VirtAddr address) {
  std::atomic<Block*>* entry = slot(address.value >> kBlockShift, true);
  if (entry == nullptr) return nullptr;
  Block* found = entry->load(std::memory_order_acquire);
  if (found != nullptr) return found;
  const VirtAddr base = address.block_floor();
  Block* fresh = make_in_arena<Block>(base);
  if (fresh == nullptr) return nullptr;
  for (auto it = ranges_.lower_bound(base.value); it != ranges_.end() && it->second->pages.begin < base + kBlockBytes;
       ++it)
    ++fresh->references;
  if (const auto it = ranges_.lower_bound(base.value); it != ranges_.begin()) {
    // Only the range just below the block's start can reach into it from there.
    if (std::prev(it)->second->pages.end > base) ++fresh->references;
  }
  if (entry->compare_exchange_strong(found, fresh)) return fresh;
  destroy_in_arena(fresh);
  return found;
}

}  // namespace uhmm::state
