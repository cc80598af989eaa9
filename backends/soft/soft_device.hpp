// SPDX-License-Identifier: Apache-2.0
// A device without a GPU: a second process with its own page table, its own memory (a sparse memory file whose offsets
// are addresses) and real page faults, which the program serves. Kernels are functions of the program.
#pragma once

#include <cstdint>

#include "runtime/backend/device.hpp"

namespace uhmm::soft {

struct Options {
  char name[64] = "soft";
  std::uint32_t processor = 1;  // what kernels see as their device
  std::uint64_t memory_bytes = std::uint64_t{2} << 30;
  bool coherent = false;
  std::uint32_t workers = 0;  // 0: CPUs
  std::uint64_t link_latency_ns = 0;
  std::uint64_t link_bytes_per_sec = 0;
  bool use_poison = true;  // false: as on kernels without UFFDIO_POISON (before 6.6)
};

// In the metadata arena; nullptr when that is out of memory. Not opened yet.
backend::Device* create(const Options& options);
// Closes it.
void destroy(backend::Device* device);

}  // namespace uhmm::soft
