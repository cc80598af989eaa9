// SPDX-License-Identifier: Apache-2.0
// Using a device that may be lost, restarted or removed by another thread at any moment.
#pragma once

#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {

// Why a device that is not healthy can't be used now: NO_DEVICE, BUSY (being restarted or removed) or DEVICE_LOST.
Status unusable(Context& context, DeviceIndex index);

// Calls visit(Device&) -> Status with the address space lock held shared and the device healthy. Waits while it is
// being restarted, or removed. Not on service threads, and with no lock held.
template <typename Visit>
Status with_device(Context& context, DeviceIndex index, Visit&& visit) {
  DeviceSlot& slot = context.slot(index);
  for (;;) {
    slot.paused.wait(true);
    const Operation operation(context);
    if (Device* device = context.healthy(index); device != nullptr) return visit(*device);
    if (!slot.paused.load()) return unusable(context, index);
  }
}

// The device is about to run something: announces it, makes every range reachable and unmaps what is stale. On success
// the device stays until the caller ends the work with end_device_work(), which is the last it may do with it. Waits as
// with_device() does. To a device without faults everything comes first (work_gate.hpp), and stays until the end.
Status begin_device_work(Context& context, DeviceIndex index, Device** device);
void end_device_work(Context& context, DeviceIndex index, Device& device);

// Who restarts or removes a device: new work waits from now on (until the end of this object), and what is under way
// has ended. Lifecycle lock held.
class DevicePause {
 public:
  DevicePause(Context& context, DeviceIndex index);
  DevicePause(const DevicePause&) = delete;
  DevicePause& operator=(const DevicePause&) = delete;
  ~DevicePause();
  // From now on no page comes to the device either.
  void shut();

 private:
  Context& context_;
  DeviceSlot& slot_;
};

}  // namespace uhmm::engine
