// SPDX-License-Identifier: Apache-2.0
// A GPU's addresses and memory.
#include <algorithm>
#include <cstring>

#include "backends/vmm/vmm_device_impl.hpp"

namespace uhmm::vmm {

template <typename Visit>
Status VmmDevice::for_each_block(ByteRange pages, Visit&& visit) {
  for (VirtAddr at = pages.begin; at < pages.end;) {
    const VirtAddr end = std::min(pages.end, at.block_floor() + kBlockBytes);
    UHMM_TRY(visit(ByteRange{at, end}));
    at = end;
  }
  return {};
}

namespace {

PageMask mask_of(ByteRange part) {
  return PageMask::of({part.begin.page_in_block(), static_cast<std::uint32_t>(part.pages())});
}
std::uint64_t floor_of(VirtAddr address) { return address.block_floor().value; }
std::uint64_t ceil_of(VirtAddr address) { return (address + (kBlockBytes - 1)).block_floor().value; }

}  // namespace

// ------------------------------------------------------------------------------------------------------------
// addresses

Status VmmDevice::do_attach(std::span<backend::Window> windows) {
  UHMM_TRY(begin());
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const ByteRange& range = windows[i].range;
    if (const Status done = reserve_blocks(floor_of(range.begin), ceil_of(range.end)); !done.ok()) {
      char why[kDetailBytes];
      save_detail(why);
      for (std::size_t k = 0; k < i; ++k)
        release_window(floor_of(windows[k].range.begin), ceil_of(windows[k].range.end));
      return fail(done.code(), "%s", why);
    }
  }
  return {};
}

Status VmmDevice::reserve_blocks(std::uint64_t begin, std::uint64_t end) {
  std::uint64_t at = begin;
  Status status;
  try {
    while (at < end && status.ok()) {
      if (const auto known = blocks_.find(at); known != blocks_.end()) {
        if (known->second.windows++ == 0) ++known->second.reservation->blocks_used;
        at += kBlockBytes;
        continue;
      }
      const auto next = blocks_.lower_bound(at);
      const std::uint64_t stop = next == blocks_.end() ? end : std::min(end, next->first);
      // Records first: what the driver has given is never without one.
      Reservation& made = reservations_[at];
      made = {at, stop - at, 0};
      for (std::uint64_t base = at; base < stop; base += kBlockBytes) blocks_[base].reservation = &made;
      status = seen(Adoption::reserve(*driver_, at, stop - at));
      if (!status.ok()) {
        blocks_.erase(blocks_.find(at), blocks_.lower_bound(stop));
        reservations_.erase(at);
        break;
      }
      for (std::uint64_t base = at; base < stop; base += kBlockBytes) blocks_[base].windows = 1;
      made.blocks_used = static_cast<std::uint32_t>((stop - at) >> kBlockShift);
      at = stop;
    }
  } catch (const std::bad_alloc&) {
    status = fail(UHMM_ERR_NO_MEMORY, "no memory for a range's records");
    const auto half = reservations_.find(at);
    if (half != reservations_.end() && half->second.blocks_used == 0) {
      blocks_.erase(blocks_.lower_bound(at), blocks_.lower_bound(at + half->second.bytes));
      reservations_.erase(half);
    }
  }
  if (status.ok()) return {};
  char why[kDetailBytes];
  save_detail(why);
  release_window(begin, at);
  return fail(status.code(), "%s", why);
}

void VmmDevice::release_window(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t base = begin; base < end; base += kBlockBytes) {
    const auto found = blocks_.find(base);
    if (found == blocks_.end() || --found->second.windows != 0) continue;
    Block& block = found->second;
    if (block.chunk != 0) release_chunk(base, block);
    block.used.clear();
    Reservation& reservation = *block.reservation;
    if (--reservation.blocks_used != 0) continue;
    // What the driver doesn't take back is used again by the next window there, or tried once more at the end.
    if (lost_.load() || !seen(Adoption::unreserve(*driver_, reservation.begin, reservation.bytes)).ok()) continue;
    const std::uint64_t first = reservation.begin;
    const std::uint64_t last = first + reservation.bytes;
    blocks_.erase(blocks_.find(first), blocks_.lower_bound(last));
    reservations_.erase(first);
  }
}

