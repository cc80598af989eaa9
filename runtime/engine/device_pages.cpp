// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/device_pages.hpp"

#include "runtime/base/check.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/mirrors.hpp"

namespace uhmm::engine {
namespace {

// Ranges of a mask, for calls that take several at once.
class RunList {
 public:
  static constexpr std::size_t kMost = kPagesPerBlock / 2;
  RunList(const Block& block, const PageMask& pages) {
    pages.for_each_run([&](PageRun run) { ranges_[count_++] = block.range_of(run); });
  }
  std::span<const ByteRange> span() const { return {ranges_, count_}; }

 private:
  ByteRange ranges_[kMost];
  std::size_t count_ = 0;
};

void unmap_now(Device& device, BlockDevice& part, const PageMask& pages, Status& status) {
  const RunList runs(*part.block, pages);
  status = device.unmap(runs.span());
  if (!status.ok()) return;
  part.mapped -= pages;
  part.writable -= pages;
}

}  // namespace

Status attach(Context& context, Range& range, DeviceIndex index) {
  const std::uint32_t bit = 1u << index.value;
  if ((range.attached.load(std::memory_order_acquire) & bit) != 0) return {};
  const std::scoped_lock lock(range.arm_mutex);
  if ((range.attached.load(std::memory_order_relaxed) & bit) != 0) return {};
  Device* device = context.healthy(index);
  if (device == nullptr) return unusable(context, index);
  backend::Window window{range.pages, nullptr};
  {
    const std::scoped_lock attach_lock(context.slot(index).attach_mutex);
    UHMM_TRY(range.mirrored.load() ? mirror(context, range, index, *device) : device->attach({&window, 1}));
  }
  range.windows[index.value] = window;
  range.attached.fetch_or(bit, std::memory_order_release);
  context.slot(index).unattached.fetch_sub(1);
  context.slot(index).gate.note_change();
  return {};
}

Status attach_all(Context& context, DeviceIndex index) {
  if (context.slot(index).unattached.load() == 0) return {};
  for (const auto& [begin, range] : context.space.ranges())
    if (!range->closing.load()) UHMM_TRY(attach(context, *range, index));
  return {};
}

void detach_window(Range& range, Device& device, DeviceIndex index, ByteRange owned) {
  if (!range.mirrored.load())
    device.detach(range.windows[index.value], owned);
  else if (!owned.empty())
    device.unmirror(owned);
}

bool must_ask(Context& context, DeviceIndex index, const BlockDevice& part, const PageMask& pages) {
  const Device* device = context.healthy(index);
  if (!context.slot(index).capabilities.faulting) return false;  // asking is of no use, waiting for its work is
  return device != nullptr && part.mapped.intersects(pages) && device->busy();
}

Status revoke(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages) {
  const PageMask mapped = part.mapped & pages;
  Device* device = context.healthy(index);
  if (!context.slot(index).capabilities.faulting) {
    // Its entries are never unmapped one by one: a running kernel reaches all that is there, whatever the masks say,
    // and none starts before everything is there again.
    if (device != nullptr && (mapped | (part.resident & pages)).any()) context.slot(index).gate.take();
    part.mapped -= mapped;
    part.writable -= mapped;
    return {};
  }
  if (mapped.none() || device == nullptr) return {};
  // The entries become stale: they may go on existing as long as nothing runs that could use them.
  if (context.slot(index).memory.defer_unmap(&part, [&] { return device->busy(); })) return {};
  Status status;
  unmap_now(*device, part, mapped, status);
  // A device that died meanwhile reaches nothing any more.
  if (!status.ok() && device->lost()) return {};
  return status;
}

Status unmap_resident(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages) {
  const PageMask mapped = part.mapped & pages;
  Device* device = context.healthy(index);
  if (mapped.none() || device == nullptr) return {};
  Status status;
  unmap_now(*device, part, mapped, status);
  if (!status.ok() && device->lost()) return {};
  return status;
}

Status revoke_write(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages) {
  const PageMask writable = part.mapped & part.writable & pages;
  Device* device = context.healthy(index);
  if (writable.none() || device == nullptr) return {};
  Status status;
  writable.for_each_run([&](PageRun run) {
    if (!status.ok()) return;
    status = device->protect(part.block->range_of(run), backend::MapAccess::Read);
    if (status.ok()) part.writable.reset(run);
  });
  if (!status.ok() && device->lost()) return {};
  return status;
}

Status flush_stale(Context& context, DeviceIndex index) {
  DeviceSlot& slot = context.slot(index);
  Device* device = context.healthy(index);
  while (BlockDevice* part = slot.memory.pop_stale()) {
    if (device == nullptr) continue;
    const std::scoped_lock lock(part->block->mutex);
    const PageMask stale = part->mapped.minus(part->resident);
    // What forked children want as it is has entries that nobody has changed yet.
    Status status = revoke_write(context, index, *part, part->resident & part->block->owed);
    if (stale.none() && status.ok()) continue;
    if (status.ok()) unmap_now(*device, *part, stale, status);
    if (!status.ok()) {
      slot.memory.push_stale(part);
      return status;
    }
  }
  return {};
}

void map_resident(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages, bool writable) {
  Device* device = context.healthy(index);
  if (device == nullptr) return;
  UHMM_CHECK(part.resident.contains(pages), "only resident pages are mapped");
  pages.for_each_run([&](PageRun run) {
    const PageMask mask = PageMask::of(run);
    const PageMask there = mask & part.mapped;
    mask.minus(there).for_each_run([&](PageRun absent) {
      // A call that fails half way leaves some entries: "mapped" means perhaps, so it is set all the same. The fault of
      // a page that has none maps it again.
      (void)device->map(part.block->range_of(absent),
                        writable ? backend::MapAccess::ReadWrite : backend::MapAccess::Read);
      part.mapped.set(absent);
      if (writable) part.writable.set(absent);
    });
    // Entries from an earlier visit: give them the right access.
    const PageMask grow = writable ? there.minus(part.writable) : PageMask{};
    grow.for_each_run([&](PageRun grown) {
      (void)device->protect(part.block->range_of(grown), backend::MapAccess::ReadWrite);
      part.writable.set(grown);
    });
    if (!writable) (void)revoke_write(context, index, part, there);
  });
}

void free_memory(Context& context, DeviceIndex index, const Segment& segment, const PageMask& pages, Freeing how) {
  BlockDevice& part = *segment.block->find_device(index);
  PageMask freed = part.allocated & pages & PageMask::of(segment.run);
  if (freed.none()) return;
  UHMM_CHECK(!part.resident.intersects(freed), "memory of current pages is not freed");
  if (Device* device = context.slot(index).device; device != nullptr && how == Freeing::Now) {
    PageMask kept;
    freed.for_each_run([&](PageRun run) {
      if (!device->free_memory(segment.range->windows[index.value], segment.block->range_of(run)).ok()) kept.set(run);
    });
    freed -= kept;  // stays retained, and perhaps mapped
  }
  // Freeing the memory also ends what entries there were.
  part.mapped -= freed;
  part.writable -= freed;
  part.allocated -= freed;
  context.slot(index).memory.release(part.pool, freed.count());
}

void forget_memory(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages) {
  const PageMask freed = part.allocated & pages;
  part.allocated -= freed;
  part.mapped -= pages;
  part.writable -= pages;
  context.slot(index).memory.release(part.pool, freed.count());
}

void refresh_list(Context& context, DeviceIndex index, BlockDevice& part, bool used) {
  context.slot(index).memory.refresh(&part, part.resident.any(), part.allocated.any(), used);
}

}  // namespace uhmm::engine
