// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/work_gate.hpp"

#include <mutex>

#include "runtime/engine/evictor.hpp"
#include "runtime/engine/permissions.hpp"

namespace uhmm::engine {
namespace {

constexpr int kTriesBeforeInsisting = 2;
constexpr int kMostTries = 100;

// This thread gathers: the pages that it moves need not wait for it.
thread_local bool gathers = false;

struct Gathered {
  Status status;
  bool whole = true;  // no page that can't go was passed over: it might be able to go later, and nobody would say so
};

PageMask missing(const Segment& segment, DeviceIndex index, bool* lost = nullptr) {
  const std::scoped_lock lock(segment.block->mutex);
  if (lost != nullptr) *lost = segment.block->lost.intersects(PageMask::of(segment.run));
  const PageMask wanted = PageMask::of(segment.run).minus(segment.block->lost);
  const BlockDevice* part = segment.block->find_device(index);
  return part != nullptr ? wanted.minus(part->resident) : wanted;
}

Status bring(Context& context, const Segment& segment, DeviceIndex index, Gathered& all) {
  bool lost = false;
  const PageMask absent = missing(segment, index, &lost);
  if (lost) all.whole = false;
  if (absent.none()) return {};
  const PageMask readable = permissions_of(context, segment).readable;
  const PageMask coming = absent & readable;
  if (coming != absent) all.whole = false;
  if (coming.none()) return {};
  const ToDevice request{index, Want::Move, UHMM_CAUSE_ACQUIRE, PageMask::all()};
  const Outcome out = migrate_to_device(context, segment, coming, request, segment.block->range_of(segment.run));
  UHMM_TRY(out.status);
  const PageMask stayed = missing(segment, index) & coming;
  if (stayed.none()) return {};
  const VirtAddr at = segment.block->base + std::size_t{stayed.next_set(0)} * kPageBytes;
  return fail(UHMM_ERR_BUSY,
              "a kernel of device %u may reach the page at %#lx, which can't go there now: pinned for I/O",
              index.processor(), at.value);
}

Gathered bring_all(Context& context, DeviceIndex index) {
  Gathered all;
  for (const auto& [begin, range] : context.space.ranges()) {
    if (range->closing.load()) {
      all.whole = false;
      continue;
    }
    all.status = context.space.for_each_segment(range->pages, true, [&, range = range](const Segment& segment) {
      if (segment.range != range) return Status{};
      return bring(context, segment, index, all);
    });
    if (!all.status.ok()) break;
  }
  return all;
}

// Others wait from now on.
class Insistence {
 public:
  explicit Insistence(Context& context) : context_(context) {}
  Insistence(const Insistence&) = delete;
  Insistence& operator=(const Insistence&) = delete;
  ~Insistence() {
    if (!insists_) return;
    context_.insisting.fetch_sub(1);
    context_.insisting.notify_all();
  }
  void begin() {
    if (!insists_) context_.insisting.fetch_add(1);
    insists_ = true;
  }

 private:
  Context& context_;
  bool insists_ = false;
};

}  // namespace

Status gather(Context& context, DeviceIndex index) {
  WorkGate& gate = context.slot(index).gate;
  Insistence insistence(context);
  Status status;
  gathers = true;
  gate.gathering.store(true);
  for (int tries = 0;; ++tries) {
    const std::uint64_t seen = gate.changes();
    if (tries == kTriesBeforeInsisting) insistence.begin();
    bool whole = true;
    if (seen != gate.complete) {
      const Gathered all = bring_all(context, index);
      // A page that can't be taken may be pinned for a moment only.
      if (all.status.code() == UHMM_ERR_BUSY && tries < kMostTries) continue;
      status = all.status;
      whole = all.whole;
    }
    if (!status.ok()) break;
    if (gate.try_start(seen)) {
      if (whole) gate.complete = seen;
      break;
    }
    if (tries >= kMostTries) {
      status = fail(UHMM_ERR_BUSY, "memory goes on leaving device %u while it is gathered there", index.processor());
      break;
    }
  }
  gate.gathering.store(false);
  gathers = false;
  return status;
}

void let_gather_first(Context& context, DeviceIndex towards) {
  if (context.insisting.load(std::memory_order_relaxed) == 0 || gathers) return;
  // What goes where everything is gathered is no hindrance.
  if (towards.value < kMaxDevices && context.slot(towards).gate.gathering.load()) return;
  for (std::uint32_t count = context.insisting.load(); count != 0; count = context.insisting.load())
    context.insisting.wait(count);
}

}  // namespace uhmm::engine
