// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/device_table.hpp"

#include <mutex>
#include <thread>

#include "runtime/base/log.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {

Result<DeviceIndex> DeviceTable::free_slot() {
  for (std::uint32_t i = 0; i < kMaxDevices; ++i)
    if (context_.slots[i].device == nullptr) return DeviceIndex{i};
  return fail(UHMM_ERR_NO_MEMORY, "there are %u devices already", kMaxDevices);
}

Status DeviceTable::add(DeviceIndex index, Device* device, std::uint64_t memory_bytes, Destroy destroy) {
  UHMM_TRY(device->open());
  DeviceSlot& slot = context_.slot(index);
  {
    const std::unique_lock lock(context_.space.mutex());
    slot.capabilities = device->capabilities();
    slot.memory.reset((memory_bytes != 0 ? memory_bytes : slot.capabilities.memory_bytes) >> kPageShift);
    slot.unattached.store(static_cast<std::uint32_t>(context_.space.ranges().size()));
    slot.device = device;
    slot.begin_life();
    destroy_[index.value] = destroy;
  }
  faults_.devices_changed();
  context_.record(UHMM_EVENT_DEVICE_ADDED, UHMM_CAUSE_USER, {}, 0, index.processor());
  return {};
}

void DeviceTable::strip(DeviceIndex index) {
  DeviceSlot& slot = context_.slot(index);
  const std::uint32_t bit = 1u << index.value;
  for (const auto& [begin, range] : context_.space.ranges()) {
    (void)context_.space.for_each_segment(range->pages, false, [&](const Segment& segment) {
      const std::scoped_lock lock(segment.block->mutex);
      BlockDevice* part = segment.block->find_device(index);
      if (part == nullptr) return Status{};
      free_memory(context_, index, segment, PageMask::of(segment.run), Freeing::WithWindow);
      part->mapped.clear();
      part->writable.clear();
      if (part->allocated.none()) slot.memory.forget(part);
      return Status{};
    });
  }
  for (const auto& [begin, range] : context_.space.ranges()) {
    if ((range->attached.load() & bit) == 0) continue;
    detach_window(*range, *slot.device, index, context_.space.pages_not_shared(*range));
    range->windows[index.value] = {};
    range->attached.fetch_and(~bit);
    slot.unattached.fetch_add(1);
  }
}

void DeviceTable::end_device(DeviceIndex index) {
  DeviceSlot& slot = context_.slot(index);
  if (!slot.claim_loss()) {
    slot.wait_for_sweep(slot.life.load());  // it died just now
    return;
  }
  slot.lost.store(true);
  {
    const Operation operation(context_);
    for (const auto& [begin, range] : context_.space.ranges())
      (void)context_.space.for_each_segment(range->pages, false, [&](const Segment& segment) {
        (void)lose(context_, segment, index);
        return Status{};
      });
  }
  slot.end_loss();
}

Status DeviceTable::remove(DeviceIndex index) {
  DeviceSlot& slot = context_.slot(index);
  if (slot.device == nullptr) return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", index.processor());
  // The streams' work may wait for memory that is held.
  slot.holds_end.store(true);
  streams_.refuse_streams(index);
  Status status;
  {
    DevicePause pause(context_, index);
    pause.shut();
    // A lost device's pages are lost already; that is no news.
    if (!slot.lost.load()) status = bring_home(context_, index.value, UHMM_CAUSE_DEVICE_REMOVE);
    end_device(index);
    Device* device = slot.device;
    {
      const std::unique_lock lock(context_.space.mutex());
      strip(index);
      slot.device = nullptr;
      slot.unattached.store(0);
    }
    for (std::uint32_t i = 1; i < context_.pools.size(); ++i)
      if (context_.pools[i].id.load() != 0 && context_.pools[i].device == index.value) end_pool(i);
    faults_.devices_changed();
    destroy_[index.value](device);
  }
  streams_.allow_streams(index);
  context_.record(UHMM_EVENT_DEVICE_REMOVED, UHMM_CAUSE_DEVICE_REMOVE, {}, 0, index.processor());
  return status;
}

Status DeviceTable::restart(DeviceIndex index) {
  DeviceSlot& slot = context_.slot(index);
  if (slot.device == nullptr) return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", index.processor());
  DevicePause pause(context_, index);
  pause.shut();
  if (!slot.lost.load() && !bring_home(context_, index.value, UHMM_CAUSE_DEVICE_REMOVE).ok() && !slot.lost.load())
    return fail(UHMM_ERR_NO_MEMORY, "pages on device %u could not be brought back: it was not restarted",
                index.processor());
  end_device(index);
  {
    const std::unique_lock lock(context_.space.mutex());
    strip(index);
  }
  faults_.devices_changed();
  slot.device->close();
  if (!slot.device->open().ok()) {
    char detail[kDetailBytes];
    save_detail(detail);
    return fail(UHMM_ERR_SYSTEM, "device %u could not be started: %s", index.processor(), detail);
  }
  {
    const std::unique_lock lock(context_.space.mutex());
    slot.capabilities = slot.device->capabilities();
    slot.begin_life();
  }
  faults_.devices_changed();
  context_.record(UHMM_EVENT_DEVICE_ADDED, UHMM_CAUSE_USER, {}, 0, index.processor());
  return {};
}

