// SPDX-License-Identifier: Apache-2.0
// A GPU as a device, by its driver's virtual memory management. Device memory has the program's addresses, in mappings
// of 2 MiB; which pages of a mapping are current is the engine's affair. There are no page faults: what a kernel may
// reach has to be there when it starts.
#pragma once

#include "backends/vmm/driver.hpp"
#include "runtime/backend/device.hpp"

namespace uhmm::vmm {

struct Options {
  char name[32] = {};
  Vendor vendor = Vendor::Cuda;
  std::uint32_t ordinal = 0;       // among the vendor's devices
  char library[256] = {};          // empty: by its usual name
  std::uint64_t memory_bytes = 0;  // most of the GPU's own memory; 0: nine tenths of what is free at the start
  std::uint64_t spill_bytes = 0;   // most of pinned system memory for what doesn't fit there
};

// nullptr: no memory. The driver is opened by Device::open().
backend::Device* create(const Options& options);
void destroy(backend::Device* device);

}  // namespace uhmm::vmm
