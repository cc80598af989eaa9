// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/range_end.hpp"

#include <ctime>

#include "runtime/base/arena.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/log.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/migrator.hpp"
#include "runtime/engine/mirrors.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {
namespace {

// Under the exclusive lock: devices forget the range.
void detach(Context& context, Range& range) {
  const ByteRange own = context.space.pages_not_shared(range);
  for (VirtAddr at = range.pages.begin.block_floor(); at < range.pages.end; at = at + kBlockBytes) {
    Block* block = context.space.find_block(at);
    if (block == nullptr) continue;
    const ByteRange part = own.intersect({block->base, block->base + kBlockBytes});
    const Segment segment{
        &range,
        block,
        {part.empty() ? 0 : part.begin.page_in_block(), part.empty() ? 0 : static_cast<std::uint32_t>(part.pages())}};
    const std::scoped_lock lock(block->mutex);
    for (BlockDevice* device_part : block->devices) {
      if (device_part == nullptr) continue;
      const DeviceIndex index{device_part->device};
      free_memory(context, index, segment, PageMask::of(segment.run), Freeing::WithWindow);
      device_part->mapped -= PageMask::of(segment.run);
      if (block->references == 1) {
        // The block goes with its last range; what an edge page still has goes with it.
        const Segment all{&range, block, {0, kPagesPerBlock}};
        free_memory(context, index, all, device_part->allocated, Freeing::WithWindow);
        context.slot(index).memory.forget(device_part);
      } else {
        refresh_list(context, index, *device_part, false);
      }
    }
    // They raise SIGBUS as before, but nobody counts them any more (unsigned wrap-around subtracts).
    const PageMask lost = block->lost & PageMask::of(segment.run);
    context.count(range, trace::Counter::PagesLost, std::uint64_t{0} - lost.count());
    block->lost -= lost;
    block->bus_error -= lost;
  }
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    Device* device = context.slots[i].device;
    if (device == nullptr) continue;
    if ((range.attached.load() & (1u << i)) == 0)
      context.slots[i].unattached.fetch_sub(1);
    else
      detach_window(range, *device, DeviceIndex{i}, own);
  }
  if (range.mirrored.load()) context.mirrored_ranges.fetch_sub(1);
}

// Under the exclusive lock: what a range counts of pages moves to the one that has them from now on.
void move_counts(Context& context, Range& from, Range& to) {
  std::uint64_t out = 0;
  std::uint64_t copies = 0;
  std::uint64_t lost = 0;
  (void)context.space.for_each_segment(to.pages, false, [&](const Segment& segment) {
    if (segment.range != &to) return Status{};
    const PageMask mine = PageMask::of(segment.run);
    const std::scoped_lock lock(segment.block->mutex);
    out += (segment.block->on_devices() & mine).count();
    lost += (segment.block->lost & mine).count();
    for (const BlockDevice* part : segment.block->devices)
      if (part != nullptr) copies += (part->resident & mine).count();
    return Status{};
  });
  from.pages_out.fetch_sub(static_cast<std::int64_t>(out));
  to.pages_out.fetch_add(static_cast<std::int64_t>(out));
  using trace::Counter;
  from.counters.sub(Counter::PagesOnDevices, copies);
  to.counters.add(Counter::PagesOnDevices, copies);
  from.counters.sub(Counter::PagesLost, lost);
  to.counters.add(Counter::PagesLost, lost);
}

