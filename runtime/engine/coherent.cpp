// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/coherent.hpp"

#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/host_pages.hpp"

namespace uhmm::engine {
void map_in_place(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages) {
  Device* device = context.healthy(index);
  if (device == nullptr || !device->capabilities().coherent || segment.range->backing != state::Backing::Private)
    return;
  pages.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    if (!device->map_host(segment.range->windows[index.value], range).ok()) return;
    segment.block->in_place.set(run);
    // Whoever slept in a fault on the old mapping tries again on the new one.
    context.uffd.wake(range);
  });
}

PageMask bring_home_from_place(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages,
                               Status& status) {
  BlockDevice& part = *segment.block->find_device(index);
  Device& device = *context.slot(index).device;
  PageMask came;
  status = revoke(context, index, part, pages);
  pages.for_each_run([&](PageRun run) {
    if (!status.ok()) return;
    const ByteRange range = segment.block->range_of(run);
    std::byte* fresh = os::map_plain(run.bytes());
    if (fresh == nullptr) {
      status = fail(UHMM_ERR_NO_MEMORY, "no address space to bring %zu bytes home", run.bytes());
      return;
    }
    // From here on the CPU's accesses sleep: watched, then unmapped. The data holds still.
    int error = context.uffd.register_range(range, os::kMissing | os::kMinor);
    if (error == 0) error = os::drop_pages(range);
    if (error == 0) status = device.copy_out(segment.range->windows[index.value], range, fresh);
    if (error == 0 && status.ok()) error = os::move_mapping(fresh, range);
    if (error != 0 || !status.ok()) {
      if (error != 0) status = fail_errno("exchanging a mapping of device memory", error);
      os::unmap(fresh, run.bytes());
      (void)context.uffd.unregister_range(range);
      context.uffd.wake(range);
      return;
    }
    watch_again(context, *segment.range, range);
    segment.block->in_place.reset(run);
    came.set(run);
    context.uffd.wake(range);
  });
  return came;
}

void replace_by_zeros(Context& context, const Segment& segment, const PageMask& pages) {
  pages.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    std::byte* fresh = os::map_plain(run.bytes());
    if (fresh == nullptr || os::move_mapping(fresh, range) != 0) {
      os::unmap(fresh, run.bytes());
      // No memory: the device's may not stay readable all the same.
      if (os::map_bus_error(range) != 0) return;
      segment.block->bus_error.set(run);
      segment.block->in_place.reset(run);
      return;
    }
    watch_again(context, *segment.range, range);
    segment.block->in_place.reset(run);
    context.uffd.wake(range);
  });
}

}  // namespace uhmm::engine
