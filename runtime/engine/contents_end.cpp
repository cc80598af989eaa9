// SPDX-License-Identifier: Apache-2.0
// Contents end: dropped by the program, lost with a device, or refused by a pool's owner.
#include "runtime/engine/block_scope.hpp"
#include "runtime/engine/coherent.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/fork_keeper.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/lost_pages.hpp"
#include "runtime/engine/migrator.hpp"

namespace uhmm::engine {
namespace {

// `only_dropped`: of shared private pages, those whose copy in system memory the program itself has dropped.
Status discard_some(Context& context, const Segment& segment, PageMask pages, bool only_dropped) {
  Block& block = *segment.block;
  {
    BlockScope scope(context, segment);
    pages &= PageMask::of(segment.run);
    if (only_dropped) {
      pages &= block.shared();
      Result<PageMask> backed = backed_pages(context, segment, pages);
      if (!backed.ok()) return backed.status();
      pages -= *backed;
    }
    keep(context, segment, pages);
    for (BlockDevice* part : block.devices)
      if (part != nullptr) UHMM_TRY(revoke(context, DeviceIndex{part->device}, *part, pages));
    note_other_copies(context, segment, pages, kMaxDevices, UHMM_CAUSE_DISCARD);
    remove_bus_errors(context, segment, pages);
    replace_by_zeros(context, segment, pages & block.in_place);
    block.commit(PageEvent::Discard, pages, DeviceIndex{0});
    for (BlockDevice* part : block.devices) {
      if (part == nullptr) continue;
      free_memory(context, DeviceIndex{part->device}, segment, pages);
      refresh_list(context, DeviceIndex{part->device}, *part, false);
    }
    drop_cpu_pages(context, segment, pages);
    leave_to_copy(context, segment, pages);
  }
  if (segment.range->pages_out.load() == 0) disarm_if_home(context, *segment.range);
  return {};
}

}  // namespace

Status discard(Context& context, const Segment& segment, PageMask pages) {
  return discard_some(context, segment, pages, false);
}

Status abandon(Context& context, const Segment& segment, PageMask pages) {
  Block& block = *segment.block;
  BlockScope scope(context, segment);
  pages &= PageMask::of(segment.run);
  keep(context, segment, pages);
  for (BlockDevice* part : block.devices)
    if (part != nullptr) UHMM_TRY(revoke(context, DeviceIndex{part->device}, *part, pages));
  note_other_copies(context, segment, pages, kMaxDevices, UHMM_CAUSE_UNREGISTER);
  block.bus_error -= pages;
  block.in_place -= pages;
  block.commit(PageEvent::Discard, pages, DeviceIndex{0});
  for (BlockDevice* part : block.devices) {
    if (part == nullptr) continue;
    free_memory(context, DeviceIndex{part->device}, segment, pages);
    refresh_list(context, DeviceIndex{part->device}, *part, false);
  }
  leave_to_copy(context, segment, pages);
  return {};
}

Status discard_dropped(Context& context, const Segment& segment, PageMask pages) {
  return discard_some(context, segment, pages, true);
}

std::uint64_t lose(Context& context, const Segment& segment, DeviceIndex index) {
  Block& block = *segment.block;
  std::uint64_t count = 0;
  {
    BlockScope scope(context, segment);
    BlockDevice* part = block.find_device(index);
    if (part == nullptr) return 0;
    const PageMask mine = PageMask::of(segment.run);
    const PageMask held = part->resident & mine;
    const PageMask before = block.lost;
    keep(context, segment, held);  // the file of the device that was is there as long as its windows are
    note_freed(context, segment, index, held, UHMM_CAUSE_DEVICE_LOST);
    if (held.any()) block.commit(PageEvent::DeviceLost, held, index);
    forget_memory(context, index, *part, mine & (part->allocated | part->mapped));
    refresh_list(context, index, *part, false);
    const PageMask lost = block.lost.minus(before);
    replace_by_zeros(context, segment, lost & block.in_place);
    unprotect_pages(context, segment, held.minus(lost).minus(block.shared()));
    poison_pages(context, segment, lost);
    count = lost.count();
    record_runs(context, segment, lost, UHMM_EVENT_LOST, UHMM_CAUSE_DEVICE_LOST, index.processor());
  }
  if (segment.range->pages_out.load() == 0) disarm_if_home(context, *segment.range);
  return count;
}

void refuse(Context& context, const Segment& segment, PageMask pages) {
  Block& block = *segment.block;
  BlockScope scope(context, segment);
  pages &= PageMask::of(segment.run) & block.away();
  keep(context, segment, pages);
  for (BlockDevice* part : block.devices) {
    if (part == nullptr) continue;
    const PageMask theirs = part->resident & pages;
    if (theirs.none()) continue;
    const DeviceIndex index{part->device};
    (void)revoke(context, index, *part, theirs);
    note_freed(context, segment, index, theirs, UHMM_CAUSE_CPU_FAULT);
    block.commit(PageEvent::DeviceLost, theirs, index);
    refresh_list(context, index, *part, false);
  }
  replace_by_zeros(context, segment, pages & block.in_place);
  poison_pages(context, segment, pages);
}

}  // namespace uhmm::engine
