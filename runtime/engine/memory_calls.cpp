// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/memory_calls.hpp"

#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/permissions.hpp"
#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {
namespace {

// Blocks a request touches are spread over the workers; ranges are attached before.
struct BlockList {
  ByteRange pages;
  VirtAddr first() const { return pages.begin.block_floor(); }
  std::uint32_t count() const {
    return static_cast<std::uint32_t>((pages.end - first() + kBlockBytes - 1) / kBlockBytes);
  }
  ByteRange part(std::uint32_t i) const {
    const VirtAddr base = first() + std::uint64_t{i} * kBlockBytes;
    return pages.intersect({base, base + kBlockBytes});
  }
};

Status not_registered(ByteRange bytes) {
  return fail(UHMM_ERR_NOT_REGISTERED, "[%#lx, %#lx) is not registered as a whole", bytes.begin.value, bytes.end.value);
}

Status attach_touched(Context& context, ByteRange pages, DeviceIndex device) {
  VirtAddr at = pages.begin;
  while (at < pages.end) {
    Range* range = context.space.find_page(at);
    if (range == nullptr) {
      at = at + kPageBytes;
      continue;
    }
    UHMM_TRY(attach(context, *range, device));
    at = range->pages.end;
  }
  return {};
}

struct Walk {
  Outcome done;
  std::uint64_t pinned = 0;
};

// One segment of a request, unless advice or the end of its range keeps it where it is.
template <typename Move>
void visit(const Segment& segment, Walk& walk, Move&& move) {
  if (segment.range->advice.pinned.load())
    walk.pinned += segment.run.count;
  else if (segment.range->closing.load())
    walk.done.skipped += segment.run.count;
  else
    walk.done += move(segment, PageMask::of(segment.run));
}

Outcome stays(const PageMask& pages, Status why) {
  Outcome out;
  out.status = why;
  out.skipped = pages.count();
  return out;
}

// Of memory that devices work on where it is, nothing goes to a device: who wanted it within reach has that.
Outcome stays_mirrored(const PageMask& pages, const ToDevice& how) {
  if (how.cause != UHMM_CAUSE_ACQUIRE)
    return stays(pages, fail(how.want == Want::Exclusive ? UHMM_ERR_BUSY : UHMM_ERR_NOT_SUPPORTED,
                             "other processes may see this memory: devices work on it where it is, it never migrates"));
  Outcome out;
  out.there = pages.count();
  return out;
}

// Room for all of it at once, or for nothing: what is overwritten is given up only when nothing known is in the way.
bool reserve_all(Context& context, ByteRange pages, Reservation& reservation) {
  Budget all;
  const Status walked = context.space.for_each_segment(pages, true, [&](const Segment& segment) -> Status {
    const PageMask mine = PageMask::of(segment.run);
    const bool stays = segment.range->advice.pinned.load() || segment.range->closing.load() ||
                       segment.range->mirrored.load() || !permissions_of(context, segment).readable.contains(mine);
    const Budget part = needed(segment, mine, reservation.device());
    if (stays || (all.pages != 0 && part.pages != 0 && part.pool != all.pool))
      return fail(UHMM_ERR_BUSY, "not all of it can go, or several pools pay");
    if (part.pages != 0) all.pool = part.pool;
    all.pages += part.pages;
    return {};
  });
  const DeviceSlot& slot = context.slot(reservation.device());
  return walked.ok() && reservation.obtain(all, pages).ok() && reservation.budget().pages == all.pages &&
         !slot.shut.load() && !context.pools[all.pool].shut.load();
}

// In one operation: the promise lasts no longer than the device and its pools do. False: nothing was done.
bool overwrite_all(Context& context, ByteRange pages, ToDevice how, Walk& walk) {
  const Operation operation(context);
  how.admitted = true;
  Reservation reservation(context, how.device);
  if (!reserve_all(context, pages, reservation)) return false;
  const Status walked = context.space.for_each_segment(pages, true, [&](const Segment& segment) {
    visit(segment, walk, [&](const Segment& part, const PageMask& all) {
      if (Status ready = attach(context, *part.range, how.device); !ready.ok()) return stays(all, ready);
      return migrate_reserved(context, part, all, how, reservation);
    });
    return Status{};
  });
  reservation.settle_used();
  if (!walked.ok() && walk.done.status.ok()) walk.done.status = walked;
  return true;
}

}  // namespace

