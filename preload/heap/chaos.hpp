// SPDX-License-Identifier: Apache-2.0
// `uhmm run --chaos`: random live pages of what is managed go to devices and back, all the time. A program must not
// notice.
#pragma once

#include <array>
#include <cstdint>

#include "preload/heap/live_parts.hpp"
#include "runtime/base/types.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::heap {

class Chaos {
 public:
  Chaos(std::uint64_t seed, std::uint64_t rate);
  // Some migrations. Returns after how many nanoseconds the next are due, at least 1.
  std::uint64_t step();

 private:
  std::uint64_t random();
  std::uint64_t random_below(std::uint64_t bound) { return random() % bound; }
  ByteRange pick();
  void move_one();

  std::array<std::uint64_t, 2> state_;
  std::uint64_t interval_;
  std::uint64_t due_ = 0;
  LiveParts live_;
  std::uint32_t devices_ = 0;
  std::array<uhmm_processor, UHMM_MAX_DEVICES> ids_{};
  std::array<uhmm_page_info, kPagesPerBlock> pages_{};
};

}  // namespace uhmm::preload::heap
