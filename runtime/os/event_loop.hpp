// SPDX-License-Identifier: Apache-2.0
// Waiting for several descriptors on io_uring (multishot poll), or on poll(2) where io_uring is not allowed. One loop
// belongs to one thread; notify() may come from any thread. Never allocates after open().
#pragma once

#include <liburing.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.hpp"

namespace uhmm::os {

class EventLoop {
 public:
  static constexpr std::size_t kMostDescriptors = 24;

  EventLoop() = default;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  ~EventLoop() { close(); }

  // To be called on the thread that will wait.
  Status open();
  void close();
  bool uses_io_uring() const { return ring_open_; }

  // Watch a descriptor for input. `token` comes back from wait(). Owner thread only.
  Status watch(int fd, std::uint32_t token);
  void unwatch(std::uint32_t token);

  // Sleep until a watched descriptor may be readable or notify() was called. Stores tokens, each once,
  // and returns how many; 0 after notify() alone. A token means "look": there may be nothing to
  // read. Room for kMostDescriptors tokens is enough for all.
  std::size_t wait(std::span<std::uint32_t> tokens);
  // Wake the loop, now or at its next wait(). Any thread; async-signal-safe.
  void notify();

 private:
  struct Watch {
    int fd = -1;
    std::uint32_t token = 0;
    std::uint32_t generation = 0;
    bool armed = false;
  };
  void arm(std::size_t slot);
  void handle(const io_uring_cqe& cqe, std::span<std::uint32_t> tokens, std::size_t* stored);
  static void store(std::uint32_t token, std::span<std::uint32_t> tokens, std::size_t* stored);
  void drain_notification();

  std::array<Watch, kMostDescriptors> watches_;
  io_uring ring_{};
  bool ring_open_ = false;
  int event_fd_ = -1;
  std::uint32_t next_generation_ = 1;
};

}  // namespace uhmm::os
