// SPDX-License-Identifier: Apache-2.0
// Devices and pools come and go. Runs on worker threads, one call at a time (Lifecycle lock).
#pragma once

#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/memory_calls.hpp"
#include "runtime/engine/streams.hpp"

namespace uhmm::engine {

class DeviceTable {
 public:
  using Destroy = void (*)(Device*);
  DeviceTable(Context& context, FaultService& faults, Streams& streams)
      : context_(context), faults_(faults), streams_(streams) {}

  // A free slot, or NO_MEMORY.
  Result<DeviceIndex> free_slot();
  // Opens `device` and puts it there; takes it over on success only. `memory_bytes`: 0 for what the device says it has.
  Status add(DeviceIndex index, Device* device, std::uint64_t memory_bytes, Destroy destroy);
  Status remove(DeviceIndex index);
  Status restart(DeviceIndex index);

  struct CreatedPool {
    Status status;
    std::uint64_t id = 0;
  };
  CreatedPool create_pool(const uhmm_pool_desc& desc, const uhmm_pool_ops& ops);
  Status destroy_pool(std::uint64_t id);
  Status set_pool(VirtAddr address, std::uint64_t id);

 private:
  // No page of any block is on the device, no memory is allocated, no window attached any more.
  void strip(DeviceIndex index);
  // The device counts as lost, and so do pages that could not be brought home.
  void end_device(DeviceIndex index);
  // With no page in it any more.
  void end_pool(std::uint32_t index);
  std::uint32_t find_pool(std::uint64_t id) const;

  Context& context_;
  FaultService& faults_;
  Streams& streams_;
  std::array<Destroy, kMaxDevices> destroy_{};
  std::uint64_t next_pool_ = 1;
};

}  // namespace uhmm::engine
