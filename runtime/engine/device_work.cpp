// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/device_work.hpp"

#include <thread>

#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/mirrors.hpp"

namespace uhmm::engine {

Status unusable(Context& context, DeviceIndex index) {
  const DeviceSlot& slot = context.slot(index);
  if (slot.device == nullptr) return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", index.processor());
  if (slot.paused.load()) return fail(UHMM_ERR_BUSY, "device %u is being restarted or removed", index.processor());
  return fail(UHMM_ERR_DEVICE_LOST, "device %u is lost: %s", index.processor(), slot.lost_reason);
}

namespace {

// Memory leaves the program to be gathered on a device: not while fork() is under way.
class ForkPass {
 public:
  explicit ForkPass(Context& context) : context_(context) {}
  ForkPass(const ForkPass&) = delete;
  ForkPass& operator=(const ForkPass&) = delete;
  ~ForkPass() {
    if (entered_) context_.fork_gate.leave();
  }
  void enter() {
    context_.fork_gate.enter();
    entered_ = true;
  }
  bool entered() const { return entered_; }

 private:
  Context& context_;
  bool entered_ = false;
};

}  // namespace

Status begin_device_work(Context& context, DeviceIndex index, Device** out) {
  DeviceSlot& slot = context.slot(index);
  ForkPass pass(context);
  bool paused = true;
  while (paused) {
    bool gathers = false;
    UHMM_TRY(with_device(context, index, [&](Device&) -> Status {
      gathers = !slot.capabilities.faulting;
      return {};
    }));
    if (gathers && !pass.entered()) pass.enter();
    UHMM_TRY(with_device(context, index, [&](Device& device) -> Status {
      // From here on the device counts as busy: mappings taken away are unmapped at once, and what is stale already is
      // unmapped before the work's first instruction.
      device.begin_work();
      // Who pauses looks for work afterwards: one of the two sees the other. Only under the lock is the device sure to
      // be there still.
      paused = slot.paused.load() || (!slot.capabilities.faulting && !pass.entered());
      Status ready = paused ? Status{} : attach_all(context, index);
      if (ready.ok() && !paused) ready = renew_mirrors(context, index);
      if (ready.ok() && !paused) {
        // Work that begins beside this may not start before what it found on the list is unmapped.
        const std::scoped_lock lock(slot.flush_mutex);
        ready = flush_stale(context, index);
        if (ready.ok() && !slot.capabilities.faulting) ready = gather(context, index);
      }
      if (paused || !ready.ok()) device.end_work();
      *out = &device;
      return ready;
    }));
  }
  return {};
}

void end_device_work(Context& context, DeviceIndex index, Device& device) {
  if (!device.capabilities().faulting) context.slot(index).gate.end();
  device.end_work();
}

DevicePause::DevicePause(Context& context, DeviceIndex index) : context_(context), slot_(context.slot(index)) {
  slot_.paused.store(true);
  slot_.holds_end.store(true);
  // What waits for a device that was lost returns soon, and lets go of it.
  while (slot_.device->busy()) std::this_thread::yield();
}

DevicePause::~DevicePause() {
  slot_.holds_end.store(false);
  slot_.shut.store(false);
  slot_.paused.store(false);
  slot_.paused.notify_all();
}

void DevicePause::shut() {
  slot_.shut.store(true);
  // Whoever has not seen it is inside the lock.
  const std::unique_lock lock(context_.space.mutex());
}

}  // namespace uhmm::engine