Status check_registered(Context& context, ByteRange bytes) {
  const Operation operation(context);
  return context.space.covers(bytes) ? Status{} : not_registered(bytes);
}

Status check_not_lost(Context& context, ByteRange bytes) {
  const Operation operation(context);
  return context.space.for_each_segment(bytes.to_pages(), false, [&](const Segment& segment) -> Status {
    const std::scoped_lock lock(segment.block->mutex);
    const PageMask lost = segment.block->lost & PageMask::of(segment.run);
    if (lost.none()) return {};
    return fail(UHMM_ERR_DATA_LOST, "the page at %#lx is lost",
                (segment.block->base + std::size_t{lost.next_set(0)} * kPageBytes).value);
  });
}

Counts migrate(Context& context, const MigrateRequest& request) {
  Counts counts;
  const ByteRange pages = request.bytes.to_pages();
  counts.requested = pages.pages();
  const bool leaving = request.to != UHMM_CPU;
  const DeviceIndex device{leaving ? request.to - 1 : 0};
  if (leaving) context.fork_gate.enter();
  {
    const Operation operation(context);
    if (!context.space.covers(request.bytes)) {
      counts.status = not_registered(request.bytes);
    } else if (leaving && context.slot(device).device == nullptr) {
      counts.status = fail(UHMM_ERR_NO_DEVICE, "there is no device %u", request.to);
    } else if (leaving) {
      counts.status = attach_touched(context, pages, device);
    }
  }
  Walk total;
  ToDevice how{device, request.want, request.cause, PageMask::all()};
  bool done = false;
  if (counts.status.ok() && how.want == Want::Overwrite) {
    done = overwrite_all(context, pages, how, total);
    how.want = Want::Move;
  }
  if (counts.status.ok()) {
    const BlockList blocks{pages};
    RankedMutex<LockRank::Workers> mutex;
    // What went wrong may be known to another thread than the one that answers.
    char why[kDetailBytes] = "";
    context.workers.for_each(done ? 0 : blocks.count(), [&](std::uint32_t i) {
      Walk mine;
      {
        const Operation operation(context);
        const Status walked = context.space.for_each_segment(blocks.part(i), leaving, [&](const Segment& segment) {
          visit(segment, mine, [&](const Segment& part, const PageMask& all) {
            // Attached before, unless the range has been exchanged for another meanwhile.
            if (leaving)
              if (Status ready = attach(context, *part.range, device); !ready.ok()) return stays(all, ready);
            if (leaving && part.range->mirrored.load()) return stays_mirrored(all, how);
            return leaving ? migrate_to_device(context, part, all, how, pages)
                           : to_system(context, part, all, request.want, request.cause);
          });
          return Status{};
        });
        if (!walked.ok() && mine.done.status.ok()) mine.done.status = walked;
      }
      const std::scoped_lock lock(mutex);
      if (total.done.status.ok() && !mine.done.status.ok()) save_detail(why);
      total.done += mine.done;
      total.pinned += mine.pinned;
    });
    if (!total.done.status.ok() && why[0] != '\0') set_detail(why);
    counts.done = total.done;
    counts.done.skipped += total.pinned;
    // Blocks that were never touched are where they always were.
    const std::uint64_t seen = counts.done.moved + counts.done.populated + counts.done.there + counts.done.skipped;
    if (!leaving && seen < counts.requested) counts.done.there += counts.requested - seen;
    if (leaving && seen < counts.requested) counts.done.skipped += counts.requested - seen;
    const bool any = counts.done.moved + counts.done.populated + counts.done.there != 0;
    if (!any && total.pinned != 0)
      counts.status = fail(UHMM_ERR_BUSY, "every page is pinned");
    else if (!any && !counts.done.status.ok())
      counts.status = counts.done.status;
    else if (!any)
      counts.status = fail(UHMM_ERR_BUSY, "no page could be moved");
  }
  if (leaving) context.fork_gate.leave();
  return counts;
}

Status discard_bytes(Context& context, ByteRange bytes) {
  const Operation operation(context);
  if (!context.space.covers(bytes)) return not_registered(bytes);
  // Pages that are only partly inside keep their contents.
  const ByteRange whole{bytes.begin.page_ceil(), bytes.end.page_floor()};
  if (whole.empty()) return {};
  return context.space.for_each_segment(whole, true, [&](const Segment& segment) -> Status {
    if (segment.range->mirrored.load() && segment.range->alias == nullptr)
      return fail(UHMM_ERR_NOT_SUPPORTED, "other processes may see the memory at %#lx: its contents are not dropped",
                  segment.block->range_of(segment.run).begin.value);
    return discard(context, segment, PageMask::of(segment.run));
  });
}

