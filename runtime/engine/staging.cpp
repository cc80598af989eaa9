// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/staging.hpp"

#include <algorithm>

#include "runtime/base/arena.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/os/memory.hpp"
#include "runtime/os/system_memory.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {
namespace {

// What is kept even when memory is short: enough for faults and single blocks.
constexpr std::uint64_t kAlwaysPages = (std::uint64_t{64} << 20) >> kPageShift;
// Short: less than an eighth can still be had.
constexpr std::uint64_t kShortShare = 8;
constexpr std::uint32_t kFewPages = 16;
constexpr std::uint64_t kLookEveryNs = 100'000'000;

}  // namespace

Staging::Staging() : slots_(Arena::instance().resource()) {}

Status Staging::open(const os::Userfaultfd& uffd, std::uint64_t bytes, std::uint32_t users) {
  uffd_ = &uffd;
  limit_pages_ = bytes >> kPageShift;
  const std::size_t count = static_cast<std::size_t>((bytes + kBlockBytes - 1) / kBlockBytes) + users;
  memory_bytes_ = count * kBlockBytes;
  memory_ = os::map_private(memory_bytes_);
  if (memory_ == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no address space for %zu bytes of staging", memory_bytes_);
  const VirtAddr begin{memory_};
  if (const int error = uffd.register_range({begin, begin + memory_bytes_}, os::kMissing); error != 0)
    return fail_errno("registering staging memory", error);
  try {
    slots_.resize(count);
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "no memory for %zu staging slots", count);
  }
  for (std::size_t i = 0; i < count; ++i) slots_[i].memory = memory_ + i * kBlockBytes;
  source_memory_ = os::map_private(kSources * kBlockBytes);
  if (source_memory_ == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no address space for staging huge pages");
  for (std::size_t i = 0; i < kSources; ++i) {
    sources_[i].memory = source_memory_ + i * kBlockBytes;
    sources_[i].source = true;
    (void)renew(sources_[i]);
  }
  return {};
}

void Staging::close() {
  slots_.clear();
  slots_.shrink_to_fit();
  // Unmapping what is watched would be news, which nobody reads any more.
  if (memory_ != nullptr) (void)uffd_->unregister_range({VirtAddr{memory_}, VirtAddr{memory_} + memory_bytes_});
  os::unmap(memory_, memory_bytes_);
  memory_ = nullptr;
  os::unmap(source_memory_, kSources * kBlockBytes);
  source_memory_ = nullptr;
  sources_.fill({});
  held_pages_ = 0;
}

Staging::Slot* Staging::acquire_empty(const PageMask& pages) {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  const std::scoped_lock lock(mutex_);
  // Faults leave slots with a few pages that no whole block fits beside; those are emptied, not the full ones.
  Slot* best = nullptr;
  std::uint32_t best_count = ~0u;
  const std::size_t start = next_empty_;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = from(start, i);
    if (slot.in_use) continue;
    const std::uint32_t count = slot.filled.intersects(pages) ? slot.filled.count() : 0;
    if (count >= best_count) continue;
    best = &slot;
    best_count = count;
    if (count <= kFewPages) break;
  }
  if (best == nullptr) return nullptr;
  best->in_use = true;
  held_pages_ -= best->filled.count();
  if (best_count != 0) free_pages(*best);
  best->small = true;
  next_empty_ = static_cast<std::size_t>(best - slots_.data());
  return best;
}

Staging::Slot* Staging::acquire_filled(const PageMask& pages) {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  const std::scoped_lock lock(mutex_);
  if (held_pages_.load(std::memory_order_relaxed) == 0) return nullptr;
  const std::uint32_t wanted = pages.count();
  Slot* best = nullptr;
  std::uint32_t best_count = 0;
  const std::size_t start = next_filled_;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = from(start, i);
    if (slot.in_use || slot.huge) continue;
    const std::uint32_t count = (slot.filled & pages).count();
    if (count <= best_count) continue;
    best = &slot;
    best_count = count;
    if (count == wanted) break;
  }
  if (best == nullptr) return nullptr;
  best->in_use = true;
  held_pages_ -= best->filled.count();
  next_filled_ = static_cast<std::size_t>(best - slots_.data());
  return best;
}