std::uint32_t DeviceTable::find_pool(std::uint64_t id) const {
  for (std::uint32_t i = 1; i < context_.pools.size(); ++i)
    if (id != 0 && context_.pools[i].id.load() == id) return i;
  return 0;
}

DeviceTable::CreatedPool DeviceTable::create_pool(const uhmm_pool_desc& desc, const uhmm_pool_ops& ops) {
  const DeviceIndex device{desc.device - 1};
  if (context_.healthy(device) == nullptr) return {unusable(context_, device), 0};
  std::uint32_t index = 1;
  while (index < context_.pools.size() && context_.pools[index].id.load() != 0) ++index;
  if (index == context_.pools.size())
    return {fail(UHMM_ERR_NO_MEMORY, "there are %zu pools already", context_.pools.size() - 1), 0};
  const std::uint64_t pages = (desc.bytes >> kPageShift) + (desc.bytes % kPageBytes != 0 ? 1 : 0);
  if (!context_.slot(device).memory.add_pool(index, pages))
    return {fail(UHMM_ERR_OVERLAP, "the pools of device %u would exceed its memory by this one's %lu bytes",
                 desc.device, desc.bytes),
            0};
  Pool& pool = context_.pools[index];
  pool.device = device.value;
  pool.pages = pages;
  pool.ops = ops;
  pool.context = desc.context;
  pool.id.store(next_pool_);
  return {{}, next_pool_++};
}

Status DeviceTable::destroy_pool(std::uint64_t id) {
  const std::uint32_t index = find_pool(id);
  if (index == 0) return fail(UHMM_ERR_NOT_FOUND, "there is no pool %lu", id);
  Pool& pool = context_.pools[index];
  pool.shut.store(true);
  {
    // Whoever has not seen it is inside the lock.
    const std::unique_lock lock(context_.space.mutex());
  }
  const Status status = bring_pool_home(context_, index);
  if (status.ok()) end_pool(index);
  pool.shut.store(false);
  return status;
}

void DeviceTable::end_pool(std::uint32_t index) {
  Pool& pool = context_.pools[index];
  {
    const std::unique_lock lock(context_.space.mutex());
    for (const auto& [begin, range] : context_.space.ranges())
      if (range->pool.load() == index) range->pool.store(0);
  }
  // What another thread noted or is calling right now comes to its end first; whoever asks from here on is told that
  // there is no owner.
  pool.id.store(0);
  while (pool.calls.load() != 0) std::this_thread::yield();
  const std::unique_lock lock(context_.space.mutex());
  context_.slot(DeviceIndex{pool.device}).memory.remove_pool(index);
  pool.ops = UHMM_POOL_OPS_INIT;
}

namespace {

bool has_part(Block& block, DeviceIndex index) {
  const std::scoped_lock lock(block.mutex);
  return block.find_device(index) != nullptr;
}

}  // namespace

Status DeviceTable::set_pool(VirtAddr address, std::uint64_t id) {
  const std::uint32_t index = find_pool(id);
  if (id != 0 && index == 0) return fail(UHMM_ERR_NOT_FOUND, "there is no pool %lu", id);
  VirtAddr begin;
  VirtAddr end;
  std::uint32_t old = 0;
  {
    const Operation operation(context_);
    Range* range = context_.space.find_byte(address);
    if (range == nullptr) return fail(UHMM_ERR_NOT_REGISTERED, "%#lx is not registered", address.value);
    begin = range->pages.begin;
    end = range->pages.end;
    old = range->pool.load();
  }
  // Pages on the pools' devices come home, so that none is paid for by the wrong pool.
  const Operation operation(context_);
  Status status;
  for (VirtAddr at = begin.block_floor(); at < end; at = at + kBlockBytes) {
    Block* block = context_.space.find_block(at);
    if (block == nullptr) continue;
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
      const bool concerned =
          (index != 0 && context_.pools[index].device == i) || (old != 0 && context_.pools[old].device == i);
      if (concerned && has_part(*block, DeviceIndex{i}) &&
          !evict_block(context_, *block, DeviceIndex{i}, UHMM_CAUSE_USER).ok())
        status = fail(UHMM_ERR_DATA_LOST, "some pages could not be brought back");
    }
  }
  Range* range = context_.space.find_byte(address);
  if (range != nullptr) range->pool.store(index);
  return status;
}

}  // namespace uhmm::engine
