// SPDX-License-Identifier: Apache-2.0
// The device's side of a migration: making ranges reachable, giving and taking mappings.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Make a range reachable from a device, once. Not on service threads.
Status attach(Context& context, Range& range, DeviceIndex device);
// The same for every range that is not yet. Called before work runs on the device.
Status attach_all(Context& context, DeviceIndex device);

// What a device has of a range ends for `owned`, pages that no other range is on; the address space is locked.
void detach_window(Range& range, Device& device, DeviceIndex index, ByteRange owned);

// On return no kernel on the device can reach `pages` of the block (block lock held). While the device runs nothing,
// that is true without doing anything: the mappings are noted as stale and unmapped before its next work.
Status revoke(Context& context, DeviceIndex device, BlockDevice& part, const PageMask& pages);
// The device may still read, but no longer write.
Status revoke_write(Context& context, DeviceIndex device, BlockDevice& part, const PageMask& pages);
// The same for pages that stay resident, whose entries can't become stale: the device is always asked.
Status unmap_resident(Context& context, DeviceIndex device, BlockDevice& part, const PageMask& pages);
// Would revoke() have to ask the device right now?
bool must_ask(Context& context, DeviceIndex device, const BlockDevice& part, const PageMask& pages);
// Unmap stale mappings. Called between Device::begin_work() and the launch.
Status flush_stale(Context& context, DeviceIndex device);

// Map pages that are resident (block lock held). Failing is no error: a device fault maps them later.
void map_resident(Context& context, DeviceIndex device, BlockDevice& part, const PageMask& pages, bool writable);

// Pages' physical memory goes back to the device (block lock held, pages not mapped and not resident).
enum class Freeing : std::uint8_t { Now, WithWindow };  // WithWindow: detaching the window will do it
void free_memory(Context& context, DeviceIndex device, const Segment& segment, const PageMask& pages,
                 Freeing how = Freeing::Now);

// Account for the device's memory of pages that were unmapped by freeing it.
void forget_memory(Context& context, DeviceIndex index, BlockDevice& part, const PageMask& pages);
// Put the block on the list that fits what it holds on the device (block lock held). `used`: the device just used it.
void refresh_list(Context& context, DeviceIndex device, BlockDevice& part, bool used);

}  // namespace uhmm::engine
