// SPDX-License-Identifier: Apache-2.0
// The CPU's side of a migration: taking pages out of the program's page table and putting them back. Three ways, chosen
// per range and per page:
//   move    private memory: UFFDIO_MOVE into and out of recycled staging pages. Taking a page *is* the unmap: there is
//           no moment in which a write could get lost.
//   copy    private memory that can't be moved: write-protect, copy through /proc/self/mem, drop; UFFDIO_COPY back.
//   shared  shared memory: unmap from the page table, copy from and to our own view, map again.
// The block's lock is held across each pair of calls. Nothing here ever sleeps in a fault.
#pragma once

#include "runtime/engine/bounce.hpp"
#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Pages taken from the program, on their way to a device. Exactly one of settle() and put_back() ends it for each page.
class Departure {
 public:
  // `huge`: the whole block, which is one huge page.
  Departure(Context& context, const Segment& segment, bool huge) : context_(context), segment_(segment), huge_(huge) {}
  Departure(const Departure&) = delete;
  Departure& operator=(const Departure&) = delete;
  ~Departure();

  // Take `pages` away from the CPU. Returns the pages it got: pinned pages and pages that vanished stay or are gone.
  PageMask take(const PageMask& pages);
  // Copy taken pages to the device. On failure nothing is lost: put_back() follows.
  Status copy_to(DeviceIndex device, const PageMask& pages);
  // End the CPU's own copies that are still in place, after copy_to() and before the device's count as current. Returns
  // the pages of which that is done; put_back() the others.
  PageMask let_go(const PageMask& pages);
  // Has the block been taken as the one huge page that it was?
  bool took_huge() const { return huge_ && moved_ == PageMask::all() && slot_->huge; }
  // The data is elsewhere now. Wakes who waits for the pages.
  void settle(const PageMask& pages);
  // Give pages back to the CPU unchanged; those in `shared`, which a device still has copies of, write-protected.
  void put_back(const PageMask& pages, const PageMask& shared);

 private:
  PageMask take_by_move(const PageMask& pages);
  PageMask take_by_protection(const PageMask& pages);
  bool move_run_in(PageRun run, bool protect);

  Context& context_;
  const Segment& segment_;
  const bool huge_;
  Staging::Slot* slot_ = nullptr;
  PageMask moved_;      // in the staging slot
  PageMask protected_;  // still in place, write-protected
  PageMask dropped_;    // were in place and write-protected
  PageMask unmapped_;   // shared memory: in the page cache, unmapped
};

// Pages on their way back. stage() copies them out of the device, publish() makes them visible to the CPU.
class Arrival {
 public:
  Arrival(Context& context, const Segment& segment) : context_(context), segment_(segment) {}
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;
  ~Arrival();

  // `huge`: the whole block, to become one huge page if there is one to be had.
  Status stage(DeviceIndex device, const PageMask& pages, bool huge);
  // Are these pages' data out of the device? If not, publish() still reads it there.
  bool staged(const PageMask& pages) const;
  // Returns the pages that the CPU has now; wakes whoever waits for them. `protect`: map them write-protected, for
  // pages that stay current on the device too. Pages of memory that the program unmapped meanwhile count as published:
  // their data has no place any more.
  PageMask publish(const PageMask& pages, bool protect);
  // After a failed publish, when the device's own copy is gone already: write the staged data back to it.
  Status unstage(const PageMask& pages);

 private:
  bool publish_run(PageRun run, bool protect, PageMask& done);

  Context& context_;
  const Segment& segment_;
  DeviceIndex device_;
  Staging::Slot* slot_ = nullptr;
  PageMask in_slot_;
  Bounce bounce_;
};

// Do entries in the kernel's page table stand for this range's pages on devices?
bool marks_away(const Context& context, const Range& range);
// Let them, for pages that have just left. What takes a page's place ends its mark.
void mark_away(Context& context, const Segment& segment, const PageMask& pages);

// Which pages have contents on the CPU's side (the others are "none").
Result<PageMask> backed_pages(Context& context, const Segment& segment, const PageMask& pages);
// Write-protect resident pages, so that their contents hold still while a device reads them.
bool protect_pages(Context& context, const Segment& segment, const PageMask& pages);
// Allow writes again and wake writers.
void unprotect_pages(Context& context, const Segment& segment, const PageMask& pages);
// Copy write-protected pages to a device without taking them.
Status copy_protected(Context& context, const Segment& segment, DeviceIndex device, const PageMask& pages);
// Serve faults on pages that are on no device: zero-fill or map them. Wakes.
void serve_home_fault(Context& context, const Segment& segment, const PageMask& pages);
// Shared memory whose pages a device holds copies of: map them write-protected. Wakes.
void map_shared_copy(Context& context, const Segment& segment, const PageMask& pages);
// Where our own view of shared memory shows these pages.
std::byte* in_alias(const Segment& segment, PageRun run);
// From what userfaultfd says of a page: the program unmapped the memory, or put something else there. A page that has
// nowhere to go is not lost data.
bool gone_for_good(int error);
// New mappings are not watched: while the range is armed they have to be, before anything of them can be absent.
void watch_again(Context& context, Range& range, ByteRange pages);
// Free the CPU's copies; the pages read as zeros when touched again.
void drop_cpu_pages(Context& context, const Segment& segment, const PageMask& pages);

// userfaultfd watches a range while something of it is away. arm() before pages leave: it counts a departure, which
// end_departure() ends. Both ends of an operation's stay, and every way home, disarm a range with nothing away.
Status arm(Context& context, Range& range);
void end_departure(Context& context, Range& range);
void disarm_if_home(Context& context, Range& range);

}  // namespace uhmm::engine