void VmmDevice::do_detach(const backend::Window& window, ByteRange owned) {
  if (!open_.load()) return;
  (void)driver_->enter();
  const std::scoped_lock lock(mutex_);
  (void)for_each_block(owned, [&](ByteRange part) {
    const auto found = blocks_.find(floor_of(part.begin));
    if (found == blocks_.end()) return Status{};
    found->second.used -= mask_of(part);
    if (found->second.used.none() && found->second.chunk != 0) release_chunk(found->first, found->second);
    return Status{};
  });
  release_window(floor_of(window.range.begin), ceil_of(window.range.end));
}

// A split needs no memory: the block in which it lies belongs to one window more.
Status VmmDevice::do_reserve_split() { return {}; }

void VmmDevice::do_split(const backend::Window& /*window*/, const backend::Window& /*lower*/,
                         const backend::Window& upper) {
  const VirtAddr at = upper.range.begin;
  if (at == at.block_floor()) return;
  const std::scoped_lock lock(mutex_);
  const auto found = blocks_.find(floor_of(at));
  if (found != blocks_.end()) ++found->second.windows;
}

// -------------------------------------------------------------------------------------------------------------- memory

Status VmmDevice::give_chunk(std::uint64_t base, Block& block) {
  Status status = fail(UHMM_ERR_DEVICE_FULL, "device %s is full", options_.name);
  for (const Place place : {Place::Device, Place::Host}) {
    std::uint64_t& bytes = place == Place::Device ? device_bytes_ : spilled_bytes_;
    if (bytes + kBlockBytes > (place == Place::Device ? memory_bytes_ : spill_bytes_)) continue;
    Result<Chunk> chunk = driver_->create(kBlockBytes, place);
    // Others use the GPU's memory too: there may be less than was free at the start.
    status = chunk.status();
    if (status.code() == UHMM_ERR_DEVICE_FULL) continue;
    if (!status.ok()) return seen(status);
    status = driver_->map(base, kBlockBytes, *chunk);
    if (!status.ok()) {
      driver_->release(*chunk);
      return seen(status);
    }
    block.chunk = *chunk;
    block.place = place;
    bytes += kBlockBytes;
    return {};
  }
  return status;
}

void VmmDevice::release_chunk(std::uint64_t base, Block& block) {
  // A mapping that could not be ended keeps its memory, and the memory its record.
  if (!lost_.load() && !seen(driver_->unmap(base, kBlockBytes)).ok() && !lost_.load()) return;
  if (!lost_.load()) driver_->release(block.chunk);
  (block.place == Place::Device ? device_bytes_ : spilled_bytes_) -= kBlockBytes;
  block.chunk = 0;
}

Status VmmDevice::back(ByteRange part) {
  const std::scoped_lock lock(mutex_);
  const auto found = blocks_.find(floor_of(part.begin));
  if (found == blocks_.end())
    return fail(UHMM_ERR_FAULT, "device %s does not reach %#lx", options_.name, part.begin.value);
  if (found->second.chunk == 0) UHMM_TRY(give_chunk(found->first, found->second));
  found->second.used |= mask_of(part);
  return {};
}

Status VmmDevice::do_copy_in(const backend::Window& /*window*/, ByteRange pages, const std::byte* from) {
  UHMM_TRY(begin());
  return for_each_block(pages, [&](ByteRange part) -> Status {
    UHMM_TRY(back(part));
    return seen(lanes_.copy_in(*driver_, part.begin.value, from + (part.begin - pages.begin), part.bytes()));
  });
}

