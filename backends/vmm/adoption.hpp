// SPDX-License-Identifier: Apache-2.0
// Device addresses where the program's memory lies already. A driver takes the address space of a reservation from the
// C library, as memory that nobody may touch, and refuses a place that is taken. So its request for exactly that place
// is answered without being carried out: the GPU gets the addresses, the program keeps its memory.
#pragma once

#include "backends/vmm/driver.hpp"

namespace uhmm::vmm {

class Adoption {
 public:
  // In the library of a driver. False: its calls can't be answered, and reserve() gets only what is free anyhow.
  static bool prepare(void* library);

  // Addresses at `begin`, or NOT_SUPPORTED where the driver insists on others.
  static Status reserve(Driver& driver, std::uint64_t begin, std::uint64_t bytes);
  // After a failure the GPU still has them.
  static Status unreserve(Driver& driver, std::uint64_t begin, std::uint64_t bytes);
};

}  // namespace uhmm::vmm
