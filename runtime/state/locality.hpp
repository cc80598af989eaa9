// SPDX-License-Identifier: Apache-2.0
// What a range remembers of its recent faults: a handful of streams, because a kernel's workers and a program's threads
// each walk their own part. Atomics, so that threads may race on it; the worst outcome of a race is a smaller window.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace uhmm::state {

struct Locality {
  static constexpr std::uint32_t kStreams = 8;
  struct Stream {
    std::atomic<std::uint64_t> next{0};     // page number where the stream should go on; 0 for none
    std::atomic<std::uint32_t> window{0};   // pages brought by its last fault
    std::atomic<std::uint64_t> fetched{0};  // number of the block up to which it was fetched ahead
  };
  std::array<Stream, kStreams> streams{};
  std::atomic<std::uint32_t> next_victim{0};
  // How often pages that a device had only read were then written by it: predicts write intent.
  std::atomic<std::int32_t> write_after_read{0};
};

}  // namespace uhmm::state
