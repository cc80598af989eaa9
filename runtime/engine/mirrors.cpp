// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/mirrors.hpp"

#include "runtime/base/log.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/mappings.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/bare.hpp"
#include "runtime/os/mapped_object.hpp"

namespace uhmm::engine {
namespace {

// A descriptor for as long as this lives.
class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { os::bare::close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

bool can_be_reached(const os::Mapping& mapping) {
  return mapping.kind == os::MappingKind::Shared && (mapping.readable || mapping.writable);
}

// Two maps that differ have different stamps, as good as surely.
class Stamp {
 public:
  void add(ByteRange piece, const os::Mapping& mapping) {
    mix(piece.begin.value);
    mix(piece.end.value);
    mix(static_cast<std::uint64_t>(mapping.kind) << 2 | std::uint64_t{mapping.readable} << 1 | mapping.writable);
    mix(mapping.file_system);
    mix(mapping.inode);
    mix(mapping.offset + (piece.begin.value - mapping.range.begin.value));
  }
  std::uint64_t value() const { return value_ | 1; }  // 0: of no map

 private:
  void mix(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x9e3779b97f4a7c15;
    value_ ^= value_ >> 29;
  }
  std::uint64_t value_ = 0xcbf29ce484222325;
};

Status mirror_piece(Context& context, Device& device, ByteRange piece, const os::Mapping& mapping) {
  if (!can_be_reached(mapping)) {
    device.unmirror(piece);
    return {};
  }
  Result<int> opened = os::open_mapped_at(context.process, piece.begin);
  if (!opened.ok()) return opened.status();
  const File file(*opened);
  return device.mirror(
      {piece, file.fd(), mapping.offset + (piece.begin - mapping.range.begin), mapping.readable, mapping.writable});
}

// Under the arm mutex.
Status renew(Context& context, Range& range, DeviceIndex index) {
  Device* device = context.healthy(index);
  if (device == nullptr || (range.attached.load() & (1u << index.value)) == 0) return {};
  Stamp now;
  UHMM_TRY(for_each_mapping(context, range.pages, [&](ByteRange piece, const os::Mapping& mapping) -> Status {
    now.add(piece, mapping);
    return {};
  }));
  return now.value() == range.mirror_stamps[index.value] ? Status{} : mirror(context, range, index, *device);
}

// Device memory that pages had, and what entries there were.
void free_copies(Context& context, const Range& range) {
  (void)context.space.for_each_segment(range.pages, false, [&](const Segment& segment) {
    if (segment.range != &range) return Status{};
    const PageMask mine = PageMask::of(segment.run);
    const std::scoped_lock lock(segment.block->mutex);
    for (BlockDevice* part : segment.block->devices) {
      if (part == nullptr) continue;
      const DeviceIndex index{part->device};
      free_memory(context, index, segment, mine);
      part->mapped -= mine;
      part->writable -= mine;
      refresh_list(context, index, *part, false);
    }
    return Status{};
  });
}

// At one stroke for kernels that run: they find the program's pages where they would have waited for a copy.
void begin_mirroring(Context& context, Range& range) {
  {
    const std::scoped_lock lock(range.arm_mutex);
    range.mirrored.store(true);
    context.mirrored_ranges.fetch_add(1);
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
      const DeviceIndex index{i};
      if ((range.attached.load() & (1u << i)) == 0) continue;
      Device* device = context.healthy(index);
      if (device == nullptr) continue;  // its windows end with it
      if (!mirror(context, range, index, *device).ok())
        log::write(log::Level::Error, "device %u can't reach [%#lx, %#lx) any more: %s", index.processor(),
                   range.bytes.begin.value, range.bytes.end.value, last_detail());
      {
        const std::scoped_lock attach_lock(context.slot(index).attach_mutex);  // others may attach other ranges now
        device->detach(range.windows[i], {});
      }
      range.windows[i].host = nullptr;
      device->wake(range.pages);
    }
  }
  free_copies(context, range);
}

}  // namespace

Status can_mirror(Context& context, ByteRange pages) {
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    const DeviceSlot& slot = context.slots[i];
    if (slot.device != nullptr && !slot.capabilities.mirrors)
      return fail(UHMM_ERR_NOT_SUPPORTED, "device %u can't work on the program's own pages",
                  DeviceIndex{i}.processor());
  }
  return for_each_mapping(context, pages, [&](ByteRange piece, const os::Mapping& mapping) -> Status {
    if (mapping.kind != os::MappingKind::Shared)
      return fail(UHMM_ERR_FAULT, "no shared memory is mapped at %#lx", piece.begin.value);
    Result<int> opened = os::open_mapped_at(context.process, piece.begin);
    if (!opened.ok()) return opened.status();
    const File file(*opened);
    return {};
  });
}

bool has_name(Context& context, ByteRange pages) {
  bool named = false;
  const Status walked = for_each_mapping(context, pages, [&](ByteRange piece, const os::Mapping&) -> Status {
    Result<int> opened = os::open_mapped_at(context.process, piece.begin);
    if (!opened.ok()) return opened.status();
    const File file(*opened);
    named = named || os::has_name(file.fd());
    return {};
  });
  return walked.ok() && named;
}

Status mirror(Context& context, Range& range, DeviceIndex index, Device& device) {
  Stamp stamp;
  range.mirror_stamps[index.value] = 0;
  const Status done =
      for_each_mapping(context, range.pages, [&](ByteRange piece, const os::Mapping& mapping) -> Status {
        stamp.add(piece, mapping);
        return mirror_piece(context, device, piece, mapping);
      });
  if (!done.ok()) {
    // Nothing rather than something old.
    char detail[kDetailBytes];
    save_detail(detail);
    device.unmirror(range.pages);
    set_detail(detail);
    return done;
  }
  range.mirror_stamps[index.value] = stamp.value();
  return {};
}

void mirror_shared_memory(Context& context) {
  const Operation operation(context);
  for (const auto& [begin, range] : context.space.ranges()) {
    if (range->backing != state::Backing::Shared || range->mirrored.load() || range->closing.load() ||
        range->pages_out.load() != 0)
      continue;
    if (can_mirror(context, range->pages).ok()) {
      begin_mirroring(context, *range);
    } else if (!context.told_of_stale_views.exchange(true)) {
      log::write(log::Level::Warning,
                 "the program forks with shared memory at %#lx: its child does not see what devices write there before "
                 "it is home: %s",
                 begin, last_detail());
    }
  }
}

Status renew_mirrors(Context& context, ByteRange pages) {
  if (context.mirrored_ranges.load() == 0) return {};
  const Operation operation(context);
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  Status status;
  for (const auto& [begin, range] : ranges) {
    if (!range->mirrored.load() || range->pages.intersect(pages).empty()) continue;
    const std::scoped_lock lock(range->arm_mutex);
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
      const Status done = renew(context, *range, DeviceIndex{i});
      if (status.ok()) status = done;
    }
  }
  return status;
}

Status renew_mirrors(Context& context, DeviceIndex index) {
  if (context.mirrored_ranges.load() == 0) return {};
  for (const auto& [begin, range] : context.space.ranges()) {
    if (!range->mirrored.load()) continue;
    const std::scoped_lock lock(range->arm_mutex);
    UHMM_TRY(renew(context, *range, index));
  }
  return {};
}

}  // namespace uhmm::engine
