// SPDX-License-Identifier: Apache-2.0
// `uhmm run --host-limit`: device memory as a tier. At most so much of what is managed stays in system memory; what has
// not been touched for longest, as far as can be seen, lives on devices and comes back when it is touched.
#pragma once

#include <array>
#include <cstdint>

#include "preload/heap/live_parts.hpp"
#include "runtime/os/memory.hpp"
#include "runtime/os/system_memory.hpp"
#include "runtime/policy/coldness.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::heap {

class Tier {
 public:
  // 0 or an errno.
  Status open(std::uint64_t limit, bool quiet);
  // Looks, and sends away what is too much. Returns after how many nanoseconds to look again.
  std::uint64_t step();

 private:
  // The unit of warmth: small enough to tell hot from cold, large enough to be worth a journey.
  static constexpr std::uint32_t kPiecePages = 16;
  static constexpr std::uint32_t kPieces = kPagesPerBlock / kPiecePages;
  struct BlockPieces {
    std::array<policy::Warmth, kPieces> warmth;
    std::uint32_t away = 0;  // pieces that were sent away, and not seen back since
  };
  static_assert(kPieces == 32);

  std::uint64_t look();
  std::uint64_t send_away(std::uint64_t bytes);
  std::uint64_t send_block(VirtAddr block, PageRun run, std::uint64_t bytes);
  bool choose_device();
  void warn();

  std::uint64_t limit_ = 0;
  bool quiet_ = false;
  bool warned_ = false;
  os::ProcessMemory process_;
  os::OwnMemory own_;
  LiveParts live_;
  HashMap<std::uint64_t, BlockPieces> blocks_;  // by block number
  VirtAddr hand_;
  std::uint64_t resident_ = 0;  // when it was last looked
  std::uint64_t private_ = 0;   // of the whole process, then
  std::uint64_t looked_ = 0;    // when that was
  uhmm_processor device_ = 0;
  std::uint64_t device_free_ = 0;
};

// The most that was seen in system memory of what is managed, in bytes.
std::uint64_t most_resident();

}  // namespace uhmm::preload::heap
