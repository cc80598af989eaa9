// SPDX-License-Identifier: Apache-2.0
// What serving a fault of the CPU and one of a device have in common: where it is, what is there, how much to bring.
#pragma once

#include <algorithm>
#include <mutex>

#include "runtime/engine/context.hpp"
#include "runtime/policy/fault_around.hpp"

namespace uhmm::engine {

inline ByteRange page_at(VirtAddr address) { return {address, address + kPageBytes}; }

inline Segment segment_of(Range& range, Block& block) {
  const ByteRange part = range.pages.intersect({block.base, block.base + kBlockBytes});
  return {&range, &block, PageRun{part.begin.page_in_block(), static_cast<std::uint32_t>(part.bytes() >> kPageShift)}};
}

// The pages that a window of `count` pages from `page` on covers inside the segment.
inline PageMask window_mask(const Segment& segment, std::uint32_t page, std::uint32_t count) {
  const std::uint32_t end = std::min(segment.run.end(), page + count);
  return PageMask::of({page, end - page});
}

inline std::uint32_t most_pages(const Context& context) {
  return static_cast<std::uint32_t>(context.config.fault_around >> kPageShift);
}

// Windows larger than a page end where a larger page would: that keeps later windows aligned.
inline policy::FaultWindow decide(Context& context, state::Locality& locality, const Segment& segment,
                                  std::uint32_t page, std::uint32_t smallest) {
  const std::uint64_t number = (segment.block->base.value >> kPageShift) + page;
  const std::uint32_t most = most_pages(context);
  policy::FaultWindow window = policy::fault_window(locality, number, std::min(smallest, most), most);
  const std::uint32_t room = segment.run.end() - page;
  if (window.pages > room) {
    policy::window_ended(locality, number + window.pages, number + room);
    window.pages = room;
  }
  return window;
}

// What the block says about the page that faulted.
struct Look {
  PageKind kind = PageKind::System;
  PageMask away;
  PageMask shared;
  std::uint32_t holder = kMaxDevices;
  bool huge = false;  // of one huge page on the holder
};
inline Look look_at(Block& block, std::uint32_t page) {
  const std::scoped_lock lock(block.mutex);
  const std::uint32_t holder = block.holder(page);
  const bool huge = holder != kMaxDevices && block.devices[holder]->huge;
  return {block.kind_of(page), block.away(), block.shared(), holder, huge};
}

}  // namespace uhmm::engine
