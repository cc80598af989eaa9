// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/migrator.hpp"

#include <optional>

#include "runtime/base/check.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/engine/block_scope.hpp"
#include "runtime/engine/bounce.hpp"
#include "runtime/engine/coherent.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/fork_keeper.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/permissions.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {
namespace {

using trace::CauseCounter;
using trace::Counter;

// Unmapping this few pages by freeing their memory is cheaper than asking a busy device's process.
constexpr std::uint32_t kFewPages = 4;

// Counts a departure while it lives, so that the range stays armed.
class ArmScope {
 public:
  ArmScope(Context& context, Range& range) : context_(context), range_(range), status_(arm(context, range)) {}
  ArmScope(const ArmScope&) = delete;
  ArmScope& operator=(const ArmScope&) = delete;
  ~ArmScope() {
    if (status_.ok()) end_departure(context_, range_);
  }
  Status status() const { return status_; }

 private:
  Context& context_;
  Range& range_;
  Status status_;
};

void refresh_others(Context& context, const Segment& segment, std::uint32_t except) {
  for (BlockDevice* part : segment.block->devices)
    if (part != nullptr && part->device != except) refresh_list(context, DeviceIndex{part->device}, *part, false);
}

// Keeps the first `most` members of `pages` that are in `limited`; returns what was dropped.
PageMask trim(PageMask& pages, const PageMask& limited, std::uint64_t most) {
  PageMask dropped;
  PageMask counted = pages & limited;
  if (counted.count() <= most) return dropped;
  for (std::uint32_t page = counted.next_set(0); page < kPagesPerBlock; page = counted.next_set(page + 1)) {
    if (most != 0) {
      --most;
    } else {
      dropped.set(page);
    }
    if (page + 1 == kPagesPerBlock) break;
  }
  pages -= dropped;
  return dropped;
}

// One to_device() in progress: what will happen to which pages.
struct Plan {
  PageMask upgrade;  // shared with the device already: only the others' copies end
  PageMask none;     // never touched: zeroed there
  PageMask peers;    // on other devices
  PageMask backed;   // in system memory
};

Status copy_from_peers(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages) {
  Device& device = *context.slot(index).device;
  Status status;
  for (BlockDevice* part : segment.block->devices) {
    if (part == nullptr || part->device == index.value) continue;
    const DeviceIndex from{part->device};
    const PageMask theirs = part->resident & pages;
    if (theirs.none()) continue;
    UHMM_TRY(revoke(context, from, *part, theirs));
    theirs.for_each_run([&](PageRun run) {
      const ByteRange range = segment.block->range_of(run);
      if (!status.ok()) return;
      if (has_aperture(*segment.range, from))
        status =
            device.copy_in(segment.range->windows[index.value], range, aperture(*segment.range, from, range.begin));
      else
        status = copy_between(context, segment, from, index, range);
    });
    UHMM_TRY(status);
  }
  return status;
}

Status zero_on_device(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages) {
  Status status;
  pages.for_each_run([&](PageRun run) {
    if (status.ok())
      status = context.slot(index).device->zero(segment.range->windows[index.value], segment.block->range_of(run));
  });
  return status;
}

void commit_to(Block& block, PageEvent event, const PageMask& pages, DeviceIndex index, Want want) {
  if (pages.none()) return;
  // Exclusive access of another device ends first.
  if (const PageMask held = block.exclusive & pages; held.any()) {
    const PageMask elsewhere = held.minus(block.find_device(index)->resident);
    if (elsewhere.any()) block.commit(PageEvent::Revoke, elsewhere, index);
  }
  block.commit(want == Want::Exclusive ? PageEvent::MakeExclusive : event, pages, index);
}

// What the CPU maps in place and may not go on mapping: it comes home before it can go on to the device. Under the
// block's lock.
PageMask foreign_places(const Segment& segment, const PageMask& pages, DeviceIndex index, uhmm_cause cause) {
  const BlockDevice* part = segment.block->find_device(index);
  const PageMask foreign = segment.block->in_place & segment.block->away() & pages & PageMask::of(segment.run);
  return part != nullptr && cause != UHMM_CAUSE_EXCLUSIVE ? foreign.minus(part->resident) : foreign;
}

}  // namespace

Outcome& Outcome::operator+=(const Outcome& other) {
  if (status.ok()) status = other.status;
  moved += other.moved;
  populated += other.populated;
  there += other.there;
  skipped += other.skipped;
  allocated += other.allocated;
  return *this;
}

