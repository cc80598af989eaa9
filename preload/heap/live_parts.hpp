// SPDX-License-Identifier: Apache-2.0
// What there is to move: all that is managed on the program's behalf; of the heap's areas, what was handed out.
#pragma once

#include "preload/own_memory.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::preload::heap {

class LiveParts {
 public:
  void look_again();
  const Vector<ByteRange>& parts() const { return parts_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  Vector<ByteRange> parts_;
  std::uint64_t bytes_ = 0;
  std::uint64_t seen_version_ = ~std::uint64_t{0};
  std::uint64_t seen_taken_ = 0;
};

}  // namespace uhmm::preload::heap
