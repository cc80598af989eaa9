// SPDX-License-Identifier: Apache-2.0
// For how long has a device's fault not been served? A page that the kernel has pinned for I/O can't leave system
// memory; most pins end soon, but one of a registered buffer may last as long as the program.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/base/lock.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::engine {

class Patience {
 public:
  // Beyond it a kernel's access fails. Tests change it.
  static inline std::atomic<std::uint64_t> limit_ns{10'000'000'000};

  // The fault at `page` could not be served once more. True when that goes on for longer than the limit.
  bool ends(VirtAddr page, std::uint64_t now_ns);

 private:
  struct Wait {
    VirtAddr page;
    std::uint64_t since_ns = 0;
    std::uint64_t last_ns = 0;
  };
  RankedMutex<LockRank::Patience> mutex_;
  std::array<Wait, 16> waits_;
};

}  // namespace uhmm::engine
