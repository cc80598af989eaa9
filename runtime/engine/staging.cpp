// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/staging.hpp"

#include "runtime/base/arena.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/os/memory.hpp"

namespace uhmm::engine {

Staging::Staging() : slots_(Arena::instance().resource()) {}

Status Staging::open(const os::Userfaultfd& uffd, std::uint64_t bytes, std::uint32_t users) {
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
  return {};
}

void Staging::close() {
  slots_.clear();
  slots_.shrink_to_fit();
  os::unmap(memory_, memory_bytes_);
  memory_ = nullptr;
  held_pages_ = 0;
}

Staging::Slot* Staging::acquire_empty(const PageMask& pages) {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  const std::scoped_lock lock(mutex_);
  Slot* free_slot = nullptr;
  for (Slot& slot : slots_) {
    if (slot.in_use) continue;
    if (!slot.filled.intersects(pages)) {
      slot.in_use = true;
      held_pages_ -= slot.filled.count();
      return &slot;
    }
    free_slot = &slot;
  }
  if (free_slot == nullptr) return nullptr;
  free_slot->in_use = true;
  held_pages_ -= free_slot->filled.count();
  free_pages(*free_slot);
  return free_slot;
}

Staging::Slot* Staging::acquire_filled(const PageMask& pages) {
  if (inject::should_fail(inject::Point::StagingAcquire)) return nullptr;
  const std::scoped_lock lock(mutex_);
  const std::uint32_t wanted = pages.count();
  Slot* best = nullptr;
  std::uint32_t best_count = 0;
  for (Slot& slot : slots_) {
    if (slot.in_use) continue;
    const std::uint32_t count = (slot.filled & pages).count();
    if (count <= best_count) continue;
    best = &slot;
    best_count = count;
    if (count == wanted) break;
  }
  if (best == nullptr) return nullptr;
  best->in_use = true;
  held_pages_ -= best->filled.count();
  return best;
}

void Staging::release(Slot* slot) {
  const std::scoped_lock lock(mutex_);
  if (held_pages_ + slot->filled.count() > limit_pages_) free_pages(*slot);
  held_pages_ += slot->filled.count();
  slot->in_use = false;
}

void Staging::free_pages(Slot& slot) {
  const VirtAddr base{slot.memory};
  slot.filled.for_each_run([&](PageRun run) {
    (void)os::drop_pages({base + run.offset(), base + run.offset() + run.bytes()});
  });
  slot.filled.clear();
}

}  // namespace uhmm::engine
