// SPDX-License-Identifier: Apache-2.0
// Pages whose only copy is gone raise SIGBUS when the CPU touches them, until their contents are given up (discard) or
// the program maps something new there.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Make absent pages, which are lost, raise SIGBUS. Wakes.
void poison_pages(Context& context, const Segment& segment, const PageMask& pages);
// Make pages that are lost no more absent again, and watched, where poison_pages() had to put another mapping there.
void remove_bus_errors(Context& context, const Segment& segment, const PageMask& pages);
// A range was registered: pages of it that an earlier registration left behind lost are lost again. Address space
// locked.
void find_lost_pages(Context& context, Range& range);
}  // namespace uhmm::engine
