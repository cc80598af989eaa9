// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/host_pages.hpp"

#include <cerrno>
#include <cstring>
#include <ctime>

#include "runtime/base/check.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/engine/permissions.hpp"

namespace uhmm::engine {
namespace {

using inject::Point;
using inject::should_fail;

// A move flushes the staging page from every CPU's TLB, however few pages it takes; a copy flushes nothing, but
// allocates each page.
constexpr std::uint32_t kFewestToMove = 16;
// Splitting a huge page takes a third of a millisecond.
constexpr timespec kMoment{0, 50'000};
constexpr int kMostMoments = 20;

VirtAddr in_slot(const Staging::Slot& slot, PageRun run) { return VirtAddr{slot.memory} + run.offset(); }

// Locked or executable memory differs from staging in a way the kernel minds: this range is copied from now on.
void stop_moving(Context& context, Range& range) {
  if (range.can_move.exchange(false, std::memory_order_relaxed)) context.count(range, trace::Counter::MoveFallbacks, 1);
}

unsigned watch_mode(const Context& context, const Range& range) {
  const bool shared = range.backing == state::Backing::Shared;
  const os::UffdFeatures& features = context.uffd.features();
  const bool write_protect = shared ? features.shared_write_protect : features.write_protect;
  unsigned mode = os::kMissing;
  if (shared) mode |= os::kMinor;
  if (write_protect) mode |= os::kWriteProtect;
  return mode;
}

}  // namespace

std::byte* in_alias(const Segment& segment, PageRun run) {
  return segment.range->alias + (segment.block->base + run.offset() - segment.range->pages.begin);
}

bool gone_for_good(int error) { return error == ENOENT || error == ESRCH || error == EINVAL || error == EFAULT; }

Departure::~Departure() {
  if (slot_ == nullptr) return;
  UHMM_CHECK(moved_.none(), "a departure ended with pages nobody has");
  context_.staging.release(slot_);
}

PageMask Departure::take(const PageMask& pages) {
  if (pages.none()) return {};
  if (segment_.range->backing == state::Backing::Shared) {
    PageMask taken;
    pages.for_each_run([&](PageRun run) {
      // What the program has put there meanwhile is not ours to take.
      if (should_fail(Point::DropManaged) || context_.changes.concern(segment_.block->range_of(run)) ||
          os::drop_pages(segment_.block->range_of(run)) != 0)
        return;
      taken.set(run);
    });
    unmapped_ |= taken;
    return taken;
  }
  if (!context_.use_move || !segment_.range->can_move.load(std::memory_order_relaxed)) return take_by_protection(pages);
  PageMask taken = take_by_move(pages);
  if (!segment_.range->can_move.load(std::memory_order_relaxed)) taken |= take_by_protection(pages.minus(taken));
  return taken;
}

PageMask Departure::take_by_move(const PageMask& pages) {
  if (huge_ && pages == PageMask::all()) slot_ = context_.staging.acquire_for_huge();
  if (slot_ == nullptr) slot_ = context_.staging.acquire_empty(pages);
  if (slot_ == nullptr) return {};
  bool possible = true;
  int moments = kMostMoments;
  pages.for_each_run([&](PageRun run) {
    if (context_.changes.concern(segment_.block->range_of(run))) return;
    bool touched = false;
    bool cleared = false;
    while (run.count != 0 && possible) {
      const VirtAddr from = segment_.block->base + run.offset();
      const os::Progress progress = should_fail(Point::MoveOut)
                                        ? os::Progress{0, EIO}
                                        : context_.uffd.move(in_slot(*slot_, run), from, run.bytes());
      const auto done = static_cast<std::uint32_t>(progress.done >> kPageShift);
      moved_.set({run.first, done});
      run = {run.first + done, run.count - done};
      if (done != 0) touched = false;
      if (run.count == 0) break;
      // Somebody has touched our pages (mlockall): there is nothing of worth in them.
      if (progress.error == EEXIST && !cleared) {
        const VirtAddr to = in_slot(*slot_, run);
        cleared = os::drop_pages({to, to + run.bytes()}) == 0;
        if (cleared) continue;
      }
      // EBUSY: shared with a child since a fork, until it is written; or part of a huge page that is being split; or
      // pinned by the kernel for I/O. A write that changes nothing ends the first and a moment the second: a page that
      // is still busy then is pinned and stays.
      if (progress.error == EBUSY && !touched && os::touch_for_write(segment_.block->base + run.offset())) {
        touched = true;
        continue;
      }
      if (progress.error == EBUSY && moments-- > 0) {
        (void)nanosleep(&kMoment, nullptr);
        continue;
      }
      if (progress.error == EINVAL) {
        stop_moving(context_, *segment_.range);
        possible = false;
        break;
      }
      run = {run.first + 1, run.count - 1};
      touched = false;
    }
  });
  slot_->filled |= moved_;
  if (huge_ && !slot_->small) {
    slot_->huge = moved_ == PageMask::all() && context_.process.is_huge(VirtAddr{slot_->memory});
    slot_->small = !slot_->huge;
  }
  return moved_;
}

PageMask Departure::take_by_protection(const PageMask& pages) {
  PageMask taken;
  pages.for_each_run([&](PageRun run) {
    if (should_fail(Point::WriteProtect) || context_.uffd.write_protect(segment_.block->range_of(run), true) != 0)
      return;
    taken.set(run);
  });
  protected_ |= taken;
  return taken;
}

Status Departure::copy_to(DeviceIndex index, const PageMask& pages) {
  Device& device = *context_.slot(index).device;
  const backend::Window& window = segment_.range->windows[index.value];
  Status status;
  (pages & moved_).for_each_run([&](PageRun run) {
    if (status.ok()) status = device.copy_in(window, segment_.block->range_of(run), slot_->memory + run.offset());
  });
  (pages & unmapped_).for_each_run([&](PageRun run) {
    if (status.ok()) status = device.copy_in(window, segment_.block->range_of(run), in_alias(segment_, run));
  });
  if (status.ok() && pages.intersects(protected_))
    status = copy_protected(context_, segment_, index, pages & protected_);
  return status;
}

PageMask Departure::let_go(const PageMask& pages) {
  PageMask gone;
  (pages & protected_).for_each_run([&](PageRun run) {
    // What the program has put there meanwhile is not ours to drop.
    if (should_fail(Point::DropManaged) || context_.changes.concern(segment_.block->range_of(run))) return;
    if (os::drop_pages(segment_.block->range_of(run)) == 0) {
      gone.set(run);
      return;
    }
    // Where mappings of several kinds meet, a part of them may have gone.
    for (std::uint32_t page = run.first; page < run.end(); ++page)
      if (os::drop_pages(segment_.block->range_of({page, 1})) == 0) gone.set(page);
  });
  const PageMask stayed = (pages & protected_).minus(gone);
  protected_ -= gone;
  dropped_ |= gone;
  return pages.minus(stayed);
}

void Departure::settle(const PageMask& pages) {
  moved_ -= pages;  // the staging pages are free for others now
  UHMM_CHECK(!pages.intersects(protected_), "the CPU's copies end before the device's count");
  // Writers sleep on the protection: their next try is a missing fault.
  (pages & dropped_).for_each_run([&](PageRun run) { context_.uffd.wake(segment_.block->range_of(run)); });
  dropped_ -= pages;
  unmapped_ -= pages;
}

namespace {

// The program has moved the page's place away, or ended it: on return the page is where it belongs now, or nowhere.
void put_page_after(Context& context, VirtAddr page, const std::byte* from) {
  const MapChanges::Knowing here;
  for (;;) {
    const std::uint32_t told = context.changes.told();
    const MapChanges::Place place = context.changes.place_of(page, kPageBytes);
    if (!place.address) return;
    const os::Progress copied = context.uffd.copy(*place.address, from, kPageBytes);
    if (copied.done != 0 || copied.error == EEXIST) return;
    context.uffd.read_on();
    if (gone_for_good(copied.error) && context.uffd.all_told() && told == context.changes.told()) return;
  }
}

}  // namespace

bool Departure::move_run_in(PageRun run, bool protect) {
  const VirtAddr to = segment_.block->base + run.offset();
  std::uint64_t done = 0;
  for (int tries = 0; done < run.bytes() && tries < 1000; ++tries) {
    if (!protect) {  // a moved page can't arrive protected
      const os::Progress progress = context_.uffd.move(to + done, in_slot(*slot_, run) + done, run.bytes() - done);
      done += progress.done;
      if (done == run.bytes()) return true;
    }
    const os::Progress copied =
        context_.uffd.copy(to + done, slot_->memory + run.offset() + done, run.bytes() - done, protect);
    done += copied.done;
    if (copied.error == ESTALE) {
      put_page_after(context_, to + done, slot_->memory + run.offset() + done);
      done += kPageBytes;
    }
    if (copied.error != 0 && gone_for_good(copied.error)) return true;
    if (copied.error == EEXIST) done += kPageBytes;  // the program mapped something new there
  }
  context_.uffd.wake({to, to + run.bytes()});  // whoever slept on a page that was skipped
  return done >= run.bytes();
}

void Departure::put_back(const PageMask& pages, const PageMask& shared) {
  const PageMask moved = pages & moved_;
  moved.minus(shared).for_each_run([&](PageRun run) {
    UHMM_REQUIRE(move_run_in(run, false), "pages taken from the program could not be put back");
  });
  (moved & shared).for_each_run([&](PageRun run) {
    UHMM_REQUIRE(move_run_in(run, true), "pages taken from the program could not be put back");
  });
  // What was moved left its slot; what was copied stayed. Only the kernel knows, so ask for neither: drop both.
  if (moved.any()) {
    slot_->filled -= moved;
    moved.for_each_run([&](PageRun run) {
      (void)os::drop_pages({in_slot(*slot_, run), in_slot(*slot_, run) + run.bytes()});
    });
  }
  moved_ -= pages;
  unprotect_pages(context_, segment_, (pages & protected_).minus(shared));
  protected_ -= pages;
  const auto map_again = [&](const PageMask& unmapped, bool protect) {
    unmapped.for_each_run([&](PageRun run) {
      const ByteRange range = segment_.block->range_of(run);
      (void)context_.uffd.map_existing(range, protect);
      context_.uffd.wake(range);
    });
  };
  map_again((pages & unmapped_).minus(shared), false);
  map_again(pages & unmapped_ & shared, true);
  unmapped_ -= pages;
}

Arrival::~Arrival() {
  if (slot_ != nullptr) context_.staging.release(slot_);
}

Status Arrival::stage(DeviceIndex index, const PageMask& pages, bool huge) {
  device_ = index;
  Device& device = *context_.slot(index).device;
  const backend::Window& window = segment_.range->windows[index.value];
  Status status;
  if (segment_.range->backing == state::Backing::Shared) {
    pages.for_each_run([&](PageRun run) {
      if (status.ok()) status = device.copy_out(window, segment_.block->range_of(run), in_alias(segment_, run));
    });
    return status;
  }
  const bool can_move = context_.use_move && segment_.range->can_move.load(std::memory_order_relaxed);
  if (can_move && huge) slot_ = context_.staging.acquire_huge(context_.process);
  if (slot_ == nullptr && can_move && pages.count() >= kFewestToMove) slot_ = context_.staging.acquire_filled(pages);
  if (slot_ == nullptr) return status;  // publish() copies straight from the device
  in_slot_ = pages & slot_->filled;
  in_slot_.for_each_run([&](PageRun run) {
    if (status.ok()) status = device.copy_out(window, segment_.block->range_of(run), slot_->memory + run.offset());
  });
  return status;
}

bool Arrival::staged(const PageMask& pages) const {
  return segment_.range->backing == state::Backing::Shared || in_slot_.contains(pages);
}

// Publishes a run whose pages are all staged the same way. False: stopped by a failure.
bool Arrival::publish_run(PageRun run, bool protect, PageMask& done) {
  const bool staged = in_slot_.test(run.first);
  while (run.count != 0) {
    const VirtAddr to = segment_.block->base + run.offset();
    os::Progress progress;
    bool left_slot = false;
    if (staged && !protect && segment_.range->can_move.load(std::memory_order_relaxed) && !should_fail(Point::MoveIn)) {
      if (marks_away(context_, *segment_.range)) {
        // In the way of a move; and page tables that only held marks are in the way of a huge page.
        (void)context_.uffd.write_protect({to, to + run.bytes()}, false, os::Wake::No);
        if (slot_->huge) (void)os::drop_pages({to, to + run.bytes()});
      }
      progress = context_.uffd.move(to, in_slot(*slot_, run), run.bytes());
      left_slot = progress.done != 0;
      // Locked or protected since it left: the kernel minds where it moves to, not where it copies to.
      if (progress.error == EINVAL) stop_moving(context_, *segment_.range);
    }
    if (!left_slot) {
      std::size_t bytes = run.bytes();
      const std::byte* from = nullptr;
      if (staged) {
        from = slot_->memory + run.offset();
      } else if (has_aperture(*segment_.range, device_)) {
        from = aperture(*segment_.range, device_, segment_.block->base + run.offset());
      } else {
        // What can't be read in place goes through a buffer, in pieces.
        bytes = std::min(bytes, Bounce::kBytes);
        from = bounce_.fill(context_, segment_, device_, {to, to + bytes});
        if (from == nullptr) return false;
      }
      progress =
          should_fail(Point::CopyToManaged) ? os::Progress{0, ENOMEM} : context_.uffd.copy(to, from, bytes, protect);
      if (!staged) context_.slot(device_).device->charge_link(progress.done);
    }
    auto pages = static_cast<std::uint32_t>(progress.done >> kPageShift);
    if (pages != 0 && left_slot) slot_->filled.reset({run.first, pages});
    if (pages == 0) {
      if (progress.error != EEXIST && !gone_for_good(progress.error)) return false;
      // The program mapped something there itself. Whoever sleeps on the page's fault looks again.
      pages = 1;
      context_.uffd.wake({to, to + kPageBytes});
    }
    done.set({run.first, pages});
    run = {run.first + pages, run.count - pages};
  }
  return true;
}

PageMask Arrival::publish(const PageMask& pages, bool protect) {
  PageMask done;
  if (segment_.range->backing == state::Backing::Shared) {
    pages.for_each_run([&](PageRun run) {
      const ByteRange range = segment_.block->range_of(run);
      // The data is in the page cache: even a page that can't be mapped now is found there by the next fault.
      if (should_fail(Point::CopyToManaged)) return;
      (void)context_.uffd.map_existing(range, protect);
      context_.uffd.wake(range);
      done.set(run);
    });
    return done;
  }
  bool going = true;
  (pages & in_slot_).for_each_run([&](PageRun run) { going = going && publish_run(run, protect, done); });
  pages.minus(in_slot_).for_each_run([&](PageRun run) { going = going && publish_run(run, protect, done); });
  return done;
}

Status Arrival::unstage(const PageMask& pages) {
  Device& device = *context_.slot(device_).device;
  const backend::Window& window = segment_.range->windows[device_.value];
  Status status;
  pages.for_each_run([&](PageRun run) {
    const std::byte* from =
        segment_.range->backing == state::Backing::Shared ? in_alias(segment_, run) : slot_->memory + run.offset();
    if (status.ok()) status = device.copy_in(window, segment_.block->range_of(run), from);
  });
  return status;
}

bool marks_away(const Context& context, const Range& range) {
  return context.uffd.features().marks_absent && range.backing == state::Backing::Private;
}

void mark_away(Context& context, const Segment& segment, const PageMask& pages) {
  if (!marks_away(context, *segment.range)) return;
  pages.for_each_run([&](PageRun run) { (void)context.uffd.write_protect(segment.block->range_of(run), true); });
}

Result<PageMask> backed_pages(Context& context, const Segment& segment, const PageMask& pages) {
  const PageRun span = segment.run;
  if (segment.range->backing == state::Backing::Shared) {
    const std::byte* view = segment.range->alias;
    if (view == nullptr) view = static_cast<std::byte*>(segment.range->pages.begin.pointer());
    // cached() works on block offsets; the view may begin inside the block.
    PageMask found;
    pages.for_each_run([&](PageRun run) {
      const VirtAddr at = segment.block->base + run.offset();
      const std::byte* in_view = view + (at - segment.range->pages.begin);
      const PageMask part = os::cached(in_view, {0, run.count});
      part.for_each_run([&](PageRun hit) { found.set({run.first + hit.first, hit.count}); });
    });
    return found;
  }
  Result<PageMask> found = context.process.backed(segment.block->base, span);
  if (!found.ok()) return found.status();
  return *found & pages;
}

bool protect_pages(Context& context, const Segment& segment, const PageMask& pages) {
  PageMask done;
  bool good = true;
  pages.for_each_run([&](PageRun run) {
    if (!good) return;
    good = !should_fail(Point::WriteProtect) && context.uffd.write_protect(segment.block->range_of(run), true) == 0;
    if (good) done.set(run);
  });
  if (!good) unprotect_pages(context, segment, done);
  return good;
}

void unprotect_pages(Context& context, const Segment& segment, const PageMask& pages) {
  pages.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    if (context.uffd.write_protect(range, false) != 0) context.uffd.wake(range);
  });
}

