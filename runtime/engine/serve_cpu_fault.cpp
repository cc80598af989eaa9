// SPDX-License-Identifier: Apache-2.0
// Serving one fault of the CPU: find the block, decide how much, do it, wake.
#include <optional>

#include "runtime/engine/fault_parts.hpp"
#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/follow_changes.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/lost_pages.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/prefetch.hpp"
#include "runtime/os/thread.hpp"
#include "runtime/policy/placement.hpp"

namespace uhmm::engine {
namespace {

using trace::Counter;

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

// A fault where nothing is registered. Unregistered meanwhile: all is home, the access just has to be tried again. Of
// memory that is being moved: later. Else the kernel watches more than it was asked to.
void serve_unknown(Context& context, VirtAddr address) {
  if (context.staging.refuse_fault(context.uffd, address)) return;
  if (context.uffd.all_told() && !context.changes.pending()) watch_no_more(context, address);
  context.uffd.wake(page_at(address));
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
  const VirtAddr address = fault.address;
  std::optional<Operation> operation(std::in_place, context);
  Range* range = context.space.find_page(address);
  Block* block = range != nullptr ? context.space.block(address) : nullptr;
  if (block == nullptr) {
    operation.reset();
    if (range == nullptr)
      serve_unknown(context, address);
    else
      context.uffd.wake(page_at(address));  // no memory for the block: the access is tried again
    return true;
  }
  const std::uint64_t started = os::now_ns();
  const Segment segment = segment_of(*range, *block);
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
      // A huge page stays whole: it comes as one.
      const PageMask pages = seen.huge ? PageMask::all() : window_mask(segment, page, window.pages) & seen.away;
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
  // Nobody knows yet what belongs there: who deals with the change wakes who sleeps there.
  if (context.changes.concern(page_at(fault.address))) return;
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

}  // namespace uhmm::engine