Budget needed(const Segment& segment, const PageMask& pages, DeviceIndex index) {
  const std::scoped_lock lock(segment.block->mutex);
  const BlockDevice* part = segment.block->find_device(index);
  const PageMask wanted = (pages & PageMask::of(segment.run)).minus(segment.block->lost);
  if (part == nullptr) return {wanted.count(), segment.range->pool.load()};
  return {wanted.minus(part->allocated).count(), part->allocated.any() ? part->pool : segment.range->pool.load()};
}

Outcome to_device(Context& context, const Segment& segment, PageMask pages, const ToDevice& request, Budget budget) {
  const DeviceIndex index = request.device;
  const Want want = request.want;
  const uhmm_cause cause = request.cause;
  Outcome out;
  Block& block = *segment.block;
  Range& range = *segment.range;
  let_gather_first(context, index);
  const std::uint64_t started = os::now_ns();
  ArmScope armed(context, range);
  if (!armed.status().ok()) {
    out.status = armed.status();
    return out;
  }
  std::optional<BlockScope> scope;
  for (;;) {
    scope.emplace(context, segment);
    const PageMask foreign = foreign_places(segment, pages, index, cause);
    if (foreign.none()) break;
    // Taken from the CPU with the lock given up in between: only what is seen under the lock counts.
    scope.reset();
    out.status = to_system(context, segment, foreign, Want::Move, cause).status;
    if (!out.status.ok()) return out;
  }
  Device* device = context.healthy(index);
  if (device == nullptr || (!request.admitted && context.slot(index).shut.load())) {
    out.status = unusable(context, index);
    return out;
  }
  // A fault that is served late: its kernel has ended, and what the program did since counts more. Only under the lock
  // is that certain: whoever waited for the kernel and then took the pages back did so before, or sees them come.
  const bool on_demand = cause == UHMM_CAUSE_DEVICE_FAULT || cause == UHMM_CAUSE_PREFETCH_FAULT;
  const bool late = on_demand && !device->busy();
  if (range.closing.load() || late) {
    out.skipped = (pages & PageMask::of(segment.run)).count();
    return out;
  }
  BlockDevice* part = block.device(index);
  if (part == nullptr) {
    out.status = fail(UHMM_ERR_NO_MEMORY, "no memory for a block's metadata");
    return out;
  }
  if (part->allocated.none()) part->pool = budget.pool;
  if (part->pool != budget.pool) budget.pages = 0;
  if (!request.admitted && context.pools[part->pool].shut.load()) {
    out.status = fail(UHMM_ERR_BUSY, "the pool of these pages is being destroyed");
    return out;
  }

  pages &= PageMask::of(segment.run);
  // Something else may be there by now.
  const PageMask gone = pages & context.changes.concerned(segment);
  pages -= gone;
  const PageMask lost = pages & block.lost;
  pages -= lost;
  const Permissions allowed = permissions_of(context, segment);
  const PageMask refused = pages.minus(want == Want::Exclusive ? allowed.writable : allowed.readable);
  pages -= refused;
  const PageMask there = pages & part->resident;
  PageMask rest = pages.minus(there);
  const PageMask not_fitting = trim(rest, PageMask::all().minus(part->allocated), budget.pages);
  out.skipped = gone.count() + lost.count() + refused.count() + not_fitting.count();

  Plan plan;
  if (want != Want::Duplicate) plan.upgrade = there & block.system;
  plan.peers = rest & block.away();
  if (const PageMask home = rest.minus(plan.peers); home.any()) {
    Result<PageMask> backed = backed_pages(context, segment, home);
    if (!backed.ok()) {
      out.status = backed.status();
      return out;
    }
    plan.backed = *backed;
    plan.none = home.minus(plan.backed) & request.populate;
  }
  const os::UffdFeatures& features = context.uffd.features();
  const bool duplicate =
      want == Want::Duplicate && device->capabilities().read_only_maps &&
      (range.backing == state::Backing::Shared ? features.shared_write_protect && features.continue_protected
                                               : features.write_protect);

  // What forked children are owed: they keep it ahead of the device's writes, and before it goes elsewhere.
  keep(context, segment, want == Want::Duplicate ? plan.peers : plan.peers | there);

  // Prepare and copy. Every failure leaves all pages with their old copy.
  PageMask populated;
  PageMask from_peers;
  PageMask duplicated;
  PageMask taken;
  // One huge page of the program's, to be moved as one.
  const bool huge = want != Want::Duplicate && !device->capabilities().coherent && plan.backed == PageMask::all() &&
                    range.backing == state::Backing::Private && context.process.is_huge(block.base) &&
                    !inject::should_fail(inject::Point::HugePage);
  Departure departure(context, segment, huge);
  const std::uint64_t copy_started = os::now_ns();
  if (plan.none.any()) {
    out.status = zero_on_device(context, segment, index, plan.none);
    if (out.status.ok()) populated = plan.none;
  }
  if (out.status.ok() && plan.peers.any()) {
    out.status = copy_from_peers(context, segment, index, plan.peers);
    if (out.status.ok()) from_peers = plan.peers;
  }
  if (out.status.ok() && duplicate && plan.backed.any()) {
    // Pages shared with another device are protected already; protecting twice does no harm.
    const PageMask fresh = plan.backed.minus(block.shared());
    // An entry from an earlier visit may still allow writes.
    out.status = revoke_write(context, index, *part, plan.backed);
    if (out.status.ok() && !protect_pages(context, segment, fresh)) {
      out.status = fail(UHMM_ERR_SYSTEM, "write-protecting pages failed");
    } else if (out.status.ok()) {
      out.status = copy_protected(context, segment, index, plan.backed);
      if (!out.status.ok()) unprotect_pages(context, segment, fresh);
    }
    if (out.status.ok()) duplicated = plan.backed;
  }
  if (const PageMask leaving = duplicate ? plan.upgrade : plan.backed | plan.upgrade;
      out.status.ok() && leaving.any()) {
    for (BlockDevice* other : block.devices)
      if (other != nullptr && other != part && out.status.ok())
        out.status = revoke(context, DeviceIndex{other->device}, *other, leaving);
    if (out.status.ok()) {
      taken = departure.take(leaving);
      const PageMask to_copy = taken & plan.backed;
      if (want != Want::Overwrite)
        out.status = departure.copy_to(index, to_copy);
      else
        out.status = zero_on_device(context, segment, index, to_copy.minus(part->allocated));
    }
    const PageMask left = out.status.ok() ? departure.let_go(taken) : PageMask{};
    departure.put_back(taken.minus(left), block.shared());
    taken = left;
    out.pages = leaving.minus(taken);
  }
  const std::uint64_t copy_ns = os::now_ns() - copy_started;

  // Commit.
  const PageMask arrived = populated | from_peers | duplicated | (taken & plan.backed);
  const PageMask fresh_memory = arrived.minus(part->allocated);
  out.allocated = fresh_memory.count();
  part->allocated |= arrived;
  note_other_copies(context, segment, from_peers | taken, index.value, cause);
  commit_to(block, PageEvent::PopulateOnDevice, populated, index, want);
  commit_to(block, PageEvent::MigrateToDevice, from_peers | (taken & plan.backed), index, want);
  commit_to(block, PageEvent::DeviceWrite, taken & plan.upgrade, index, want);
  commit_to(block, PageEvent::DuplicateToDevice, duplicated, index, Want::Duplicate);
  const PageMask already = there.minus(plan.upgrade);
  if (want == Want::Exclusive) commit_to(block, PageEvent::MakeExclusive, already.minus(block.exclusive), index, want);
  if (departure.took_huge() && taken == PageMask::all()) part->huge = true;
  departure.settle(taken);
  mark_away(context, segment, populated | taken);

  // The new mapping.
  const PageMask resident = pages & part->resident;
  const PageMask writable = resident.minus(block.system).minus(block.owed) & allowed.writable;
  map_resident(context, index, *part, writable, true);
  map_resident(context, index, *part, resident.minus(writable), false);
  if (want != Want::Exclusive)
    map_in_place(context, segment, index, arrived.minus(duplicated) | (taken & plan.upgrade));
  refresh_list(context, index, *part, true);
  refresh_others(context, segment, index.value);

  const PageMask copied = from_peers | duplicated | (want == Want::Overwrite ? PageMask{} : taken & plan.backed);
  out.moved = copied.count();
  out.populated = (arrived.minus(copied)).count();
  out.there = there.minus(plan.upgrade.minus(taken)).count();
  out.skipped += rest.minus(arrived).count() + plan.upgrade.minus(taken).count();
  context.count(range, CauseCounter::PagesToDevice, cause, out.moved);
  context.count(range, Counter::BytesToDevice, out.moved << kPageShift);
  context.count(range, Counter::PagesPopulated, out.populated);
  context.count(range, Counter::CopyNs, copy_ns);
  record_runs(context, segment, copied, UHMM_EVENT_TO_DEVICE, cause, index.processor(), os::now_ns() - started);
  record_runs(context, segment, arrived.minus(copied), UHMM_EVENT_POPULATE, cause, index.processor());
  return out;
}

