// SPDX-License-Identifier: Apache-2.0
// While fork() is under way nothing leaves system memory: the child gets whole copies. Whoever takes pages away enters
// the gate for that time; fork() closes it. Service threads never wait at it: they leave a device's fault unserved and
// the device is told to retry when the gate opens.
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
    while (closed_.exchange(true)) closed_.wait(true);  // one fork at a time
    for (std::uint32_t count = inside_.load(); count != 0; count = inside_.load()) inside_.wait(count);
  }
  void open() {
    closed_.store(false);
    closed_.notify_all();
  }
  bool closed() const { return closed_.load(); }

 private:
  std::atomic<bool> closed_{false};
  std::atomic<std::uint32_t> inside_{0};
};

// Inside the gate while it lives.
class LeavingMemory {
 public:
  explicit LeavingMemory(ForkGate& gate) : gate_(gate) { gate_.enter(); }
  LeavingMemory(const LeavingMemory&) = delete;
  LeavingMemory& operator=(const LeavingMemory&) = delete;
  ~LeavingMemory() { gate_.leave(); }

 private:
  ForkGate& gate_;
};

}  // namespace uhmm::engine