Status copy_protected(Context& context, const Segment& segment, DeviceIndex index, const PageMask& pages) {
  Device& device = *context.slot(index).device;
  Status status;
  pages.for_each_run([&](PageRun run) {
    if (!status.ok()) return;
    const ByteRange range = segment.block->range_of(run);
    if (segment.range->backing == state::Backing::Shared) {
      status = device.copy_in(segment.range->windows[index.value], range, in_alias(segment, run));
      return;
    }
    if (!has_aperture(*segment.range, index)) {
      status = copy_by_bounce(context, segment, index, range);
      return;
    }
    std::byte* to = aperture(*segment.range, index, range.begin);
    const bool read_all = !should_fail(Point::ReadManaged) && !should_fail(Point::DeviceCopyIn) &&
                          context.process.read(range.begin, to, range.bytes()) == range.bytes();
    if (!read_all)
      status = fail(UHMM_ERR_FAULT, "pages at %#lx vanished while they were copied", range.begin.value);
    else
      device.charge_link(range.bytes());
  });
  return status;
}

void serve_home_fault(Context& context, const Segment& segment, const PageMask& pages) {
  pages.for_each_run([&](PageRun run) {
    ByteRange range = segment.block->range_of(run);
    if (segment.range->backing == state::Backing::Shared) {
      // Touching our view fills holes of the page cache with zeros; then the program's view can map them.
      std::byte* view = in_alias(segment, run);
      (void)os::populate_write({VirtAddr{view}, VirtAddr{view} + run.bytes()});
    }
    const ByteRange all = range;
    while (range.begin < range.end) {
      const os::Progress progress = segment.range->backing == state::Backing::Shared
                                        ? context.uffd.map_existing(range, false)
                                        : context.uffd.zero(range.begin, range.bytes());
      // Present pages are skipped one by one.
      range.begin = range.begin + progress.done + (progress.error != 0 ? kPageBytes : 0);
    }
    context.uffd.wake(all);
  });
}

