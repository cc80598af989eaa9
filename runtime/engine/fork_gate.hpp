// SPDX-License-Identifier: Apache-2.0
// While fork() is under way nothing leaves system memory: what the child gets by the copy, and what it is owed, is
// settled. The same while a range comes or goes that has a page in common with another: the page changes hands at home.
// Whoever takes pages away enters the gate for that time. Service threads never wait at it: they leave a device's fault
// unserved, and the device is told to retry when the gate opens.
#pragma once

#include <atomic>
#include <cstdint>

namespace uhmm::engine {

class ForkGate {
 public:
  // False while closed.
  bool try_enter() {
    inside_.fetch_add(1);
    if (!closed_.load()) return true;
    turned_away_.store(true);
    if (!closed_.load()) return true;  // who opens may not have seen the mark
    leave();
    return false;
  }
  // Waits while closed. Not on service threads.
  void enter() {
    while (!try_enter()) closed_.wait(true);
  }
  void leave() {
    if (inside_.fetch_sub(1) == 1) inside_.notify_all();
  }
  // Closes and waits until nobody is inside.
  void close() {
    while (closed_.exchange(true)) closed_.wait(true);  // one at a time
    for (std::uint32_t count = inside_.load(); count != 0; count = inside_.load()) inside_.wait(count);
  }
  // True if somebody was turned away meanwhile: retry_device_faults() (memory_calls.hpp) is due.
  bool open() {
    closed_.store(false);
    closed_.notify_all();
    return turned_away_.exchange(false);
  }
  bool closed() const { return closed_.load(); }

 private:
  std::atomic<bool> closed_{false};
  std::atomic<bool> turned_away_{false};
  std::atomic<std::uint32_t> inside_{0};
};

}  // namespace uhmm::engine
