// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/evictor.hpp"

#include <algorithm>

#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/policy/eviction.hpp"

namespace uhmm::engine {
namespace {

using state::MemoryList;

bool pinned(Context& context, const Block& block) {
  bool found = false;
  (void)context.space.for_each_segment({block.base, block.base + kBlockBytes}, false, [&](const Segment& segment) {
    found = found || segment.range->advice.pinned.load();
    return Status{};
  });
  return found;
}

// Give back memory whose contents are no longer current.
void free_retained(Context& context, Block& block, DeviceIndex index) {
  (void)context.space.for_each_segment({block.base, block.base + kBlockBytes}, false, [&](const Segment& segment) {
    const std::scoped_lock lock(block.mutex);
    if (BlockDevice* part = block.find_device(index)) {
      free_memory(context, index, segment, part->allocated.minus(part->resident));
      refresh_list(context, index, *part, false);
    }
    return Status{};
  });
}

// Take the oldest active block's mapping away: if the device uses the block, its next fault will say so.
void age_one(Context& context, DeviceIndex index, std::uint32_t pool, ByteRange avoid) {
  if (!context.slot(index).capabilities.faulting) return;
  state::DeviceMemory& memory = context.slot(index).memory;
  BlockDevice* part = policy::choose_for_aging(memory, pool, [&](const BlockDevice& candidate) {
    return !avoid.contains(candidate.block->base) && !context.is_held(candidate);
  });
  if (part == nullptr) return;
  const std::scoped_lock lock(part->block->mutex);
  if (part->resident.none() || !revoke(context, index, *part, part->resident).ok()) return;
  memory.place(part, MemoryList::Inactive);
}

}  // namespace

namespace {

// Brings pages of a block home from a device and gives their memory back.
Status evict(Context& context, Block& block, const PageMask& pages, DeviceIndex index, uhmm_cause cause,
             bool pinned_too) {
  UHMM_TRY(context.space.for_each_segment(
      {block.base, block.base + kBlockBytes}, false, [&](const Segment& segment) -> Status {
        if (!pinned_too && segment.range->advice.pinned.load()) return {};
        PageMask only_there;
        PageMask shared;
        {
          const std::scoped_lock lock(block.mutex);
          if (const BlockDevice* part = block.find_device(index)) {
            const PageMask there = part->resident & pages & PageMask::of(segment.run);
            shared = there & block.system;
            only_there = there.minus(shared);
          }
        }
        Outcome out;
        // Copies that other devices have of them stay.
        if (shared.any()) out += end_copies_of(context, segment, shared, index, cause);
        if (only_there.any()) out += to_system(context, segment, only_there, Want::Move, cause);
        if (out.moved + out.there != 0)
          context.record(UHMM_EVENT_EVICT, cause, block.range_of(segment.run),
                         static_cast<std::uint32_t>(out.moved + out.there), index.processor());
        return out.status;
      }));
  free_retained(context, block, index);
  return {};
}

}  // namespace

Status evict_block(Context& context, Block& block, DeviceIndex index, uhmm_cause cause) {
  return evict(context, block, PageMask::all(), index, cause, true);
}

void make_room(Context& context, const Segment& segment, std::uint32_t page, DeviceIndex index) {
  const PageMask one = PageMask::of({page, 1});
  const std::uint32_t pool = needed(segment, one, index).pool;
  state::DeviceMemory& memory = context.slot(index).memory;
  const auto elsewhere = [&](const BlockDevice& part) { return part.block != segment.block && !context.is_held(part); };
  const auto may_go = [&](const BlockDevice& part) { return elsewhere(part) && !pinned(context, *part.block); };
  // A shortage of this moment: others have room that they don't use yet, or something can go by now.
  if (memory.promised(pool) || memory.oldest(MemoryList::Retained, pool, elsewhere) != nullptr ||
      policy::choose_victim(memory, pool, may_go) != nullptr)
    return;
  const auto has_room = [&] {
    if (!memory.reserve(pool, 1)) return false;
    memory.settle(pool, 1, 0);
    return true;
  };
  free_retained(context, *segment.block, index);
  for (const bool pinned_too : {false, true}) {
    if (has_room()) return;
    (void)evict(context, *segment.block, PageMask::all().minus(one), index, UHMM_CAUSE_EVICTION, pinned_too);
  }
  if (has_room()) return;
  if (const BlockDevice* victim = policy::choose_victim(memory, pool, elsewhere))
    (void)evict_block(context, *victim->block, index, UHMM_CAUSE_EVICTION);
}

Status Reservation::obtain(Budget need, ByteRange avoid) {
  settle(0);
  promised_.pool = need.pool;
  if (need.pages == 0) return {};
  state::DeviceMemory& memory = context_.slot(device_).memory;
  age_one(context_, device_, need.pool, avoid);
  const auto elsewhere = [&](const BlockDevice& part) {
    return part.block->base < avoid.begin.block_floor() || part.block->base >= avoid.end;
  };
  // Every round frees something, or passes over a block that can't go now; enough of those in a row end the search.
  constexpr int kMostPassedOver = 64;
  int passed_over = 0;
  const auto may_go = [&](const BlockDevice& part) { return elsewhere(part) && !context_.is_held(part); };
  const BlockDevice* freed_before = nullptr;
  for (;;) {
    if (memory.reserve(need.pool, need.pages)) {
      promised_.pages = need.pages;
      untaken_ = need.pages;
      return {};
    }
    if (context_.healthy(device_) == nullptr) return unusable(context_, device_);
    const bool go_on = passed_over < kMostPassedOver;
    if (BlockDevice* part = go_on ? memory.oldest(MemoryList::Retained, need.pool, may_go) : nullptr) {
      if (part == freed_before) ++passed_over;  // the device would not free it
      freed_before = part;
      free_retained(context_, *part->block, device_);
      continue;
    }
    BlockDevice* victim = go_on ? policy::choose_victim(memory, need.pool, may_go) : nullptr;
    if (victim != nullptr) {
      if (!pinned(context_, *victim->block) && evict_block(context_, *victim->block, device_, UHMM_CAUSE_EVICTION).ok())
        continue;
      ++passed_over;
      // To the end of the queue, unless it has left the lists meanwhile.
      const std::scoped_lock lock(victim->block->mutex);
      if (victim->resident.any()) memory.place(victim, MemoryList::Active);
      continue;
    }
    // Nothing more can go: what is free has to do.
    promised_.pages = memory.reserve_some(need.pool, need.pages);
    untaken_ = promised_.pages;
    if (promised_.pages != 0) return {};
    return fail(UHMM_ERR_DEVICE_FULL, "device %u is full and nothing there can be evicted", device_.processor());
  }
}

std::uint64_t Reservation::take(std::uint64_t pages) {
  const std::uint64_t taken = std::min(untaken_, pages);
  untaken_ -= taken;
  return taken;
}

void Reservation::settle(std::uint64_t allocated) {
  if (promised_.pages != 0) context_.slot(device_).memory.settle(promised_.pool, promised_.pages, allocated);
  promised_.pages = 0;
}

namespace {

// Pages that a child process (a device's is one) shares with the program copy-on-write can be taken only after a write,
// which the protection of pages shared with any device forbids: the sharing ends first. Pages that the kernel has
// pinned stay where they are all the same.
template <typename MoveAgain>
Outcome after_sharing_ends(Context& context, const Segment& segment, Outcome out, uhmm_cause cause,
                           MoveAgain&& move_again) {
  if (!out.status.ok() || out.pages.none()) return out;
  const Outcome ended = end_sharing(context, segment, out.pages, cause);
  if (!ended.status.ok()) {
    out.status = ended.status;
  } else if (ended.pages.any()) {
    out.skipped -= ended.pages.count();
    out += move_again(ended.pages);
  }
  return out;
}

Outcome reserve_and_move(Context& context, const Segment& segment, const PageMask& pages, const ToDevice& request,
                         ByteRange avoid) {
  // The pages may be given another pool between the promise and its use; that does not go on for ever.
  constexpr int kMostTries = 4;
  Outcome all;
  for (int tries = 1;; ++tries) {
    Reservation reservation(context, request.device);
    const Budget need = needed(segment, pages, request.device);
    const Status room = reservation.obtain(need, avoid);
    Outcome out = to_device(context, segment, pages, request, reservation.budget());
    reservation.settle(out.allocated);
    if (out.status.ok() && !room.ok() && out.moved + out.populated + out.there == 0) out.status = room;
    const bool again = out.status.ok() && out.skipped != 0 && tries < kMostTries &&
                       needed(segment, pages, request.device).pool != need.pool;
    out.moved += all.moved;
    out.populated += all.populated;
    out.there -= std::min(out.there, all.moved + all.populated);
    if (!again) return out;
    all = out;
  }
}

}  // namespace

Outcome migrate_to_device(Context& context, const Segment& segment, const PageMask& pages, const ToDevice& request,
                          ByteRange avoid) {
  if (segment.range->mirrored.load()) {
    Outcome stays;
    stays.skipped = pages.count();
    return stays;
  }
  const Outcome out = reserve_and_move(context, segment, pages, request, avoid);
  return after_sharing_ends(context, segment, out, request.cause, [&](const PageMask& free_again) {
    return reserve_and_move(context, segment, free_again, request, avoid);
  });
}

Outcome migrate_reserved(Context& context, const Segment& segment, const PageMask& pages, const ToDevice& request,
                         Reservation& reservation) {
  const auto move = [&](const PageMask& some) {
    Budget budget = needed(segment, some, request.device);
    budget.pages = budget.pool == reservation.budget().pool ? reservation.take(budget.pages) : 0;
    const Outcome out = to_device(context, segment, some, request, budget);
    reservation.used(budget.pages, out.allocated);
    return out;
  };
  Outcome out = after_sharing_ends(context, segment, move(pages), request.cause, move);
  if (!out.status.ok() || out.skipped == 0) return out;
  ToDevice rest = request;
  rest.want = Want::Move;
  rest.admitted = true;
  const Outcome again = migrate_to_device(context, segment, pages, rest, segment.block->range_of(segment.run));
  out.status = again.status;
  out.skipped = again.skipped;
  out.moved += again.moved;
  out.populated += again.populated;
  return out;
}

}  // namespace uhmm::engine
