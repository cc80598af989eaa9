// SPDX-License-Identifier: Apache-2.0
// Serving one fault of a device: may it have the page, how much comes along, bring it, wake.
#include "runtime/base/log.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/evictor.hpp"
#include "runtime/engine/fault_parts.hpp"
#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/permissions.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/prefetch.hpp"
#include "runtime/os/thread.hpp"
#include "runtime/policy/placement.hpp"

namespace uhmm::engine {
namespace {

using trace::Counter;

// A device reads far more per fault than a CPU does before it faults again elsewhere.
constexpr std::uint32_t kSmallestDeviceWindow = 16;

// The entry that the masks speak of may be missing (a call that failed half way): the faulting page gets it for sure.
void map_again(Context& context, Block& block, DeviceIndex index, std::uint32_t page) {
  const std::scoped_lock lock(block.mutex);
  const BlockDevice* part = block.find_device(index);
  Device* device = context.healthy(index);
  if (part == nullptr || device == nullptr || !part->resident.test(page) || !part->mapped.test(page)) return;
  (void)device->map(block.range_of({page, 1}),
                    part->writable.test(page) ? backend::MapAccess::ReadWrite : backend::MapAccess::Read);
}

// The kernel's access is an error. `block`: the page's, if it is managed; an entry that allows less goes first.
void refuse_access(Context& context, DeviceIndex index, Block* block, VirtAddr address) {
  Device& device = *context.slot(index).device;
  if (block != nullptr) {
    const std::scoped_lock lock(block->mutex);
    if (BlockDevice* part = block->find_device(index))
      (void)revoke(context, index, *part, PageMask::of({address.page_in_block(), 1}));
  }
  // Where it fails the page is mapped by now: the kernel looks again.
  if (!device.poison(page_at(address)).ok()) device.wake(page_at(address));
}

struct DeviceService {
  Context& context;
  const DeviceIndex index;
  Device& device;
  const backend::DeviceFault& fault;
  const Segment segment;
  const std::uint32_t page;
  const bool writes = fault.is_write || fault.is_protection;

  void serve();