namespace {

// Brings pages home from the one device that has them. Returns those that came.
PageMask bring_home(Context& context, const Segment& segment, DeviceIndex index, BlockDevice& part,
                    const PageMask& pages, Want want, Status& status) {
  Arrival arrival(context, segment);
  Device& device = *context.slot(index).device;
  const bool duplicate = want == Want::Duplicate;
  const bool huge =
      part.huge && !duplicate && pages == PageMask::all() && !inject::should_fail(inject::Point::HugePage);
  // A few pages of a running device: stop its writes, copy, then unmap by freeing; nothing waits for its process.
  const bool few = !duplicate && pages.count() <= kFewPages && must_ask(context, index, part, pages);
  status = duplicate || few ? revoke_write(context, index, part, pages) : revoke(context, index, part, pages);
  if (status.ok()) status = arrival.stage(index, pages, huge);
  if (!status.ok()) return {};
  bool freed = false;
  if (few && arrival.staged(pages)) {
    freed = true;
    pages.for_each_run([&](PageRun run) {
      if (status.ok()) {
        status = device.unmap_and_free(segment.range->windows[index.value], segment.block->range_of(run));
      }
    });
    // What is staged can be published in any case: a part that could not be freed must not stay mapped, though.
    if (!status.ok()) status = device.lost() ? Status{} : revoke(context, index, part, pages);
    part.mapped -= pages;
    part.writable -= pages;
  } else if (few) {
    status = revoke(context, index, part, pages);
  }
  if (!status.ok()) return {};
  const PageMask came = arrival.publish(pages, duplicate);
  const PageMask stayed = pages.minus(came);
  if (stayed.any()) {
    status =
        fail(UHMM_ERR_NO_MEMORY, "no system memory for %u pages at %#lx", stayed.count(), segment.block->base.value);
    if (freed) {
      const Status written = arrival.unstage(stayed);
      UHMM_REQUIRE(written.ok() || device.lost(), "staged pages could not be written back");
    }
  }
  if (freed) forget_memory(context, index, part, came);
  return came;
}

}  // namespace

