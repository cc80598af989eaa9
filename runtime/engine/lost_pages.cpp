// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/lost_pages.hpp"

#include <atomic>
#include <cerrno>
#include <mutex>

#include "runtime/base/inject.hpp"
#include "runtime/engine/host_pages.hpp"

namespace uhmm::engine {
namespace {

// Has this process ever lost a page? Most never do, and have nothing to look for.
std::atomic<bool> lost_before{false};

}  // namespace

void poison_pages(Context& context, const Segment& segment, const PageMask& pages) {
  if (pages.any()) lost_before.store(true, std::memory_order_relaxed);
  PageMask& replaced = segment.block->bus_error;
  const auto replace = [&](PageRun run) {
    const Replacing replacing(context.news, context.uffd, segment.block->range_of(run));
    if (context.changes.concern(segment.block->range_of(run))) return;  // what the program has put there stays
    if (os::map_bus_error(segment.block->range_of(run)) == 0) replaced.set(run);
  };
  pages.minus(replaced).for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    if (!context.uffd.features().poison) replace(run);
    // Shared memory remembers a protection in the entry of an absent page, where it would be in the way.
    if (context.uffd.features().poison) (void)context.uffd.write_protect(range, false);
    while (run.count != 0 && context.uffd.features().poison) {
      const ByteRange rest = segment.block->range_of(run);
      const os::Progress progress =
          inject::should_fail(inject::Point::Poison) ? os::Progress{0, ENOMEM} : context.uffd.poison(rest);
      auto done = static_cast<std::uint32_t>(progress.done >> kPageShift);
      if (done == 0) {
        // EEXIST: poisoned already. Or the program has mapped something else there, which is its own affair.
        if (progress.error != EEXIST && progress.error != ESTALE && !gone_for_good(progress.error))
          replace({run.first, 1});
        done = 1;
      }
      run = {run.first + done, run.count - done};
    }
    context.uffd.wake(range);
  });
}

void remove_bus_errors(Context& context, const Segment& segment, const PageMask& pages) {
  (pages & segment.block->bus_error).for_each_run([&](PageRun run) {
    const ByteRange range = segment.block->range_of(run);
    const bool shared = segment.range->backing == state::Backing::Shared;
    const Replacing replacing(context.news, context.uffd, range);
    if ((shared ? os::map_again(in_alias(segment, run), range) : os::map_zeros(range)) != 0) return;
    watch_again(context, *segment.range, range);
    segment.block->bus_error.reset(run);
  });
}

void find_lost_pages(Context& context, Range& range) {
  if (!lost_before.load(std::memory_order_relaxed)) return;
  (void)context.space.for_each_segment(range.pages, true, [&](const Segment& segment) {
    Result<PageMask> found = context.process.poisoned(segment.block->base, segment.run);
    if (segment.range != &range || !found.ok() || found->none()) return Status{};
    const std::scoped_lock lock(segment.block->mutex);
    const PageMask fresh = found->minus(segment.block->lost | segment.block->on_devices());
    segment.block->lost |= fresh;
    context.count(range, trace::Counter::PagesLost, fresh.count());
    return Status{};
  });
}

}  // namespace uhmm::engine
