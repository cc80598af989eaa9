// SPDX-License-Identifier: Apache-2.0
// Every change of where a page's current copy is, one segment at a time, under its block's lock:
//   prepare   who holds what; take the mappings away from whoever may not go on writing
//   copy      move the data
//   commit    one call of Block::commit per device, then the new mapping
// or roll back: at every point before the commit all pages still have their old copy. Callers hold the address space's
// lock shared and no block lock.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

enum class Want : std::uint8_t {
  Move,       // the only current copy
  Duplicate,  // a current copy; others keep theirs
  Exclusive,  // atomic access
  Overwrite,  // the only current copy, contents will be overwritten (not copied)
};

struct Outcome {
  Status status;                // of the first failure; pages before it are done
  PageMask pages;               // to_system, end_sharing: pages that the CPU has again, and whose waiters were woken;
                                // to_device: pages that could not be taken from the program
  std::uint64_t moved = 0;      // copied
  std::uint64_t populated = 0;  // zeroed
  std::uint64_t there = 0;      // were there already
  std::uint64_t skipped = 0;    // stay where they are
  std::uint64_t allocated = 0;  // device pages newly backed (what a reservation must settle)

  Outcome& operator+=(const Outcome& other);
};

// Device memory that an operation may newly allocate, and which pool pays for it.
struct Budget {
  std::uint64_t pages = 0;
  std::uint32_t pool = 0;
};

struct ToDevice {
  DeviceIndex device;
  Want want = Want::Move;
  uhmm_cause cause = UHMM_CAUSE_NONE;
  PageMask populate = PageMask::all();  // of never-touched pages, those that may be given backing
  bool admitted =
      false;  // the caller found device and pool not shut, under the lock that it still has: nor are they now
};

// Pages to a device, as many as the budget allows. Pages that are there already are mapped again if they are not.
Outcome to_device(Context& context, const Segment& segment, PageMask pages, const ToDevice& request, Budget budget);
// Pages home. Move ends every device copy; Duplicate leaves the devices readable copies.
Outcome to_system(Context& context, const Segment& segment, PageMask pages, Want want, uhmm_cause cause);
// The CPU writes shared pages: device copies end, writing is allowed.
Outcome end_sharing(Context& context, const Segment& segment, PageMask pages, uhmm_cause cause);
// The same for the copies of one device; where it was the only one that shared, the CPU may write.
Outcome end_copies_of(Context& context, const Segment& segment, PageMask pages, DeviceIndex device, uhmm_cause cause);
// Drop contents wherever they are.
Status discard(Context& context, const Segment& segment, PageMask pages);
// The same for pages whose addresses the kernel has given to something else: only what devices have of them ends.
Status abandon(Context& context, const Segment& segment, PageMask pages);
// The same for those shared pages of private memory whose copy in system memory the program has dropped by itself.
Status discard_dropped(Context& context, const Segment& segment, PageMask pages);
// The device died: pages whose only copy was there are lost. Returns how many.
std::uint64_t lose(Context& context, const Segment& segment, DeviceIndex device);
// Refuse the CPU these pages, which are on a device: they are lost by their pool owner's will.
void refuse(Context& context, const Segment& segment, PageMask pages);

// What to_device() would have to allocate (takes the block's lock).
Budget needed(const Segment& segment, const PageMask& pages, DeviceIndex device);

}  // namespace uhmm::engine
