// SPDX-License-Identifier: Apache-2.0
// The floor of a fault: what a loop written by hand for one range needs, without a runtime around it. poll, read,
// memcpy into a page that is there already, UFFDIO_MOVE; program and service thread on one CPU.
#pragma once

#include <atomic>
#include <thread>

#include "bench/support.hpp"

namespace uhmm::bench {

class FaultFloor {
 public:
  FaultFloor(std::size_t bytes, int cpu);
  FaultFloor(const FaultFloor&) = delete;
  FaultFloor& operator=(const FaultFloor&) = delete;
  ~FaultFloor();
  // The median time of a fault when `pages` are touched in this order; all are away before, and afterwards.
  double touch_us(std::span<const std::uint32_t> pages);

 private:
  void serve();
  void move(std::byte* to, const std::byte* from, std::size_t bytes) const;

  int cpu_;
  int fd_ = -1;
  Memory device_;   // stands for device memory
  Memory staging_;  // recycled pages, all populated while no test runs
  Memory program_;
  std::atomic<bool> stop_{false};
  std::size_t next_staged_ = 0;
};

}  // namespace uhmm::bench
