// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fault_service.hpp"

#include <algorithm>

#include "runtime/base/log.hpp"
#include "runtime/engine/migrator.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {
namespace {

constexpr std::uint32_t kHostToken = 0;
constexpr std::uint32_t kFaultToken = 16;  // + device
constexpr std::uint32_t kDeathToken = 32;  // + device
constexpr std::size_t kBatch = 16;

}  // namespace

Status FaultService::start(std::uint32_t threads) {
  stopping_.store(false);
  count_ = 0;
  for (std::uint32_t i = 0; i < std::min(threads, kMostThreads); ++i) {
    Worker& worker = workers_[i];
    worker.service = this;
    worker.number = i;
    worker.state.store(0);
    worker.seen_generation.store(0);
    worker.fault_fds.fill(-1);
    worker.death_fds.fill(-1);
    const Status status = worker.thread.start("uhmm-fault", run, &worker);
    if (!status.ok()) {
      stop();
      return status;
    }
    ++count_;
    worker.state.wait(0);
    if (worker.state.load() == 2) {
      stop();
      return fail(UHMM_ERR_SYSTEM, "a fault service thread could not open its event loop");
    }
  }
  return {};
}

void FaultService::stop() {
  stopping_.store(true);
  for (std::uint32_t i = 0; i < count_; ++i) workers_[i].loop.notify();
  for (std::uint32_t i = 0; i < count_; ++i) {
    workers_[i].thread.join();
    // Not by the thread itself: it may see `stopping_` before it is notified, and the number of what it closes may mean
    // a file of the program's by then.
    workers_[i].loop.close();
  }
  count_ = 0;
}

void FaultService::forget_threads() {
  for (std::uint32_t i = 0; i < count_; ++i) {
    workers_[i].thread.forget();
    workers_[i].loop.close();
  }
  count_ = 0;
}

void FaultService::devices_changed() {
  const std::uint32_t generation = generation_.fetch_add(1) + 1;
  for (std::uint32_t i = 0; i < count_; ++i) {
    workers_[i].loop.notify();
    for (std::uint32_t seen = workers_[i].seen_generation.load(); seen < generation;
         seen = workers_[i].seen_generation.load())
      workers_[i].seen_generation.wait(seen);
  }
}

void FaultService::run(void* argument) {
  auto& worker = *static_cast<Worker*>(argument);
  FaultService& service = *worker.service;
  WorkerPool::enter_runtime_thread();
  os::pin_thread(os::usable_cpu(worker.number % os::usable_cpu_count()));
  const bool good = worker.loop.open().ok() && worker.loop.watch(service.context_.uffd.fd(), kHostToken).ok();
  service.uses_io_uring_.store(worker.loop.uses_io_uring());
  worker.state.store(good ? 1 : 2);
  worker.state.notify_all();
  if (good) service.loop(worker);
}

void FaultService::watch_devices(Worker& worker) {
  const std::uint32_t generation = generation_.load();
  if (worker.seen_generation.load() == generation) return;
  {
    const Operation operation(context_);
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
      Device* device = context_.healthy(DeviceIndex{i});
      const int fault_fd = device != nullptr ? device->fault_fd() : -1;
      const int death_fd = device != nullptr ? device->death_fd() : -1;
      // Always watched anew: the same number may stand for another file by now.
      if (worker.fault_fds[i] >= 0) worker.loop.unwatch(kFaultToken + i);
      if (worker.death_fds[i] >= 0) worker.loop.unwatch(kDeathToken + i);
      if (fault_fd >= 0) (void)worker.loop.watch(fault_fd, kFaultToken + i);
      if (death_fd >= 0) (void)worker.loop.watch(death_fd, kDeathToken + i);
      worker.fault_fds[i] = fault_fd;
      worker.death_fds[i] = death_fd;
    }
  }
  worker.seen_generation.store(generation);
  worker.seen_generation.notify_all();
}

void FaultService::loop(Worker& worker) {
  std::array<std::uint32_t, os::EventLoop::kMostDescriptors> tokens;
  while (!stopping_.load()) {
    watch_devices(worker);
    const std::size_t count = worker.loop.wait(tokens);
    for (std::size_t i = 0; i < count; ++i) {
      if (tokens[i] == kHostToken)
        serve_cpu();
      else if (tokens[i] >= kDeathToken)
        serve_death(DeviceIndex{tokens[i] - kDeathToken});
      else
        serve_device(DeviceIndex{tokens[i] - kFaultToken});
    }
  }
}

void FaultService::serve_cpu() {
  std::array<os::UffdFault, kBatch> faults;
  while (const std::size_t count = context_.uffd.read({faults.data(), 1})) {
    for (std::size_t i = 0; i < count; ++i) serve_cpu_fault(context_, faults[i]);
  }
}

void FaultService::serve_device(DeviceIndex index) {
  std::array<backend::DeviceFault, 1> faults;
  for (;;) {
    std::size_t count = 0;
    {
      const Operation operation(context_);
      Device* device = context_.healthy(index);
      if (device != nullptr) count = device->read_faults(faults);
    }
    if (count == 0) return;
    for (std::size_t i = 0; i < count; ++i) serve_device_fault(context_, index, faults[i]);
  }
}

void FaultService::serve_death(DeviceIndex index) {
  handle_device_death(context_, index);
  generation_.fetch_add(1);
  for (std::uint32_t i = 0; i < count_; ++i) workers_[i].loop.notify();
}

void handle_device_death(Context& context, DeviceIndex index) {
  DeviceSlot& slot = context.slot(index);
  std::uint32_t life = 0;
  {
    // Under the lock the device can't start a new life, to which the news would not belong.
    const Operation operation(context);
    if (slot.device == nullptr) return;
    life = slot.life.load();
    // The descriptor may have told of an earlier life of the device.
    if (context.healthy(index) != nullptr && !slot.device->lost() && !os::process_ended(slot.device->death_fd(), 0))
      return;
    if (slot.claim_loss()) {
      slot.device->handle_death(slot.lost_reason);
      slot.lost.store(true);
      log::write(log::Level::Error, "device %u lost: %s", index.processor(), slot.lost_reason);
      context.record(UHMM_EVENT_DEVICE_LOST, UHMM_CAUSE_DEVICE_LOST, {}, 0, index.processor());
      for (const auto& [begin, range] : context.space.ranges()) {
        (void)context.space.for_each_segment(range->pages, false, [&, range = range](const Segment& segment) {
          if (segment.range == range) (void)lose(context, segment, index);
          return Status{};
        });
      }
      slot.end_loss();
      return;
    }
  }
  slot.wait_for_sweep(life);
}

}  // namespace uhmm::engine
