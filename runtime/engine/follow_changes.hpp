// SPDX-License-Identifier: Apache-2.0
// The program has changed the map of managed memory past us: the ranges follow. By the worker that deals with
// MapChanges, one change after the other.
#pragma once

#include <cstddef>
#include <span>

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Contents travel in pieces of this size.
inline constexpr std::size_t kMovePiece = std::size_t{256} << 10;

// Moved with mremap(2): what was away comes home at the new address, and the pages end as forgotten ones do.
void follow_move(Context& context, const os::UffdMove& move, std::span<std::byte, kMovePiece> buffer);
// Unmapped, or mapped over: the pages end as forgotten ones do.
void follow_unmap(Context& context, ByteRange pages);

// The address is watched and of no range: a mapping that was watched has grown, or moved. Its part around the address
// is watched no more.
void watch_no_more(Context& context, VirtAddr address);

}  // namespace uhmm::engine