Outcome to_system(Context& context, const Segment& segment, PageMask pages, Want want, uhmm_cause cause) {
  Outcome out;
  Block& block = *segment.block;
  let_gather_first(context, DeviceIndex{kMaxDevices});
  const std::uint64_t started = os::now_ns();
  pages &= PageMask::of(segment.run);
  {
    BlockScope scope(context, segment);
    const PageMask gone = pages & context.changes.concerned(segment);
    pages -= gone;
    out.skipped = (pages & block.lost).count() + gone.count();
    const PageMask shared = want == Want::Duplicate ? PageMask{} : pages & block.shared();
    const PageMask away = pages & block.away();
    keep(context, segment, away);
    out.there = (pages.minus(block.lost).minus(away)).count();
    for (BlockDevice* part : block.devices) {
      if (part == nullptr) continue;
      // Acquired since it was chosen.
      if (cause == UHMM_CAUSE_EVICTION && context.is_held(*part)) continue;
      const DeviceIndex index{part->device};
      const PageMask theirs = part->resident & away;
      if (theirs.none()) continue;
      const std::uint64_t copy_started = os::now_ns();
      Status status;
      // Nor can a device that may always write keep a copy beside another one.
      const bool whole = block.exclusive.intersects(theirs) || block.in_place.intersects(theirs) ||
                         !context.slot(index).capabilities.read_only_maps;
      const Want how = whole ? Want::Move : want;
      const PageMask in_place = theirs & block.in_place;
      PageMask came;
      if (in_place.any()) came = bring_home_from_place(context, segment, index, in_place, status);
      if (status.ok() && theirs != in_place)
        came |= bring_home(context, segment, index, *part, theirs.minus(in_place), how, status);
      if (!status.ok() && out.status.ok()) out.status = status;
      out.skipped += theirs.minus(came).count();
      if (came.none()) continue;
      context.count(*segment.range, Counter::CopyNs, os::now_ns() - copy_started);
      if (how == Want::Duplicate) {
        block.commit(PageEvent::DuplicateToSystem, came, index);
      } else {
        note_freed(context, segment, index, came, cause);
        const PageMask exclusive = came & block.exclusive;
        if (exclusive.any()) {
          block.commit(PageEvent::Revoke, exclusive, index);
          record_runs(context, segment, exclusive, UHMM_EVENT_REVOKE, cause, index.processor());
        }
        if (came != exclusive) block.commit(PageEvent::MigrateToSystem, came.minus(exclusive), index);
      }
      refresh_list(context, index, *part, false);
      leave_to_copy(context, segment, came);
      out.moved += came.count();
      out.pages |= came;
      record_runs(context, segment, came, UHMM_EVENT_TO_SYSTEM, cause, index.processor(), os::now_ns() - started);
    }
    if (shared.any()) {
      PageMask ended = shared;
      for (BlockDevice* part : block.devices) {
        if (part == nullptr) continue;
        const DeviceIndex index{part->device};
        const PageMask theirs = part->resident & shared;
        if (theirs.none()) continue;
        if (const Status status = revoke(context, index, *part, theirs); !status.ok()) {
          out.status = status;
          ended -= theirs;
          continue;
        }
        note_freed(context, segment, index, theirs, cause);
        block.commit(PageEvent::DropDuplicate, theirs, index);
        refresh_list(context, index, *part, false);
      }
      unprotect_pages(context, segment, ended);
    }
    context.count(*segment.range, CauseCounter::PagesToSystem, cause, out.moved);
    context.count(*segment.range, Counter::BytesToSystem, out.moved << kPageShift);
  }
  // After a fault a small range stays armed: changing that costs as much as the fault, and an armed range that is home
  // costs nothing but a message for each page that was never touched.
  const bool leave_armed = cause == UHMM_CAUSE_CPU_FAULT && segment.range->pages.bytes() <= kBlockBytes;
  if (!leave_armed && segment.range->pages_out.load() == 0) disarm_if_home(context, *segment.range);
  return out;
}