Status advise(Context& context, ByteRange bytes, uhmm_advice advice, std::uint32_t processor) {
  const Operation operation(context);
  if (!context.space.covers(bytes)) return not_registered(bytes);
  if ((advice == UHMM_ADVISE_PREFERRED_LOCATION || advice == UHMM_ADVISE_ACCESSED_BY) && processor != UHMM_CPU &&
      context.slot(DeviceIndex{processor - 1}).device == nullptr)
    return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", processor);
  for (VirtAddr at = bytes.begin; at < bytes.end;) {
    Range* range = context.space.find_byte(at);
    state::Advice& mine = range->advice;
    switch (advice) {
      case UHMM_ADVISE_NONE:
        mine.preferred.store(~0u);
        mine.accessed_by.store(0);
        mine.read_mostly.store(false);
        mine.pinned.store(false);
        break;
      case UHMM_ADVISE_PREFERRED_LOCATION: mine.preferred.store(processor); break;
      case UHMM_ADVISE_ACCESSED_BY: mine.accessed_by.fetch_or(1u << processor); break;
      case UHMM_ADVISE_READ_MOSTLY: mine.read_mostly.store(true); break;
      case UHMM_ADVISE_NOT_READ_MOSTLY: mine.read_mostly.store(false); break;
      case UHMM_ADVISE_PINNED: mine.pinned.store(true); break;
      case UHMM_ADVISE_UNPINNED: mine.pinned.store(false); break;
    }
    at = range->bytes.end;
  }
  return {};
}

Counts make_exclusive(Context& context, ByteRange bytes, DeviceIndex device) {
  Counts counts = migrate(context, {bytes, device.processor(), Want::Exclusive, UHMM_CAUSE_EXCLUSIVE});
  if (!counts.status.ok()) return counts;
  if (counts.done.skipped != 0) {
    const char* why = counts.done.status.ok() ? "a page is pinned or lost" : "a page could not be taken";
    (void)migrate(context, {bytes, UHMM_CPU, Want::Move, UHMM_CAUSE_EXCLUSIVE});
    counts.status = fail(counts.done.status.code() == UHMM_ERR_DEVICE_FULL ? UHMM_ERR_DEVICE_FULL : UHMM_ERR_BUSY,
                         "%lu of %lu pages can't be made exclusive: %s", counts.done.skipped, counts.requested, why);
  }
  return counts;
}

