// SPDX-License-Identifier: Apache-2.0
// Copies between ordinary memory and the GPU by way of pinned buffers: the driver copies pinned memory at the speed of
// the bus and without its locks. Each lane has a stream of its own and two halves, so that one is filled while the
// other travels. Threads that copy at once take a lane each.
#pragma once

#include <array>
#include <atomic>

#include "backends/vmm/driver.hpp"

namespace uhmm::vmm {

class CopyLanes {
 public:
  Status open(Driver& driver);
  void close(Driver& driver);
  // Their context has ended, and they with it.
  void forget() { lanes_ = {}; }

  Status copy_in(Driver& driver, std::uint64_t to, const std::byte* from, std::uint64_t bytes);
  Status copy_out(Driver& driver, std::byte* to, std::uint64_t from, std::uint64_t bytes);
  Status zero(Driver& driver, std::uint64_t address, std::uint64_t bytes);

 private:
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kHalfBytes = std::size_t{512} << 10;
  struct Lane {
    std::byte* buffer = nullptr;  // two halves
    Stream stream = nullptr;
    Event sent[2] = {};
    bool pending[2] = {};
  };
  struct Taken;

  Lane& take();
  void give_back(Lane& lane);
  static Status settle(Driver& driver, Lane& lane, unsigned half);
  // Nothing of the lane's is on its way afterwards.
  static Status finish(Driver& driver, Lane& lane);

  std::array<Lane, kLanes> lanes_;
  std::atomic<std::uint32_t> busy_{0};  // a bit per lane
};

}  // namespace uhmm::vmm
