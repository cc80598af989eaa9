// SPDX-License-Identifier: Apache-2.0
// What every part of the engine works on. One per initialised runtime, in the arena.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/backend/device.hpp"
#include "runtime/engine/copy_shield.hpp"
#include "runtime/engine/fork_gate.hpp"
#include "runtime/engine/map_changes.hpp"
#include "runtime/engine/news_reader.hpp"
#include "runtime/engine/patience.hpp"
#include "runtime/engine/staging.hpp"
#include "runtime/engine/work_gate.hpp"
#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/memory.hpp"
#include "runtime/os/userfaultfd.hpp"
#include "runtime/state/device_memory.hpp"
#include "runtime/state/va_space.hpp"
#include "runtime/trace/trace.hpp"

namespace uhmm::engine {

using backend::Device;
using state::Block;
using state::BlockDevice;
using state::Range;
using state::Segment;

// A device's place in the table. `device` changes only under the address space's exclusive lock.
struct DeviceSlot {
  Device* device = nullptr;
  backend::Capabilities capabilities;
  state::DeviceMemory memory;
  RankedMutex<LockRank::Attach> attach_mutex;
  RankedMutex<LockRank::Flush> flush_mutex;
  std::atomic<bool> lost{false};
  std::atomic<bool> loss_claimed{false};
  std::atomic<std::uint32_t> life{0};           // counts starts; changes only under the address space's exclusive lock
  std::atomic<std::uint32_t> swept_life{0};     // of the lives before this one and of this one all is accounted for
  std::atomic<bool> paused{false};              // being restarted or removed: work waits
  std::atomic<bool> shut{false};                // and no page comes there any more
  std::atomic<bool> holds_end{false};           // it is about to end: acquires keep no memory there from kernels
  WorkGate gate;                                // of a device without faults
  Patience patience;                            // with faults that can't be served
  std::atomic<std::uint32_t> unattached{0};     // registered ranges that the device can't reach yet
  std::atomic<std::uint64_t> current_pages{0};  // pages with a current copy there
  char lost_reason[192] = {};

  // Whoever is told true is the first to know of a loss: it writes the reason, sets `lost`, accounts for every page
  // that was there and ends this.
  bool claim_loss() { return !loss_claimed.exchange(true); }
  void end_loss() {
    swept_life.store(life.load());
    swept_life.notify_all();
  }
  void wait_for_sweep(std::uint32_t of_life) const {
    for (std::uint32_t seen = swept_life.load(); seen < of_life; seen = swept_life.load()) swept_life.wait(seen);
  }
  // With the address space locked exclusively.
  void begin_life() {
    life.fetch_add(1);
    lost_reason[0] = '\0';
    gate.note_change();
    lost.store(false);
    loss_claimed.store(false);
  }
};

// A memory pool beyond the default ones. Index 0 stands for every device's default pool.
struct Pool {
  std::atomic<std::uint64_t> id{0};  // 0: not in use
  std::uint32_t device = 0;
  std::uint64_t pages = 0;
  uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
  void* context = nullptr;
  std::atomic<std::uint32_t> calls{0};  // callbacks running now
  std::atomic<bool> shut{false};        // being destroyed: no page comes there any more
};

class ForkKeeper;

struct Context {
  uhmm_config config = UHMM_CONFIG_INIT;
  bool use_move = false;
  os::Userfaultfd uffd;
  os::ProcessMemory process;
  state::VaSpace space;
  std::array<DeviceSlot, kMaxDevices> slots;
  std::array<Pool, state::kMaxPools> pools;
  Staging staging;
  NewsReader news{uffd};
  MapChanges changes;
  CopyShield copy_shield;
  std::atomic<std::uint32_t> mirrored_ranges{0};
  std::atomic<bool> told_of_stale_views{false};
  std::atomic<std::uint32_t> insisting{0};  // gatherers that others have to let go first
  trace::EventRing events;
  trace::Counters totals;
  ForkGate fork_gate;
  ForkKeeper* forks = nullptr;  // of the runtime that this is of
  WorkerPool workers;
  WorkerPool
      accesses;  // for device reads and writes, which may wait for what the program does next; begun by the first

  DeviceSlot& slot(DeviceIndex index) { return slots[index.value]; }
  // The device, if it is present and healthy.
  Device* healthy(DeviceIndex index) {
    DeviceSlot& entry = slots[index.value];
    return entry.device != nullptr && !entry.lost.load(std::memory_order_acquire) ? entry.device : nullptr;
  }
  // Was it acquired, or is everything being gathered there? Then it is not evicted, unless the device is about to end:
  // that waits for kernels, which may wait for room.
  bool is_held(const state::BlockDevice& part) const {
    const DeviceSlot& entry = slots[part.device];
    return (part.holds.load() != 0 && !entry.holds_end.load()) || entry.gate.gathering.load();
  }
  void record(uhmm_event_kind kind, uhmm_cause cause, ByteRange bytes, std::uint32_t pages, std::uint32_t processor,
              std::uint64_t duration_ns = 0);
  void count(Range& range, trace::Counter counter, std::uint64_t n) {
    range.counters.add(counter, n);
    totals.add(counter, n);
  }
  void count(Range& range, trace::CauseCounter counter, uhmm_cause cause, std::uint64_t n) {
    range.counters.add(counter, cause, n);
    totals.add(counter, cause, n);
  }
};

// Where a page of a segment is in the device's aperture, if the device has one.
inline bool has_aperture(const Range& range, DeviceIndex device) { return range.windows[device.value].host != nullptr; }
inline std::byte* aperture(const Range& range, DeviceIndex device, VirtAddr address) {
  const backend::Window& window = range.windows[device.value];
  return window.host + (address - window.range.begin);
}

}  // namespace uhmm::engine
