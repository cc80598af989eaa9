// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/kernel_access.hpp"

#include <mutex>

#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/page_details.hpp"

namespace uhmm::engine {
namespace {

// Pages of one block, from `at` on, of one range.
struct Part {
  ByteRange pages;  // empty: nothing is registered up to the end
  os::KernelFaults faults;
};

Part look(Context& context, ByteRange left, bool write) {
  const Operation operation(context);
  Part part;
  Range* range = context.space.find_page(left.begin);
  if (range == nullptr) {
    const auto next = context.space.ranges().lower_bound(left.begin.value);
    if (next == context.space.ranges().end()) return part;
    range = next->second;
  }
  ByteRange pages = range->pages.intersect(left);
  if (pages.empty()) return part;
  pages.end = std::min(pages.end, pages.begin.block_floor() + kBlockBytes);
  part.pages = pages;
  // What nobody watches the kernel serves itself.
  const std::scoped_lock lock(range->arm_mutex);
  if (range->armed) part.faults = os::kernel_faults(pages, write);
  return part;
}

}  // namespace

Readiness make_ready_for_kernel(Context& context, ByteRange bytes, bool write) {
  Readiness ready;
  ByteRange left = bytes.to_pages();
  while (left.begin < left.end) {
    const Part part = look(context, left, write);
    if (part.pages.empty()) break;
    ready.managed = true;
    const std::uint32_t first = part.pages.begin.page_in_block();
    const PageMask faults = part.faults.absent | part.faults.write_protected;
    for (std::uint32_t page = faults.next_set(first); page < kPagesPerBlock; page = faults.next_set(page + 1)) {
      os::UffdFault fault;
      fault.address = part.pages.begin.block_floor() + std::size_t{page} * kPageBytes;
      // With one fault a neighbour may have come too; it is served once more, which finds nothing to do.
      fault.is_write = write;
      fault.is_write_protect = part.faults.write_protected.test(page);
      serve_cpu_fault(context, fault);
      ready.served = true;
    }
    left.begin = part.pages.end;
  }
  return ready;
}

}  // namespace uhmm::engine
