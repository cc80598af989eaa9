// SPDX-License-Identifier: Apache-2.0
// What every change of a block's masks does besides: keep the counts right, record events, tell pool owners.
#pragma once

#include <array>
#include <mutex>

#include "runtime/engine/context.hpp"
#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {

// The block's lock, and the counts that follow from what changed while it was held. All counting of a move is done
// under the lock: see wait_for_moves().
class BlockScope {
 public:
  BlockScope(Context& context, const Segment& segment)
      : context_(context), segment_(segment), lock_(segment.block->mutex) {
    out_ = out();
    lost_ = lost();
    for (const BlockDevice* part : segment.block->devices)
      if (part != nullptr) copies_[part->device] = copies(*part);
  }
  BlockScope(const BlockScope&) = delete;
  BlockScope& operator=(const BlockScope&) = delete;
  ~BlockScope() {
    // Unsigned wrap-around makes "add the difference" right in both directions.
    segment_.range->pages_out.fetch_add(static_cast<std::int64_t>(out()) - static_cast<std::int64_t>(out_));
    context_.count(*segment_.range, trace::Counter::PagesLost, std::uint64_t{lost()} - lost_);
    for (const BlockDevice* part : segment_.block->devices) {
      if (part == nullptr) continue;
      const std::uint64_t change = std::uint64_t{copies(*part)} - copies_[part->device];
      if (change == 0) continue;
      context_.slots[part->device].current_pages.fetch_add(change);
      context_.count(*segment_.range, trace::Counter::PagesOnDevices, change);
    }
  }

 private:
  PageMask mine() const { return PageMask::of(segment_.run); }
  std::uint32_t out() const { return (segment_.block->on_devices() & mine()).count(); }
  std::uint32_t lost() const { return (segment_.block->lost & mine()).count(); }
  std::uint32_t copies(const BlockDevice& part) const { return (part.resident & mine()).count(); }

  Context& context_;
  const Segment& segment_;
  std::scoped_lock<Block::Mutex> lock_;
  std::uint32_t out_ = 0;
  std::uint32_t lost_ = 0;
  std::array<std::uint32_t, kMaxDevices> copies_{};
};

inline void record_runs(Context& context, const Segment& segment, const PageMask& pages, uhmm_event_kind kind,
                        uhmm_cause cause, std::uint32_t processor, std::uint64_t duration = 0) {
  pages.for_each_run([&](PageRun run) {
    context.record(kind, cause, segment.block->range_of(run), run.count, processor, duration);
    duration = 0;
  });
}

// Copies elsewhere than on `keep` end: notes it for their owners.
inline void note_other_copies(Context& context, const Segment& segment, const PageMask& pages, std::uint32_t keep,
                              uhmm_cause cause) {
  for (const BlockDevice* part : segment.block->devices)
    if (part != nullptr && part->device != keep)
      note_freed(context, segment, DeviceIndex{part->device}, part->resident & pages, cause);
}

}  // namespace uhmm::engine
