// SPDX-License-Identifier: Apache-2.0
// Serving one fault: find the block, decide how much, do it, wake.
#include "runtime/base/log.hpp"
#include "runtime/engine/evictor.hpp"
#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/lost_pages.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/prefetch.hpp"
#include "runtime/os/thread.hpp"
#include "runtime/policy/fault_around.hpp"
#include "runtime/policy/placement.hpp"

namespace uhmm::engine {
namespace {

using trace::Counter;

// A device reads far more per fault than a CPU does before it faults again elsewhere.
constexpr std::uint32_t kSmallestDeviceWindow = 16;

ByteRange page_at(VirtAddr address) { return {address, address + kPageBytes}; }

Segment segment_of(Context& context, Range& range, Block& block) {
  (void)context;
  const ByteRange part = range.pages.intersect({block.base, block.base + kBlockBytes});
  return {&range, &block, PageRun{part.begin.page_in_block(), static_cast<std::uint32_t>(part.bytes() >> kPageShift)}};
}

// The pages that a window of `count` pages from `page` on covers inside the segment.
PageMask window_mask(const Segment& segment, std::uint32_t page, std::uint32_t count) {
  const std::uint32_t end = std::min(segment.run.end(), page + count);
  return PageMask::of({page, end - page});
}

std::uint32_t most_pages(const Context& context) {
  return static_cast<std::uint32_t>(context.config.fault_around >> kPageShift);
}

// Windows larger than a page end where a larger page would: that keeps later windows aligned.
policy::FaultWindow decide(Context& context, state::Locality& locality, const Segment& segment, std::uint32_t page,
                           std::uint32_t smallest) {
  const std::uint64_t number = (segment.block->base.value >> kPageShift) + page;
  const std::uint32_t most = most_pages(context);
  policy::FaultWindow window = policy::fault_window(locality, number, std::min(smallest, most), most);
  const std::uint32_t room = segment.run.end() - page;
  if (window.pages > room) {
    policy::window_ended(locality, number + window.pages, number + room);
    window.pages = room;
  }
  return window;
}

// What the block says about the page that faulted.
struct Look {
  PageKind kind = PageKind::System;
  PageMask away;
  PageMask shared;
  std::uint32_t holder = kMaxDevices;
};
Look look_at(Block& block, std::uint32_t page) {
  const std::scoped_lock lock(block.mutex);
  return {block.kind_of(page), block.away(), block.shared(), block.holder(page)};
}

// The CPU read a page that is current on both sides and found no entry.
void serve_shared_read(Context& context, const Segment& segment, std::uint32_t page) {
  const PageMask one = PageMask::of({page, 1});
  if (segment.range->backing == state::Backing::Shared) {
    map_shared_copy(context, segment, one);
    return;
  }
  // The program dropped the page itself (MADV_DONTNEED)? So does the device's copy end, and it reads as zeros.
  (void)discard_dropped(context, segment, one);
  context.uffd.wake(page_at(segment.block->base + std::size_t{page} * kPageBytes));
}

// The entry that the masks speak of may be missing (a call that failed half way): the faulting page gets it for sure.
void map_again(Context& context, Block& block, DeviceIndex index, std::uint32_t page) {
  const std::scoped_lock lock(block.mutex);
  const BlockDevice* part = block.find_device(index);
  Device* device = context.healthy(index);
  if (part == nullptr || device == nullptr || !part->resident.test(page) || !part->mapped.test(page)) return;
  (void)device->map(block.range_of({page, 1}),
                    part->writable.test(page) ? backend::MapAccess::ReadWrite : backend::MapAccess::Read);
}

void refuse_access(Device& device, VirtAddr address) {
  // Where it fails the page is mapped by now: the kernel looks again.
  if (!device.poison(page_at(address)).ok()) device.wake(page_at(address));
}

struct CpuService {
  Context& context;
  const os::UffdFault& fault;
  bool asked = false;    // the pool's owner was asked already
  bool refused = false;  // and said no
  std::uint32_t ask_pool = 0;
  std::uint32_t ask_device = 0;

