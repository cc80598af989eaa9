// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/coherent.hpp"

#include <cerrno>

#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/mappings.hpp"
#include "runtime/engine/permissions.hpp"
#include "runtime/os/fork_advice.hpp"
#include "runtime/os/mapped_object.hpp"

namespace uhmm::engine {
namespace {

// Private memory with the protection that the program has given the mapping it is for. nullptr: no memory.
std::byte* map_like(const os::Mapping& mapping, std::size_t bytes) {
  std::byte* fresh = os::map_plain(bytes);
  if (fresh == nullptr || os::protect_like(mapping, fresh, bytes) == 0) return fresh;
  os::unmap(fresh, bytes);
  return nullptr;
}

Status exchange(Context& context, const Segment& segment, DeviceIndex index, ByteRange range) {
  std::byte* fresh = os::map_plain(range.bytes());
  if (fresh == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no address space to bring %zu bytes home", range.bytes());
  Device& device = *context.slot(index).device;
  // From here on the CPU's accesses sleep: watched, then unmapped. The data holds still.
  int error = context.uffd.register_range(range, os::kMissing | os::kMinor);
  if (error == 0) error = os::drop_pages(range);
  Status status;
  if (error == 0) status = device.copy_out(segment.range->windows[index.value], range, fresh);
  // As it is by now: the program may have changed it meanwhile.
  if (error == 0 && status.ok()) {
    Result<os::Mapping> mapping = context.process.find_mapping(range.begin);
    error = mapping.ok() ? os::protect_like(*mapping, fresh, range.bytes()) : EFAULT;
  }
  if (error == 0 && status.ok()) {
    const Replacing replacing(context.news, context.uffd, range);
    error = os::move_mapping(fresh, range);
  }
  if (error == 0 && status.ok()) return {};
  if (error != 0) status = fail_errno("exchanging a mapping of device memory", error);
  os::unmap(fresh, range.bytes());
  (void)context.uffd.unregister_range(range);
  context.uffd.wake(range);
  return status;
}

}  // namespace

void map_in_place(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages) {
  Device* device = context.healthy(index);
  if (device == nullptr || !device->capabilities().coherent || segment.range->backing != state::Backing::Private)
    return;
  // What the program may not do here it may not do by way of device memory either: such pages stay as on a private
  // device.
  const PageMask allowed = pages & permissions_of(context, segment).writable;
  allowed.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    {
      const Replacing replacing(context.news, context.uffd, range);
      if (context.changes.concern(range)) return;  // what the program has put there stays
      if (!device->map_host(segment.range->windows[index.value], range).ok()) return;
    }
    // A copy of the process made past fork() would have the device's memory in common with us.
    os::keep_from_copies(range, true);
    segment.block->in_place.set(run);
    // Whoever slept in a fault on the old mapping tries again on the new one.
    context.uffd.wake(range);
  });
}

PageMask bring_home_from_place(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages,
                               Status& status) {
  PageMask came;
  status = revoke(context, index, *segment.block->find_device(index), pages);
  pages.for_each_run([&](PageRun run) {
    if (!status.ok()) return;
    status = for_each_mapping(
        context, segment.block->range_of(run), [&](ByteRange piece, const os::Mapping& mapping) -> Status {
          const PageRun moved{piece.begin.page_in_block(), static_cast<std::uint32_t>(piece.pages())};
          // What the program has unmapped has no place any more, nor has what something else is mapped over.
          if (os::shows(mapping, context.slot(index).device->memory_file())) {
            UHMM_TRY(exchange(context, segment, index, piece));
            watch_again(context, *segment.range, piece);
          }
          segment.block->in_place.reset(moved);
          came.set(moved);
          context.uffd.wake(piece);
          return {};
        });
  });
  return came;
}

void replace_by_zeros(Context& context, const Segment& segment, const PageMask& pages) {
  const auto replace = [&](ByteRange piece, const os::Mapping& mapping) -> Status {
    const PageRun run{piece.begin.page_in_block(), static_cast<std::uint32_t>(piece.pages())};
    if (mapping.kind != os::MappingKind::Shared) {
      segment.block->in_place.reset(run);
      return {};
    }
    std::byte* fresh = map_like(mapping, piece.bytes());
    const Replacing replacing(context.news, context.uffd, piece);
    if (fresh == nullptr || os::move_mapping(fresh, piece) != 0) {
      os::unmap(fresh, piece.bytes());
      // No memory: the device's may not stay readable all the same.
      if (os::map_bus_error(piece) != 0) return {};
      segment.block->bus_error.set(run);
      segment.block->in_place.reset(run);
      return {};
    }
    watch_again(context, *segment.range, piece);
    segment.block->in_place.reset(run);
    context.uffd.wake(piece);
    return {};
  };
  pages.for_each_run([&](PageRun run) { (void)for_each_mapping(context, segment.block->range_of(run), replace); });
}

}  // namespace uhmm::engine