Status hold(Context& context, ByteRange bytes, DeviceIndex device, bool on) {
  const Operation operation(context);
  if (on && !context.space.covers(bytes)) return not_registered(bytes);
  if (on && context.healthy(device) == nullptr) return unusable(context, device);
  // Per block: the part that the device has of it, or will have.
  const BlockList blocks{bytes.to_pages()};
  for (std::uint32_t i = 0; on && i < blocks.count(); ++i) {
    Block* block = context.space.block(blocks.part(i).begin);
    if (block == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a block's metadata");
    const std::scoped_lock lock(block->mutex);
    if (block->device(device) == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a block's metadata");
  }
  for (std::uint32_t i = 0; i < blocks.count(); ++i) {
    Block* block = context.space.find_block(blocks.part(i).begin);
    if (block == nullptr) continue;
    const std::scoped_lock lock(block->mutex);
    BlockDevice* part = block->find_device(device);
    if (part == nullptr) continue;
    if (on)
      part->holds.fetch_add(1);
    else if (part->holds.load() != 0)
      part->holds.fetch_sub(1);
  }
  for (VirtAddr at = bytes.begin; at < bytes.end;) {
    Range* range = context.space.find_byte(at);
    if (range == nullptr) {
      const auto next = context.space.ranges().upper_bound(at.value);
      if (next == context.space.ranges().end()) break;
      at = next->second->bytes.begin;
      continue;
    }
    // unregister_all() has let go of everything.
    std::uint32_t holds = range->holds.load();
    while ((on || holds != 0) && !range->holds.compare_exchange_weak(holds, on ? holds + 1 : holds - 1)) {
    }
    at = range->bytes.end;
  }
  return {};
}

void wait_for_moves(Context& context, const Range& range) {
  (void)context.space.for_each_segment(range.pages, false, [](const Segment& segment) {
    const std::scoped_lock lock(segment.block->mutex);
    return Status{};
  });
}

SnapshotPart snapshot_part(Context& context, VirtAddr page, std::uint32_t count) {
  SnapshotPart part;
  const Operation operation(context);
  Range* range = context.space.find_page(page);
  if (range == nullptr) {
    part.status = not_registered({page, page + kPageBytes});
    return part;
  }
  const VirtAddr base = page.block_floor();
  const std::uint32_t first = page.page_in_block();
  const std::uint64_t in_range = (range->pages.end - page) >> kPageShift;
  part.count = static_cast<std::uint32_t>(
      std::min<std::uint64_t>({count, std::size(part.pages), kPagesPerBlock - first, in_range}));
  const PageRun run{first, part.count};
  Block* block = context.space.find_block(page);
  Block untouched(base);
  Block& found = block != nullptr ? *block : untouched;
  const std::scoped_lock lock(found.mutex);
  Result<PageMask> backed = backed_pages(context, {range, &found, run}, PageMask::of(run));
  if (!backed.ok()) part.status = backed.status();
  PageMask mirrors_may_write;
  if (range->mirrored.load()) mirrors_may_write = permissions_of(context, {range, &found, run}).writable;
  for (std::uint32_t i = 0; i < part.count; ++i) {
    uhmm_page_info& info = part.pages[i];
    info = {};
    PageKind kind = found.kind_of(first + i);
    if (kind == PageKind::System && backed.ok() && !backed->test(first + i)) kind = PageKind::None;
    info.state = static_cast<std::uint8_t>(kind);
    if (range->mirrored.load()) {
      info.mapped = static_cast<std::uint8_t>(range->attached.load());
      if (mirrors_may_write.test(first + i)) info.device_write = info.mapped;
    }
    for (const BlockDevice* device : found.devices) {
      if (device == nullptr || !device->resident.test(first + i)) continue;
      const auto bit = static_cast<std::uint8_t>(1u << device->device);
      info.devices |= bit;
      if (device->huge) info.huge |= bit;
      if (!device->mapped.test(first + i)) continue;
      info.mapped |= bit;
      if (device->writable.test(first + i)) info.device_write |= bit;
    }
  }
  return part;
}

Status bring_home(Context& context, std::uint32_t only_device, uhmm_cause cause) {
  std::uint64_t failed = 0;
  const Operation operation(context);
  for (const auto& entry : context.space.ranges()) {
    const Range* range = entry.second;
    if (range->pages_out.load() == 0) continue;
    (void)context.space.for_each_segment(range->pages, false, [&](const Segment& segment) {
      if (segment.range != range) return Status{};
      PageMask pages;
      {
        const std::scoped_lock lock(segment.block->mutex);
        for (const BlockDevice* part : segment.block->devices)
          if (part != nullptr && (only_device == kMaxDevices || part->device == only_device)) pages |= part->resident;
      }
      pages &= PageMask::of(segment.run);
      if (pages.none()) return Status{};
      const Outcome out = to_system(context, segment, pages, Want::Move, cause);
      if (!out.status.ok()) ++failed;
      return Status{};
    });
  }
  if (failed != 0) return fail(UHMM_ERR_DATA_LOST, "pages of %lu blocks could not be brought back", failed);
  return {};
}

Status bring_pool_home(Context& context, std::uint32_t pool) {
  const Operation operation(context);
  const DeviceIndex device{context.pools[pool].device};
  // By the blocks, not by the ranges: a range may have been given another pool while pages were on their way.
  const auto uses_pool = [&](Block& block) {
    const std::scoped_lock lock(block.mutex);
    const BlockDevice* part = block.find_device(device);
    return part != nullptr && part->pool == pool && part->allocated.any();
  };
  std::uint64_t failed = 0;
  for (const auto& [begin, range] : context.space.ranges()) {
    for (VirtAddr at = range->pages.begin.block_floor(); at < range->pages.end; at = at + kBlockBytes) {
      Block* block = context.space.find_block(at);
      if (block == nullptr || !uses_pool(*block)) continue;
      (void)evict_block(context, *block, device, UHMM_CAUSE_USER);
      if (uses_pool(*block)) ++failed;
    }
  }
  if (failed == 0) return {};
  return fail(UHMM_ERR_NO_MEMORY, "pages of %lu blocks of the pool could not be brought back", failed);
}

}  // namespace uhmm::engine