namespace {

// `only`: the device whose copies end, or kMaxDevices for all of them.
Outcome end_copies(Context& context, const Segment& segment, PageMask pages, std::uint32_t only, uhmm_cause cause) {
  Outcome out;
  Block& block = *segment.block;
  BlockScope scope(context, segment);
  pages &= PageMask::of(segment.run) & block.shared();
  for (BlockDevice* part : block.devices) {
    if (part == nullptr || (only != kMaxDevices && part->device != only)) continue;
    // Acquired since it was chosen.
    if (cause == UHMM_CAUSE_EVICTION && context.is_held(*part)) continue;
    const DeviceIndex index{part->device};
    const PageMask theirs = part->resident & pages;
    if (theirs.none()) continue;
    PageMask ended;
    Status status;
    // A few pages of a running device are unmapped by freeing them, as in bring_home().
    if (theirs.count() <= kFewPages && must_ask(context, index, *part, theirs)) {
      theirs.for_each_run([&](PageRun run) {
        if (status.ok())
          status = context.slot(index).device->unmap_and_free(segment.range->windows[index.value], block.range_of(run));
        if (status.ok()) ended.set(run);
      });
      forget_memory(context, index, *part, ended);
    } else {
      status = revoke(context, index, *part, theirs);
      if (status.ok()) ended = theirs;
    }
    note_freed(context, segment, index, ended, cause);
    if (ended.any()) block.commit(PageEvent::DropDuplicate, ended, index);
    refresh_list(context, index, *part, false);
    if (!status.ok() && out.status.ok()) out.status = status;
  }
  // Where every copy ended, the CPU may write.
  out.pages = pages.minus(block.shared());
  unprotect_pages(context, segment, out.pages);
  out.there = out.pages.count();
  return out;
}

}  // namespace

Outcome end_sharing(Context& context, const Segment& segment, PageMask pages, uhmm_cause cause) {
  return end_copies(context, segment, pages, kMaxDevices, cause);
}

Outcome end_copies_of(Context& context, const Segment& segment, PageMask pages, DeviceIndex device, uhmm_cause cause) {
  return end_copies(context, segment, pages, device.value, cause);
}

}  // namespace uhmm::engine