// Under the exclusive lock: `range` ends at the page boundary, a new range like it takes the rest. All or nothing.
Status cut_range(Context& context, Range& range, VirtAddr at) {
  for (const DeviceSlot& slot : context.slots)
    if (slot.device != nullptr) UHMM_TRY(slot.device->reserve_split());
  Range* upper = make_in_arena<Range>(ByteRange{at, range.bytes.end}, range.backing);
  if (upper == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a range's metadata");
  if (range.alias != nullptr) upper->alias = range.alias + (at - range.pages.begin);
  upper->can_move.store(range.can_move.load());
  upper->mirrored.store(range.mirrored.load());
  // Nobody knows which part it is that an acquire holds: neither is kept by it any more.
  range.holds.store(0);
  upper->pool.store(range.pool.load());
  upper->advice.preferred.store(range.advice.preferred.load());
  upper->advice.accessed_by.store(range.advice.accessed_by.load());
  upper->advice.read_mostly.store(range.advice.read_mostly.load());
  upper->advice.pinned.store(range.advice.pinned.load());
  upper->armed = range.armed;
  upper->copies_known = range.copies_known;
  if (const Status parted = context.space.split(&range, at, upper); !parted.ok()) {
    destroy_in_arena(upper);
    return parted;
  }
  if (Block* block = context.space.find_block(at.block_floor()); block != nullptr && at != at.block_floor()) {
    const std::scoped_lock lock(block->mutex);
    block->split_huge();
  }
  if (range.mirrored.load()) context.mirrored_ranges.fetch_add(1);
  const std::uint32_t attached = range.attached.load();
  upper->attached.store(attached);
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    DeviceSlot& slot = context.slots[i];
    if (slot.device == nullptr) continue;
    if ((attached & (1u << i)) != 0)
      upper->windows[i] = slot.device->split(range.windows[i], at);
    else
      slot.unattached.fetch_add(1);
  }
  move_counts(context, range, *upper);
  return {};
}

// Under the exclusive lock: contents end wherever they are.
Status give_up(Context& context, ByteRange pages) {
  return context.space.for_each_segment(pages, false, [&](const Segment& segment) -> Status {
    // Others' memory, too: only the mapping of it ends.
    return segment.range->mirrored.load() ? Status{} : discard(context, segment, PageMask::of(segment.run));
  });
}

// Is a range that has pages there being unregistered?
bool is_closing(const Context& context, ByteRange pages) {
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  auto it = ranges.lower_bound(pages.begin.value);
  if (it != ranges.begin() && std::prev(it)->second->bytes.end > pages.begin) --it;
  for (; it != ranges.end() && it->first < pages.end.value; ++it)
    if (it->second->closing.load()) return true;
  return false;
}

// Under the exclusive lock: ranges meet at the page boundary, if there are any.
Status cut_at(Context& context, VirtAddr at) {
  Range* range = context.space.find_byte(at);
  if (range == nullptr || range->bytes.begin == at) return {};
  return cut_range(context, *range, at);
}

void end_ranges(Context& context, ByteRange pages, Place place) {
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  for (auto it = ranges.lower_bound(pages.begin.value); it != ranges.end() && it->first < pages.end.value;
       it = ranges.lower_bound(pages.begin.value))
    end_range(context, it->second, place);
}

// Calls end() under the exclusive lock, when nobody is unregistering a range of the pages. Ranges are cut at the edges.
template <typename End>
Status end_pages(Context& context, ByteRange pages, End&& end) {
  constexpr timespec kMoment{0, 100'000};
  for (;;) {
    Status status;
    bool closing = false;
    {
      const std::unique_lock lock(context.space.mutex());
      closing = is_closing(context, pages);
      if (!closing) status = cut_at(context, pages.begin);
      if (!closing && status.ok()) status = cut_at(context, pages.end);
      if (!closing && status.ok()) status = end();
    }
    deliver_pool_calls(context);
    if (!closing) return status;
    // It has to come to an end first.
    (void)nanosleep(&kMoment, nullptr);
  }
}

struct Home {
  Status status;
  bool lost = false;
};

Home bring_pages_home(Context& context, ByteRange pages) {
  Home home;
  const Operation operation(context);
  (void)context.space.for_each_segment(pages, false, [&](const Segment& segment) {
    const Outcome out = to_system(context, segment, PageMask::of(segment.run), Want::Move, UHMM_CAUSE_UNREGISTER);
    if (!out.status.ok() && home.status.ok()) home.status = out.status;
    const std::scoped_lock lock(segment.block->mutex);
    if ((segment.block->lost & PageMask::of(segment.run)).any()) home.lost = true;
    return Status{};
  });
  return home;
}

// Under the exclusive lock: pages that are home; a neighbour on the same page may not be attached, and would leave it.
void free_retained(Context& context, ByteRange pages) {
  (void)context.space.for_each_segment(pages, false, [&](const Segment& segment) {
    const std::scoped_lock lock(segment.block->mutex);
    for (BlockDevice* part : segment.block->devices)
      if (part != nullptr && (segment.range->attached.load() & (1u << part->device)) != 0)
        free_memory(context, DeviceIndex{part->device}, segment, PageMask::of(segment.run));
    return Status{};
  });
}

// Under the exclusive lock.
bool any_on_devices(Context& context, ByteRange pages) {
  bool found = false;
  (void)context.space.for_each_segment(pages, false, [&](const Segment& segment) {
    const std::scoped_lock lock(segment.block->mutex);
    found = found || segment.block->on_devices().intersects(PageMask::of(segment.run));
    return Status{};
  });
  return found;
}

}  // namespace

