// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/block.hpp"

#include <algorithm>

#include "runtime/base/arena.hpp"
#include "runtime/base/check.hpp"

namespace uhmm::state {

Block::~Block() {
  for (BlockDevice* part : devices) destroy_in_arena(part);
}

BlockDevice* Block::device(DeviceIndex index) {
  BlockDevice*& part = devices[index.value];
  if (part == nullptr) {
    part = make_in_arena<BlockDevice>();
    if (part == nullptr) return nullptr;
    part->block = this;
    part->device = index.value;
  }
  return part;
}

PageMask Block::on_devices() const {
  PageMask pages;
  for (const BlockDevice* part : devices)
    if (part != nullptr) pages |= part->resident;
  return pages;
}

std::uint32_t Block::holder(std::uint32_t page) const {
  for (std::uint32_t i = 0; i < kMaxDevices; ++i)
    if (devices[i] != nullptr && devices[i]->resident.test(page)) return i;
  return kMaxDevices;
}

PageKind Block::kind_of(std::uint32_t page) const {
  if (lost.test(page)) return PageKind::Lost;
  if (holder(page) == kMaxDevices) return PageKind::System;
  if (system.test(page)) return PageKind::Shared;
  return exclusive.test(page) ? PageKind::Exclusive : PageKind::Device;
}

bool Block::is_huge() const {
  return std::ranges::any_of(devices, [](const BlockDevice* part) { return part != nullptr && part->huge; });
}

void Block::split_huge() {
  for (BlockDevice* part : devices)
    if (part != nullptr) part->huge = false;
}

void Block::commit(PageEvent event, const PageMask& pages, DeviceIndex index) {
#ifdef UHMM_CHECKS
  const StateSet allowed = allowed_from(event);
  pages.for_each_run([&](PageRun run) {
    for (std::uint32_t page = run.first; page < run.end(); ++page) {
      const PageKind kind = kind_of(page);
      // The kernel alone tells none from system.
      const bool fits = kind == PageKind::System
                            ? allowed.contains(PageKind::System) || allowed.contains(PageKind::None)
                            : allowed.contains(kind);
      UHMM_CHECK(fits, page_event_text(event));
    }
  });
#endif
  const auto forget_copies = [&](std::uint32_t except) {
    for (BlockDevice* part : devices)
      if (part != nullptr && part->device != except) part->resident -= pages;
  };
  BlockDevice* own = devices[index.value];
  switch (event) {
    case PageEvent::Populate: break;
    case PageEvent::PopulateOnDevice:
    case PageEvent::MigrateToDevice:
    case PageEvent::DeviceWrite:
    case PageEvent::MakeExclusive:
      forget_copies(index.value);
      own->resident |= pages;
      system -= pages;
      exclusive -= pages;
      if (event == PageEvent::MakeExclusive) exclusive |= pages;
      break;
    case PageEvent::DuplicateToDevice:
      own->resident |= pages;
      system |= pages;
      break;
    case PageEvent::DuplicateToSystem:
      system |= pages;
      exclusive -= pages;
      break;
    case PageEvent::CpuWrite:
    case PageEvent::MigrateToSystem:
    case PageEvent::Revoke:
    case PageEvent::Unregister:
      forget_copies(kMaxDevices);
      system -= pages;
      exclusive -= pages;
      break;
    case PageEvent::DropDuplicate:
      own->resident -= pages;
      system &= on_devices() | PageMask::all().minus(pages);
      break;
    case PageEvent::Discard:
      forget_copies(kMaxDevices);
      system -= pages;
      exclusive -= pages;
      lost -= pages;
      break;
    case PageEvent::DeviceLost: {
      const PageMask only_there = pages & own->resident & PageMask::all().minus(system);
      own->resident -= pages;
      system &= on_devices();
      exclusive -= only_there;
      lost |= only_there;
      break;
    }
  }
  for (BlockDevice* part : devices)
    if (part != nullptr && part->huge) part->huge = part->resident == PageMask::all() && system.none();
}

}  // namespace uhmm::state
