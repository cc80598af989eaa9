// SPDX-License-Identifier: Apache-2.0
// How much memory this process may use, of the machine or of its control group, whichever is less.
#pragma once

#include <cstdint>

namespace uhmm::os {

struct SystemMemory {
  std::uint64_t total = 0;      // bytes; 0 when it can't be told
  std::uint64_t available = 0;  // bytes that can be had without swapping, as far as the kernel knows
};

// Reads a few files of /proc and /sys: tens of microseconds. No allocation.
SystemMemory system_memory();

// What this process has in system memory of its own, for those who ask often: one descriptor, opened once.
class OwnMemory {
 public:
  OwnMemory() = default;
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;
  ~OwnMemory();
  // 0 or an errno.
  int open();
  // Bytes of private pages, about (the kernel counts them per CPU); 0 when it can't be told.
  std::uint64_t private_bytes() const;

 private:
  int file_ = -1;
};

}  // namespace uhmm::os
