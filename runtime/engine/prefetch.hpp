// SPDX-License-Identifier: Apache-2.0
// Fetching ahead of a confirmed walk, on worker threads. The first page of each block stays behind as a marker:
// touching it is a small fault that says the walk goes on, and asks for the blocks after it.
#pragma once

#include "runtime/engine/migrator.hpp"

namespace uhmm::engine {

// The walk goes on at `next`. Does not block; when too much is under way already it does nothing.
void prefetch_to_system(Context& context, VirtAddr next, state::Locality::Stream& stream);
void prefetch_to_device(Context& context, VirtAddr next, state::Locality::Stream& stream, DeviceIndex device,
                        Want want);

}  // namespace uhmm::engine
