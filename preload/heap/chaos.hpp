// SPDX-License-Identifier: Apache-2.0
// `uhmm run --chaos`: random live pages of what is managed go to devices and back, all the time. A program must not
// notice.
#pragma once

#include <array>
#include <cstdint>

#include "preload/own_memory.hpp"
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
  void look_around();
  ByteRange pick();
  void move_one();

  std::array<std::uint64_t, 2> state_;
  std::uint64_t interval_;
  std::uint64_t due_ = 0;
  // What there is to move: of the heap, what was handed out.
  Vector<ByteRange> parts_;
  std::uint64_t bytes_ = 0;
  std::uint64_t seen_version_ = ~std::uint64_t{0};
  std::uint64_t seen_taken_ = 0;
  std::uint32_t devices_ = 0;
  std::array<uhmm_processor, UHMM_MAX_DEVICES> ids_{};
  std::array<uhmm_page_info, kPagesPerBlock> pages_{};
};

}  // namespace uhmm::preload::heap