  // True when served; false when the owner must be asked first.
  bool serve();
};

bool CpuService::serve() {
  const Operation operation(context);
  const VirtAddr address = fault.address;
  Range* range = context.space.find_page(address);
  Block* block = range != nullptr ? context.space.block(address) : nullptr;
  if (block == nullptr) {
    // Unregistered meanwhile: all is home, the access just has to be tried again.
    if (!context.staging.refuse_fault(context.uffd, address)) context.uffd.wake(page_at(address));
    return true;
  }
  const std::uint64_t started = os::now_ns();
  const Segment segment = segment_of(context, *range, *block);
  const std::uint32_t page = address.page_in_block();
  const Look seen = look_at(*block, page);
  context.count(*range, Counter::CpuFaults, 1);
  switch (seen.kind) {
    case PageKind::Device:
    case PageKind::Exclusive: {
      if (const std::uint32_t pool = range->pool.load(); pool != 0 && !asked) {
        ask_pool = pool;
        ask_device = seen.holder;
        return false;
      }
      if (refused) {
        refuse(context, segment, PageMask::of({page, 1}));
        return true;
      }
      const policy::FaultWindow window = decide(context, range->cpu_locality, segment, page, 1);
      const PageMask pages = window_mask(segment, page, window.pages) & seen.away;
      const bool duplicate = !fault.is_write && policy::keeps_copy(range->advice, DeviceIndex{seen.holder}.processor());
      const Outcome out =
          to_system(context, segment, pages, duplicate ? Want::Duplicate : Want::Move, UHMM_CAUSE_CPU_FAULT);
      if (!out.pages.test(page)) context.uffd.wake(page_at(address));
      if (window.streaming())
        prefetch_to_system(context, segment.block->base + (std::size_t{page} + window.pages) * kPageBytes,
                           *window.stream);
      break;
    }
    case PageKind::Shared: {
      const bool shared_memory = range->backing == state::Backing::Shared;
      if (fault.is_write_protect || (fault.is_write && shared_memory)) {
        const policy::FaultWindow window = decide(context, range->cpu_locality, segment, page, 1);
        const PageMask pages = window_mask(segment, page, window.pages) & seen.shared;
        const Outcome out = end_sharing(context, segment, pages, UHMM_CAUSE_COHERENCE);
        if (!out.pages.test(page)) context.uffd.wake(page_at(address));
        break;
      }
      context.count(*range, Counter::FaultsMerged, 1);
      serve_shared_read(context, segment, page);
      break;
    }
    case PageKind::Lost: {
      const std::scoped_lock lock(block->mutex);
      if (block->kind_of(page) == PageKind::Lost) poison_pages(context, segment, PageMask::of({page, 1}));
      context.uffd.wake(page_at(address));
      break;
    }
    case PageKind::None:
    case PageKind::System: {
      const std::scoped_lock lock(block->mutex);
      // Between the look and now a device may have taken the page: then the access faults again.
      if (block->kind_of(page) != PageKind::System) {
        context.uffd.wake(page_at(address));
        break;
      }
      if (fault.is_write_protect) {
        unprotect_pages(context, segment, PageMask::of({page, 1}));
        context.count(*range, Counter::FaultsMerged, 1);
        break;
      }
      const policy::FaultWindow window = decide(context, range->cpu_locality, segment, page, 1);
      const PageMask pages = window_mask(segment, page, window.pages).minus(block->on_devices()).minus(block->lost);
      Result<PageMask> backed = backed_pages(context, segment, pages);
      const bool shared = range->backing == state::Backing::Shared;
      const PageMask absent = backed.ok() && !shared ? pages.minus(*backed) : pages;
      if (absent.test(page)) {
        serve_home_fault(context, segment, absent);
      } else {
        context.count(*range, Counter::FaultsMerged, 1);
        context.uffd.wake(page_at(address));
      }
      break;
    }
  }
  context.record(UHMM_EVENT_CPU_FAULT, UHMM_CAUSE_CPU_FAULT, page_at(address), 1, UHMM_CPU, os::now_ns() - started);
  return true;
}

}  // namespace

void serve_cpu_fault(Context& context, const os::UffdFault& fault) {
  CpuService service{context, fault};
  while (!service.serve()) {
    uhmm_fault_info info{};
    info.size = sizeof(info);
    info.address = fault.address.value;
    info.device = DeviceIndex{service.ask_device}.processor();
    info.is_write = fault.is_write ? 1 : 0;
    service.refused = ask_owner(context, service.ask_pool, info) == UHMM_FAULT_SIGBUS;
    service.asked = true;
  }
}

void serve_device_fault(Context& context, DeviceIndex index, const backend::DeviceFault& fault) {
  // While fork() is under way nothing leaves system memory; the device is told to retry when it is over.
  if (!context.fork_gate.try_enter()) return;
  {
    const Operation operation(context);
    const std::uint64_t started = os::now_ns();
    Device* device = context.healthy(index);
    Range* range = device != nullptr ? context.space.find_page(fault.address) : nullptr;
    const bool managed = range != nullptr && !range->closing.load();
    Block* block = managed ? context.space.block(fault.address) : nullptr;
    if (managed && block == nullptr) {
      device->wake(page_at(fault.address));  // out of metadata memory: not the kernel's fault, it tries again
    } else if (block == nullptr) {
      // Nothing the program manages: the kernel's access is an error.
      if (device != nullptr) refuse_access(*device, fault.address);
    } else {
      const Segment segment = segment_of(context, *range, *block);
      const std::uint32_t page = fault.address.page_in_block();
      const Look seen = look_at(*block, page);
      context.count(*range, Counter::DeviceFaults, 1);
      if (seen.kind == PageKind::Lost) {
        refuse_access(*device, fault.address);
      } else {
        const policy::FaultWindow window =
            decide(context, range->device_locality, segment, page, kSmallestDeviceWindow);
        PageMask pages = window_mask(segment, page, window.pages);
        ToDevice request{index, Want::Move, UHMM_CAUSE_DEVICE_FAULT, PageMask::all()};
        if (fault.is_protection) {
          policy::learn_device_write(range->device_locality, true, window.pages);
          pages &= seen.shared;
          pages.set(page);
        } else if (!fault.is_write && !policy::moves_on_read(*range)) {
          request.want = Want::Duplicate;
          // A copy that another device should keep becomes the one to duplicate.
          if (seen.kind == PageKind::Device && seen.holder != index.value &&
              policy::keeps_copy(range->advice, DeviceIndex{seen.holder}.processor()))
            (void)to_system(context, segment, pages & seen.away, Want::Duplicate, UHMM_CAUSE_DEVICE_FAULT);
        }
        // Fault-around brings what has contents; it gives backing to more than one page only along a confirmed walk.
        if (window.pages <= kSmallestDeviceWindow) request.populate = PageMask::of({page, 1});
        bool refused = false;
        Outcome out = migrate_to_device(context, segment, pages, request, block->range_of({page, 1}));
        const auto served = [&] {
          const std::scoped_lock lock(block->mutex);
          const BlockDevice* part = block->find_device(index);
          return part != nullptr && part->resident.test(page);
        };
        if (!served()) {
          // Too much at once, or the kernel has pinned the page for a moment: the one page, with its own room.
          const PageMask one = PageMask::of({page, 1});
          out = migrate_to_device(context, segment, one, request, block->range_of({page, 1}));
          if (!served() && !out.pages.test(page)) {
            make_room(context, segment, page, index);
            out = migrate_to_device(context, segment, one, request, block->range_of({page, 1}));
          }
          refused = !served() && out.pages.test(page) && context.slot(index).patience.ends(fault.address, os::now_ns());
        }
        if (refused) {
          log::write(log::Level::Error,
                     "a kernel of device %u can't have the page at %#lx: the program's kernel keeps it pinned (I/O)",
                     index.processor(), fault.address.value);
          refuse_access(*device, fault.address);
        }
        map_again(context, *block, index, page);
        device->wake(page_at(fault.address));
        if (window.streaming()) {
          if (request.want == Want::Duplicate) policy::learn_device_write(range->device_locality, false, 1);
          prefetch_to_device(context, segment.block->base + (std::size_t{page} + window.pages) * kPageBytes,
                             *window.stream, index, request.want);
        }
      }
      context.record(UHMM_EVENT_DEVICE_FAULT, UHMM_CAUSE_DEVICE_FAULT, page_at(fault.address), 1, index.processor(),
                     os::now_ns() - started);
    }
  }
  context.fork_gate.leave();
}

}  // namespace uhmm::engine
