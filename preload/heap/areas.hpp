// SPDX-License-Identifier: Apache-2.0
// The memory that the program's heap is made of: a few large areas, each registered as one range. Handing memory out
// takes no lock and calls nothing of the runtime: it happens inside malloc(), with the allocator's locks held. The
// keeper's thread registers new areas some time later.
#pragma once

#include <atomic>
#include <cstdint>

#include "runtime/base/types.hpp"

namespace uhmm::preload::heap {

enum class AreaState : std::uint8_t {
  Plain,        // the runtime doesn't know of it: yet, not in this process, or it could not
  Registering,  // nobody may change its pages past the runtime any more
  Registered,
};

struct Area {
  std::atomic<std::uint64_t> begin{0};  // 0: not there yet
  std::uint64_t end = 0;
  std::atomic<std::uint64_t> used{0};  // bytes handed out, from the begin on
  std::atomic<AreaState> state{AreaState::Plain};
  std::atomic<std::uint32_t> droppers{0};  // threads that are dropping pages past the runtime

  ByteRange range() const { return {VirtAddr{begin.load(std::memory_order_relaxed)}, VirtAddr{end}}; }
  // What has been handed out so far.
  ByteRange live() const;
};

// Zeroed memory, or nullptr with the allocator's view of it: out of memory. `alignment` is a power of two.
void* take(std::uint64_t bytes, std::uint64_t alignment);
// Gives the pages' contents up: they read as zeros. False: they are what they were.
bool drop(void* address, std::uint64_t bytes);
// Do both addresses lie in the same area?
bool same_area(const void* first, const void* second);

// Areas there are; visit by number, ascending. An area never goes.
std::uint32_t area_count();
Area* area(std::uint32_t number);  // nullptr: not there yet
// In a forked child: nothing is registered there.
void forget_registrations();

// At most so many bytes are handed out in all; 0: no limit. What is refused is said once, unless `quiet`.
void limit_bytes(std::uint64_t bytes, bool quiet);
std::uint64_t bytes_taken();
std::uint64_t refusals();

// Rung when there is a new area.
std::atomic<std::uint32_t>& bell();

}  // namespace uhmm::preload::heap