namespace {

// Under the exclusive lock: is a range that is watched, other than this one, on the page?
bool watched_by_others(const Context& context, const Range& range, VirtAddr page) {
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  for (auto it = ranges.lower_bound(page.value + kPageBytes); it != ranges.begin();) {
    --it;
    if (it->second->pages.end <= page) break;
    if (it->second != &range && it->second->armed) return true;
  }
  return false;
}

}  // namespace

void end_range(Context& context, Range* range, Place place) {
  detach(context, *range);
  const ByteRange own = context.space.pages_not_shared(*range);
  if (place == Place::Ours) {
    const std::scoped_lock arm_lock(range->arm_mutex);
    // An edge may still be watched for a neighbour that is gone.
    if (range->armed || range->had_neighbours) {
      if (!own.empty()) (void)context.uffd.unregister_range(own);
      context.copy_shield.lower(context, own);
      for (const VirtAddr edge : {range->pages.begin, range->pages.end - kPageBytes})
        if (!own.contains(edge) && !watched_by_others(context, *range, edge))
          context.copy_shield.lower(context, {edge, edge + kPageBytes});
    }
  }
  context.copy_shield.forget(own);
  context.space.remove(range);
  context.record(UHMM_EVENT_UNREGISTER, UHMM_CAUSE_UNREGISTER, range->bytes,
                 static_cast<std::uint32_t>(range->pages.pages()), 0);
  os::unmap(range->alias, range->pages.bytes());
  destroy_in_arena(range);
}

Status forget_pages(Context& context, ByteRange pages) {
  return end_pages(context, pages, [&]() -> Status {
    UHMM_TRY(give_up(context, pages));
    end_ranges(context, pages, Place::Ours);
    return {};
  });
}

Status unregister_pages(Context& context, ByteRange pages) {
  constexpr int kMostTries = 1000;
  for (int tries = 0; tries < kMostTries; ++tries) {
    const Home home = bring_pages_home(context, pages);
    UHMM_TRY(home.status);
    bool ended = false;
    UHMM_TRY(end_pages(context, pages, [&]() -> Status {
      if (any_on_devices(context, pages)) return {};
      free_retained(context, pages);
      end_ranges(context, pages, Place::Ours);
      ended = true;
      return {};
    }));
    if (ended && home.lost)
      return fail(UHMM_ERR_DATA_LOST, "some pages of [%#lx, %#lx) are lost", pages.begin.value, pages.end.value);
    if (ended) return {};
  }
  return fail(UHMM_ERR_BUSY, "devices work on [%#lx, %#lx)", pages.begin.value, pages.end.value);
}

Status end_gone_pages(Context& context, ByteRange pages, Rescue rescue, void* argument) {
  return end_pages(context, pages, [&]() -> Status {
    if (rescue != nullptr)
      UHMM_TRY(context.space.for_each_segment(pages, false,
                                              [&](const Segment& segment) { return rescue(argument, segment); }));
    UHMM_TRY(context.space.for_each_segment(
        pages, false, [&](const Segment& segment) { return abandon(context, segment, PageMask::of(segment.run)); }));
    end_ranges(context, pages, Place::Gone);
    return {};
  });
}

Status revoke_access(Context& context, ByteRange pages) {
  UHMM_TRY(renew_mirrors(context, pages));
  const Operation operation(context);
  return context.space.for_each_segment(pages, false, [&](const Segment& segment) -> Status {
    Status status;
    const PageMask mine = PageMask::of(segment.run);
    const std::scoped_lock lock(segment.block->mutex);
    // The protection may differ inside the block from now on.
    if (mine != PageMask::all()) segment.block->split_huge();
    for (BlockDevice* part : segment.block->devices) {
      if (part == nullptr) continue;
      const Status done = unmap_resident(context, DeviceIndex{part->device}, *part, mine);
      if (status.ok()) status = done;
    }
    return status;
  });
}

}  // namespace uhmm::engine
