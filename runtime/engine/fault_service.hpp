// SPDX-License-Identifier: Apache-2.0
// The threads that serve faults of the CPU and of devices: one per CPU, pinned, all watching the same descriptors. The
// one on the faulting CPU runs at once, because the faulting thread sleeps; the others find nothing to read. They never
// touch managed memory, allocate from the heap, or wait for a thread of the program.
#pragma once

#include <array>
#include <atomic>

#include "runtime/base/thread.hpp"
#include "runtime/engine/context.hpp"
#include "runtime/os/event_loop.hpp"

namespace uhmm::engine {

class FaultService {
 public:
  static constexpr std::uint32_t kMostThreads = 64;

  explicit FaultService(Context& context) : context_(context) {}
  Status start(std::uint32_t threads);
  void stop();
  void forget_threads();
  // The device table changed: on return every thread watches the present devices and no others.
  void devices_changed();
  bool uses_io_uring() const { return uses_io_uring_.load(); }

 private:
  struct Worker {
    FaultService* service = nullptr;
    std::uint32_t number = 0;
    Thread thread;
    os::EventLoop loop;
    std::atomic<std::uint32_t> state{0};  // 0 starting, 1 running, 2 failed
    std::atomic<std::uint32_t> seen_generation{0};
    std::array<int, kMaxDevices> fault_fds;
    std::array<int, kMaxDevices> death_fds;
  };
  static void run(void* worker);
  void loop(Worker& worker);
  void watch_devices(Worker& worker);
  void serve_cpu();
  void serve_device(DeviceIndex device);
  void serve_death(DeviceIndex device);

  Context& context_;
  std::array<Worker, kMostThreads> workers_;
  std::uint32_t count_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> uses_io_uring_{false};
  std::atomic<std::uint32_t> generation_{1};
};

// One fault, served to the end. Exposed for the service and for tests.
void serve_cpu_fault(Context& context, const os::UffdFault& fault);
void serve_device_fault(Context& context, DeviceIndex device, const backend::DeviceFault& fault);
// The device died: says why, and accounts for every page that was there. Returns when that is done, also if another
// thread does it. Any thread of the runtime that holds no lock.
void handle_device_death(Context& context, DeviceIndex device);

}  // namespace uhmm::engine