 private:
  Outcome bring(const PageMask& pages, const ToDevice& request) {
    return migrate_to_device(context, segment, pages, request, segment.block->range_of({page, 1}));
  }
  // Can the device go on?
  bool served() const {
    const std::scoped_lock lock(segment.block->mutex);
    const BlockDevice* part = segment.block->find_device(index);
    return part != nullptr && part->resident.test(page) && (!writes || part->writable.test(page));
  }
  PageMask allowed(const PageMask& pages) const {
    const Permissions found = permissions_of(context, segment);
    return pages & (writes ? found.writable : found.readable);
  }
  bool bring_one(const ToDevice& request);
};

// The one page, after it did not come with others. False: the access has to fail.
bool DeviceService::bring_one(const ToDevice& request) {
  const PageMask one = PageMask::of({page, 1});
  if (allowed(one).none()) return false;
  // Too much at once, or the kernel has pinned the page for a moment.
  Outcome out = bring(one, request);
  if (served()) return true;
  if (out.status.code() == UHMM_ERR_NOT_REGISTERED) {
    log::write(log::Level::Error, "a kernel of device %u can't have the page at %#lx: %s", index.processor(),
               fault.address.value, last_detail());
    return false;
  }
  if (!out.pages.test(page)) {
    make_room(context, segment, page, index);
    out = bring(one, request);
  }
  if (!served() && guards_of(context, segment).test(page)) return false;
  if (served() || !out.pages.test(page) || !context.slot(index).patience.ends(fault.address, os::now_ns())) return true;
  log::write(log::Level::Error, "a kernel of device %u can't have the page at %#lx: it stays pinned for I/O",
             index.processor(), fault.address.value);
  return false;
}

void DeviceService::serve() {
  Range& range = *segment.range;
  const Look seen = look_at(*segment.block, page);
  context.count(range, Counter::DeviceFaults, 1);
  if (seen.kind == PageKind::Lost) {
    refuse_access(context, index, segment.block, fault.address);
    return;
  }
  const policy::FaultWindow window = decide(context, range.device_locality, segment, page, kSmallestDeviceWindow);
  // A huge page of the program's comes as one.
  const bool huge = seen.kind == PageKind::System && range.backing == state::Backing::Private &&
                    context.process.is_huge(segment.block->base);
  PageMask pages = huge ? PageMask::all() : window_mask(segment, page, window.pages);
  ToDevice request{index, Want::Move, UHMM_CAUSE_DEVICE_FAULT, PageMask::all()};
  if (fault.is_protection) {
    policy::learn_device_write(range.device_locality, true, window.pages);
    pages &= seen.shared;
    pages.set(page);
  } else if (!fault.is_write && !policy::moves_on_read(range)) {
    request.want = Want::Duplicate;
    // A copy that another device should keep becomes the one to duplicate.
    if (seen.kind == PageKind::Device && seen.holder != index.value &&
        policy::keeps_copy(range.advice, DeviceIndex{seen.holder}.processor()))
      (void)to_system(context, segment, pages & seen.away, Want::Duplicate, UHMM_CAUSE_DEVICE_FAULT);
  }
  // Fault-around brings what has contents; it gives backing to more than one page only along a confirmed walk.
  if (window.pages <= kSmallestDeviceWindow) request.populate = PageMask::of({page, 1});
  // A write that is not allowed may not even take pages from where they are.
  if (writes) pages = allowed(pages);
  if (pages.test(page)) (void)bring(pages, request);
  if (!served() && device.busy() && !bring_one(request)) refuse_access(context, index, segment.block, fault.address);
  map_again(context, *segment.block, index, page);
  device.wake(page_at(fault.address));
  if (!window.streaming()) return;
  if (request.want == Want::Duplicate) policy::learn_device_write(range.device_locality, false, 1);
  prefetch_to_device(context, segment.block->base + (std::size_t{page} + window.pages) * kPageBytes, *window.stream,
                     index, request.want);
}

}  // namespace

void serve_device_fault(Context& context, DeviceIndex index, const backend::DeviceFault& fault) {
  // Nobody knows yet what belongs there; the device is told to retry when that is known.
  if (context.changes.turns_away(page_at(fault.address))) return;
  // While fork() is under way nothing leaves system memory; the device is told to retry when it is over.
  if (!context.fork_gate.try_enter()) return;
  {
    const Operation operation(context);
    const std::uint64_t started = os::now_ns();
    Device* device = context.healthy(index);
    Range* range = device != nullptr ? context.space.find_page(fault.address) : nullptr;
    // Read, but served with another one's window meanwhile, and its kernel has ended: nobody waits for the page, and to
    // take it from the CPU now would only move it back and forth.
    if (device != nullptr && !device->busy()) {
      device->wake(page_at(fault.address));
      range = nullptr;
      device = nullptr;
    }
    // A fault from before the device got a mapping of the program's own pages.
    if (range != nullptr && range->mirrored.load()) {
      device->wake(page_at(fault.address));
      range = nullptr;
      device = nullptr;
    }
    const bool managed = range != nullptr && !range->closing.load();
    Block* block = managed ? context.space.block(fault.address) : nullptr;
    if (managed && block == nullptr) {
      device->wake(page_at(fault.address));  // out of metadata memory: not the kernel's fault, it tries again
    } else if (block == nullptr) {
      // Nothing the program manages.
      if (device != nullptr) refuse_access(context, index, nullptr, fault.address);
    } else {
      DeviceService{context, index, *device, fault, segment_of(*range, *block), fault.address.page_in_block()}.serve();
      context.record(UHMM_EVENT_DEVICE_FAULT, UHMM_CAUSE_DEVICE_FAULT, page_at(fault.address), 1, index.processor(),
                     os::now_ns() - started);
    }
  }
  context.fork_gate.leave();
}

}  // namespace uhmm::engine
