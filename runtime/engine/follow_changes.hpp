// SPDX-License-Identifier: Apache-2.0
// The program has changed the map of managed memory past us: the ranges follow. By the worker that deals with
// MapChanges, one change after the other.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Moved with mremap(2): what was away comes home at the new address, and the pages end as forgotten ones do.
void follow_move(Context& context, const os::UffdMove& move);
// Unmapped, or mapped over: the pages end as forgotten ones do.
void follow_unmap(Context& context, ByteRange pages);

// The address is watched and of no range: a mapping that was watched has grown, or moved. Its part around the address
// is watched no more.
void watch_no_more(Context& context, VirtAddr address);

}  // namespace uhmm::engine