Status VmmDevice::do_copy_out(const backend::Window& /*window*/, ByteRange pages, std::byte* to) {
  UHMM_TRY(begin());
  return for_each_block(pages, [&](ByteRange part) -> Status {
    PageMask used;
    {
      const std::scoped_lock lock(mutex_);
      const auto found = blocks_.find(floor_of(part.begin));
      if (found != blocks_.end() && found->second.chunk != 0) used = found->second.used;
    }
    std::byte* here = to + (part.begin - pages.begin);
    const PageMask asked = mask_of(part);
    // Without memory it reads as zeros.
    asked.minus(used).for_each_run([&](PageRun run) {
      std::memset(here + (run.offset() - (part.begin - part.begin.block_floor())), 0, run.bytes());
    });
    Status status;
    (asked & used).for_each_run([&](PageRun run) {
      const VirtAddr at = part.begin.block_floor() + run.offset();
      if (status.ok()) status = seen(lanes_.copy_out(*driver_, here + (at - part.begin), at.value, run.bytes()));
    });
    return status;
  });
}

Status VmmDevice::do_zero(const backend::Window& /*window*/, ByteRange pages) {
  UHMM_TRY(begin());
  return for_each_block(pages, [&](ByteRange part) -> Status {
    UHMM_TRY(back(part));
    return seen(lanes_.zero(*driver_, part.begin.value, part.bytes()));
  });
}

Status VmmDevice::do_free_memory(const backend::Window& /*window*/, ByteRange pages) {
  UHMM_TRY(begin());
  const std::scoped_lock lock(mutex_);
  return for_each_block(pages, [&](ByteRange part) -> Status {
    const auto found = blocks_.find(floor_of(part.begin));
    if (found == blocks_.end()) return {};
    Block& block = found->second;
    block.used -= mask_of(part);
    if (block.used.none() && block.chunk != 0) release_chunk(found->first, block);
    return {};
  });
}

void VmmDevice::do_charge_link(std::uint64_t /*bytes*/) {}

// ----------------------------------------------------------------------------------------------------------- page
// table

// What has memory is mapped, as a whole and for reading and writing: nothing is left to do, and nothing can be taken
// from a kernel that runs. So whoever takes pages away waits for it.
Status VmmDevice::do_map(ByteRange /*pages*/, backend::MapAccess /*access*/) { return begin(); }

Status VmmDevice::do_protect(ByteRange /*pages*/, backend::MapAccess access) {
  UHMM_TRY(begin());
  if (access == backend::MapAccess::ReadWrite) return {};
  return fail(UHMM_ERR_NOT_SUPPORTED, "device %s has no read-only pages", options_.name);
}

Status VmmDevice::do_unmap(std::span<const ByteRange> /*pages*/) {
  UHMM_TRY(begin());
  return drain();
}

Status VmmDevice::do_unmap_and_free(const backend::Window& window, ByteRange pages) {
  UHMM_TRY(begin());
  UHMM_TRY(drain());
  return do_free_memory(window, pages);
}

Status VmmDevice::do_poison(ByteRange /*pages*/) {
  return fail(UHMM_ERR_NOT_SUPPORTED, "device %s can't refuse single pages", options_.name);
}

Status VmmDevice::do_map_host(const backend::Window& /*window*/, ByteRange /*pages*/) {
  return fail(UHMM_ERR_NOT_SUPPORTED, "the CPU can't map the memory of device %s", options_.name);
}

void VmmDevice::do_wake(ByteRange /*pages*/) {}

// As a kernel would: where there is no memory the access fails.
Status VmmDevice::do_access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) {
  UHMM_TRY(begin());
  return for_each_block({address, address + bytes}, [&](ByteRange part) -> Status {
    {
      const std::scoped_lock lock(mutex_);
      const auto found = blocks_.find(floor_of(part.begin));
      if (found == blocks_.end() || found->second.chunk == 0)
        return fail(UHMM_ERR_FAULT, "device %s can't reach %#lx", options_.name, part.begin.value);
    }
    std::byte* here = buffer + (part.begin - address);
    return seen(is_write ? lanes_.copy_in(*driver_, part.begin.value, here, part.bytes())
                         : lanes_.copy_out(*driver_, here, part.begin.value, part.bytes()));
  });
}

}  // namespace uhmm::vmm