void map_shared_copy(Context& context, const Segment& segment, const PageMask& pages) {
  pages.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    (void)context.uffd.map_existing(range, true);
    context.uffd.wake(range);
  });
}

void drop_cpu_pages(Context& context, const Segment& segment, const PageMask& pages) {
  pages.for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    if (segment.range->backing == state::Backing::Shared) {
      // The program's own entries too: what makes lost pages raise SIGBUS is in there, not in the page cache.
      (void)os::drop_pages(range);
      const VirtAddr view{in_alias(segment, run)};
      (void)os::remove_shared({view, view + run.bytes()});
    } else {
      (void)os::drop_pages(range);
    }
    context.uffd.wake(range);
  });
}

Status arm(Context& context, Range& range) {
  const std::scoped_lock lock(range.arm_mutex);
  if (!range.armed) {
    UHMM_TRY(check_same_memory(context, range));
    const int error =
        should_fail(Point::Arm) ? ENOMEM : context.uffd.register_range(range.pages, watch_mode(context, range));
    if (error != 0) return fail_errno("registering a range with userfaultfd", error);
    range.armed = true;
    context.copy_shield.raise(context, range, range.pages);
  }
  ++range.departures;
  return {};
}

namespace {

// Under the range's arm lock.
void disarm_locked(Context& context, Range& range) {
  if (!range.armed || range.departures != 0 || range.pages_out.load() != 0) return;
  // A page on the edge may belong to a neighbour that is still armed.
  const ByteRange own = context.space.pages_not_shared(range);
  if (!own.empty()) {
    (void)context.uffd.unregister_range(own);
    context.copy_shield.lower(context, own);
  }
  range.armed = false;
}

}  // namespace

void watch_again(Context& context, Range& range, ByteRange pages) {
  const std::scoped_lock lock(range.arm_mutex);
  if (!range.armed) return;
  (void)context.uffd.register_range(pages, watch_mode(context, range));
  context.copy_shield.raise(context, range, pages);
}

void end_departure(Context& context, Range& range) {
  const std::scoped_lock lock(range.arm_mutex);
  --range.departures;
  disarm_locked(context, range);
}

void disarm_if_home(Context& context, Range& range) {
  const std::scoped_lock lock(range.arm_mutex);
  disarm_locked(context, range);
}

}  // namespace uhmm::engine