Staging::Slot* Staging::acquire_for_huge() {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  Slot* best = nullptr;
  bool fresh = false;
  {
    const std::scoped_lock lock(mutex_);
    // One that is ready, else an empty one, else one with few pages.
    std::uint32_t best_cost = ~0u;
    const std::size_t start = next_empty_;
    for (std::size_t i = 0; i < slots_.size() && best_cost != 0; ++i) {
      Slot& slot = from(start, i);
      if (slot.in_use) continue;
      const std::uint32_t cost = slot.filled.count() * 2 + (slot.small ? 1 : 0);
      if (cost >= best_cost) continue;
      best = &slot;
      best_cost = cost;
    }
    if (best == nullptr) return nullptr;
    best->in_use = true;
    held_pages_ -= best->filled.count();
    fresh = best_cost == 0;
    next_empty_ = static_cast<std::size_t>(best - slots_.data());
  }
  if (fresh || renew(*best)) return best;
  release(best);
  return nullptr;
}

Staging::Slot* Staging::acquire_huge(const os::ProcessMemory& process) {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  Slot* found = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    const auto recycled = std::ranges::find_if(slots_, [](const Slot& slot) { return !slot.in_use && slot.huge; });
    if (recycled != slots_.end()) {
      recycled->in_use = true;
      held_pages_ -= recycled->filled.count();
      return &*recycled;
    }
    const auto source = std::ranges::find_if(sources_, [](const Slot& slot) { return !slot.in_use && !slot.small; });
    if (source == sources_.end()) return nullptr;
    found = &*source;
    found->in_use = true;
  }
  const VirtAddr memory{found->memory};
  found->filled = PageMask::all();
  found->huge = os::populate_write({memory, memory + kBlockBytes}) == 0 && process.is_huge(memory);
  if (found->huge) return found;
  release(found);
  return nullptr;
}

// What single pages have left behind would be in the way of a huge one. False: it can't be used.
bool Staging::renew(Slot& slot) const {
  slot.filled.clear();
  slot.huge = false;
  const VirtAddr memory{slot.memory};
  if (!slot.source) (void)uffd_->unregister_range({memory, memory + kBlockBytes});
  const int error = os::renew_private(slot.memory, kBlockBytes, slot.source);
  const bool good =
      error == 0 && (slot.source || uffd_->register_range({memory, memory + kBlockBytes}, os::kMissing) == 0);
  slot.small = !good;
  return good;
}

std::uint64_t Staging::limit_now() {
  if (held_pages_.load(std::memory_order_relaxed) > kAlwaysPages) {
    const std::uint64_t now = os::now_ns();
    std::uint64_t looked = looked_ns_.load(std::memory_order_relaxed);
    if (now - looked > kLookEveryNs && looked_ns_.compare_exchange_strong(looked, now)) {
      const os::SystemMemory memory = os::system_memory();
      short_of_memory_.store(memory.available < memory.total / kShortShare, std::memory_order_relaxed);
    }
  }
  return short_of_memory_.load(std::memory_order_relaxed) ? std::min(limit_pages_, kAlwaysPages) : limit_pages_;
}

void Staging::release(Slot* slot) {
  if (slot->huge && slot->filled != PageMask::all()) {
    slot->huge = false;
    slot->small = slot->filled.any();
  }
  if (slot->source) {
    if (slot->filled.any()) (void)renew(*slot);
    const std::scoped_lock lock(mutex_);
    slot->in_use = false;
    return;
  }
  const std::uint64_t limit = limit_now();
  const std::scoped_lock lock(mutex_);
  if (held_pages_ + slot->filled.count() > limit) free_pages(*slot);
  held_pages_ += slot->filled.count();
  slot->in_use = false;
  // A few at a time: others wait for the lock.
  for (std::uint32_t freed = 0; held_pages_ > limit && freed < 4; ++freed) {
    const auto victim =
        std::find_if(slots_.begin(), slots_.end(), [](const Slot& one) { return !one.in_use && one.filled.any(); });
    if (victim == slots_.end()) break;
    held_pages_ -= victim->filled.count();
    free_pages(*victim);
  }
}

bool Staging::refuse_fault(const os::Userfaultfd& uffd, VirtAddr address) const {
  const VirtAddr begin{memory_};
  if (memory_ == nullptr || address < begin || address >= begin + memory_bytes_) return false;
  const ByteRange page{address, address + kPageBytes};
  // Whoever moves a page there finds it taken, and drops what is there.
  (void)uffd.poison(page);
  uffd.wake(page);
  return true;
}

void Staging::free_pages(Slot& slot) {
  const VirtAddr base{slot.memory};
  slot.filled.for_each_run([&](PageRun run) {
    (void)os::drop_pages({base + run.offset(), base + run.offset() + run.bytes()});
  });
  slot.filled.clear();
  slot.huge = false;
}

}  // namespace uhmm::engine
