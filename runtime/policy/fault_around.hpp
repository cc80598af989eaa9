// SPDX-License-Identifier: Apache-2.0
// How much to bring around a fault. A fault that continues where an earlier window ended confirms locality and doubles
// the window; any other fault gets the smallest one. Pure decisions: no locks, no system calls.
#pragma once

#include <cstdint>

#include "runtime/state/locality.hpp"

namespace uhmm::policy {

struct FaultWindow {
  std::uint32_t pages = 1;  // how many pages from the faulting one on
  // As large as it gets: worth fetching ahead. The walk's record; nullptr otherwise.
  state::Locality::Stream* stream = nullptr;
  bool streaming() const { return stream != nullptr; }
};

// A fault at page number `page`; `smallest` and `most` in pages.
FaultWindow fault_window(state::Locality& locality, std::uint64_t page, std::uint32_t smallest, std::uint32_t most);
// Blocks to fetch ahead of a walk that goes on at block number `next`, each of them once.
struct FetchAhead {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
FetchAhead fetch_ahead(state::Locality::Stream& stream, std::uint64_t next);
// A window that should have ended before page `expected` really ended before `next`.
void window_ended(state::Locality& locality, std::uint64_t expected, std::uint64_t next);

// A device's read fault: take the page away from system memory at once, because this range's pages are usually written
// right after? Saves the second fault.
bool predict_device_write(const state::Locality& locality);
void learn_device_write(state::Locality& locality, bool written_after_read, std::uint32_t pages);

}  // namespace uhmm::policy
