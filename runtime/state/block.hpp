// SPDX-License-Identifier: Apache-2.0
// One aligned 2 MiB piece of the address space: which pages are current where. `resident` (holds a current copy),
// `mapped` (the device's page table may reach it) and `allocated` (physical device memory backs it) are three different
// things. A page of a block that is on no device is "home": whether it is none or system, only the kernel knows.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/base/lock.hpp"
#include "runtime/base/page_mask.hpp"
#include "runtime/base/types.hpp"
#include "runtime/state/page_protocol.hpp"

namespace uhmm::state {

struct Block;

// Which of a device's lists a block is on (see DeviceMemory).
enum class MemoryList : std::uint8_t { None, Active, Inactive, Retained };

// What one device has of a block. Masks are guarded by the block's lock, links by the device's memory lock.
struct BlockDevice {
  PageMask resident;   // set: the device's copy is current
  PageMask mapped;     // set: the device's page table may have an entry. Clear: it has none
  PageMask writable;   // of mapped: the entry may allow writes
  PageMask allocated;  // set: physical memory backs the page, current or not ("retained" when not resident)

  Block* block = nullptr;
  // The whole block is here as the one huge page that it was in system memory. Guarded by the block's lock; ends with
  // the first page that goes anywhere else.
  bool huge = false;
  std::uint32_t device = 0;
  std::uint32_t pool = 0;  // index of the pool that pays for the allocated pages
  // Acquires: not evicted while > 0. Written under the block's lock, and looked at without it too.
  std::atomic<std::uint32_t> holds{0};
  bool stale_listed = false;  // waits for its stale entries to be unmapped before the next launch
  BlockDevice* next_stale = nullptr;
  MemoryList list = MemoryList::None;
  BlockDevice* newer = nullptr;
  BlockDevice* older = nullptr;
};

struct Block {
  using Mutex = RankedMutex<LockRank::Block>;

  explicit Block(VirtAddr address) : base(address) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  ByteRange range_of(PageRun run) const { return {base + run.offset(), base + run.offset() + run.bytes()}; }
  // The device's part, made on first use; nullptr when out of memory.
  BlockDevice* device(DeviceIndex index);
  BlockDevice* find_device(DeviceIndex index) const { return devices[index.value]; }

  // Pages with a current copy on any device.
  PageMask on_devices() const;
  // Pages whose only current copy is on a device (device or exclusive).
  PageMask away() const { return on_devices().minus(system); }
  // Pages current in system memory and on some device.
  PageMask shared() const { return on_devices() & system; }
  // The device that holds the page, for a page that is away. kMaxDevices if none.
  std::uint32_t holder(std::uint32_t page) const;
  PageKind kind_of(std::uint32_t page) const;

  // Does a device hold it as one huge page?
  bool is_huge() const;
  // From now on its pages are pages of their own, wherever they are.
  void split_huge();

  // The one mutator of residency: applies `event` to every page of `pages`. Every page must be in a state that the
  // protocol allows for the event (checked builds abort otherwise). `index` is the device the event is about.
  void commit(PageEvent event, const PageMask& pages, DeviceIndex index);

  Mutex mutex;
  const VirtAddr base;
  PageMask system;     // only meaningful for pages on devices: the CPU's copy is current too
  PageMask exclusive;  // of away: a device has exclusive access
  PageMask lost;       // the only copy is gone
  PageMask bus_error;  // of lost: something that only raises SIGBUS is mapped there instead
  PageMask in_place;   // of away: the program's mapping there is of a coherent device's memory
  PageMask owed;       // of away: forked children may want the device's copy as it is; no work there may write it
  std::array<BlockDevice*, kMaxDevices> devices{};
  std::uint32_t references = 0;  // ranges that touch the block; guarded by the address space's lock
};

}  // namespace uhmm::state
