// SPDX-License-Identifier: Apache-2.0
// Finding room in a device's memory.
#pragma once

#include "runtime/engine/migrator.hpp"

namespace uhmm::engine {

// Room for pages, promised before the block's lock is taken. Retained memory is given back first, then blocks are
// evicted, least recently used first; never from `avoid`.
class Reservation {
 public:
  Reservation(Context& context, DeviceIndex device) : context_(context), device_(device) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() { settle(0); }

  // No block lock held; address space lock held shared. Gets all that `need` asks for, or what can be had.
  // Errors: DEVICE_FULL (not one page, though some are needed).
  Status obtain(Budget need, ByteRange avoid);
  Budget budget() const { return promised_; }
  // For several operations that share it: at most so many pages for one of them, and how many of those it allocated.
  std::uint64_t take(std::uint64_t pages);
  void used(std::uint64_t taken, std::uint64_t allocated) {
    untaken_ += taken - allocated;
    used_ += allocated;
  }
  // settle() for them all.
  void settle_used() { settle(used_); }
  DeviceIndex device() const { return device_; }
  // The operation allocated so many of the promised pages; the rest goes back.
  void settle(std::uint64_t allocated);

 private:
  Context& context_;
  DeviceIndex device_;
  Budget promised_;
  std::uint64_t untaken_ = 0;
  std::uint64_t used_ = 0;
};

// to_device() with its own reservation. `avoid`: never evict from there to make room.
Outcome migrate_to_device(Context& context, const Segment& segment, const PageMask& pages, const ToDevice& request,
                          ByteRange avoid);

// to_device() of a part of what `reservation` was obtained for; the caller settles it when all parts are done. What the
// promise does not cover any more (memory was freed or given another pool meanwhile) is moved like anything else.
Outcome migrate_reserved(Context& context, const Segment& segment, const PageMask& pages, const ToDevice& request,
                         Reservation& reservation);

// For the one page that a device waits for, after migrate_to_device() found no room: other pages of the same block go,
// and then what only advice pins. A kernel that can't go on is worse than an advice that is not followed. What is held
// stays.
void make_room(Context& context, const Segment& segment, std::uint32_t page, DeviceIndex device);

// Bring every page of a block home from a device and free its memory there.
Status evict_block(Context& context, Block& block, DeviceIndex device, uhmm_cause cause);

}  // namespace uhmm::engine
