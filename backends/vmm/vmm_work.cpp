// SPDX-License-Identifier: Apache-2.0
// Kernels on a GPU. Each launch has a slot with a stream of its own, so that launches run beside each other.
#include <sched.h>

#include "backends/vmm/vmm_device_impl.hpp"

namespace uhmm::vmm {
namespace {

constexpr std::uint32_t kGenerationBits = 24;

struct TicketParts {
  std::uint32_t incarnation = 0;
  std::uint32_t generation = 0;
  std::uint32_t slot = 0;
};
constexpr backend::Ticket to_ticket(TicketParts parts) {
  return std::uint64_t{parts.incarnation} << 32 | std::uint64_t{parts.generation} << 8 | parts.slot;
}
constexpr TicketParts to_parts(backend::Ticket ticket) {
  return {static_cast<std::uint32_t>(ticket >> 32),
          static_cast<std::uint32_t>(ticket >> 8) & ((1u << kGenerationBits) - 1),
          static_cast<std::uint32_t>(ticket & 0xff)};
}

}  // namespace

// Under mutex_. Has the slot's launch ended by now?
bool VmmDevice::look_at(Slot& slot) const {
  if (!slot.running) return true;
  Status said = lost_.load() ? Status{UHMM_ERR_DEVICE_LOST} : driver_->enter();
  if (said.ok()) said = driver_->query(slot.done);
  if (said.code() == UHMM_ERR_BUSY) return false;
  if (said.ok()) {
    slot.outcome = {};
    slot.running = false;
    return true;
  }
  // A context that doesn't even answer that is of no use any more. Which kernel it was that ended it is known only
  // where there was but one.
  lose(last_detail());
  std::uint32_t running = 0;
  for (const Slot& one : slots_) running += one.running ? 1 : 0;
  for (Slot& one : slots_) {
    if (!one.running) continue;
    one.outcome = running == 1 ? UHMM_ERR_KERNEL_FAILED : UHMM_ERR_DEVICE_LOST;
    one.running = false;
  }
  return true;
}

Status VmmDevice::take_slot(std::size_t* index) {
  for (;;) {
    Event busy = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      for (std::size_t i = 0; i < slots_.size(); ++i) {
        Slot& slot = slots_[i];
        if (slot.reserved || !look_at(slot)) {
          if (busy == nullptr && !slot.reserved) busy = slot.done;
          continue;
        }
        if (lost_.load()) return lost_status();
        slot.reserved = true;
        *index = i;
        return {};
      }
    }
    // All of them are at work.
    if (busy != nullptr)
      (void)seen(driver_->wait(busy));
    else
      sched_yield();
  }
}

Result<backend::Ticket> VmmDevice::do_launch(const backend::Launch& launch) {
  constexpr std::uint64_t kMostBlocks = std::uint64_t{1} << 40;
  std::uint64_t blocks = 1;
  for (const std::uint32_t extent : launch.grid) {
    const std::uint64_t factor = extent != 0 ? extent : 1;
    if (blocks > kMostBlocks / factor)
      return fail(UHMM_ERR_INVALID, "a grid of %u x %u x %u blocks is too large", launch.grid[0], launch.grid[1],
                  launch.grid[2]);
    blocks *= factor;
  }
  UHMM_TRY(begin());
  std::size_t index = 0;
  UHMM_TRY(take_slot(&index));
  Slot& slot = slots_[index];
  Status status;
  if (slot.stream == nullptr) {
    Result<Stream> stream = driver_->create_stream();
    status = stream.status();
    if (stream.ok()) slot.stream = *stream;
  }
  if (status.ok() && slot.done == nullptr) {
    Result<Event> event = driver_->create_event();
    status = event.status();
    if (event.ok()) slot.done = *event;
  }
  bool started = false;
  if (status.ok()) {
    Work work;
    work.function = reinterpret_cast<const void*>(launch.kernel);
    for (int i = 0; i < 3; ++i) {
      work.grid[i] = launch.grid[i] != 0 ? launch.grid[i] : 1;
      work.block[i] = launch.block[i] != 0 ? launch.block[i] : 1;
    }
    work.shared_bytes = launch.shared_bytes;
    work.args = launch.args;
    work.args_bytes = launch.args_bytes;
    status = driver_->launch(work, slot.stream);
    started = status.ok();
  }
  if (started) {
    status = driver_->record(slot.done, slot.stream);
    // It runs, and nothing will tell its end but the stream's.
    if (!status.ok()) status = driver_->synchronize(slot.stream);
    if (!status.ok() && status.code() != UHMM_ERR_DEVICE_LOST) lose(last_detail());
  }
  (void)seen(status);
  const std::scoped_lock lock(mutex_);
  slot.reserved = false;
  // A kernel that has ended its context by now is one that ran: whoever waits for it is told.
  if (!status.ok() && !(started && lost_.load())) return status;
  slot.generation = (slot.generation + 1) & ((1u << kGenerationBits) - 1);
  slot.running = true;
  return to_ticket({incarnation_, slot.generation, static_cast<std::uint32_t>(index)});
}

bool VmmDevice::do_finished(backend::Ticket ticket) const {
  const TicketParts parts = to_parts(ticket);
  const std::scoped_lock lock(mutex_);
  if (!open_.load() || parts.incarnation != incarnation_ || parts.slot >= kSlots) return true;
  Slot& slot = slots_[parts.slot];
  return slot.generation != parts.generation || look_at(slot);
}

Status VmmDevice::do_wait(backend::Ticket ticket) {
  const TicketParts parts = to_parts(ticket);
  for (;;) {
    Event done = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      if (!open_.load() || parts.incarnation != incarnation_ || parts.slot >= kSlots)
        return fail(UHMM_ERR_DEVICE_LOST, "device %s was lost before the kernel finished", options_.name);
      Slot& slot = slots_[parts.slot];
      // What has another launch in it since has ended well: after a failure there is none.
      if (slot.generation != parts.generation) return {};
      if (look_at(slot)) {
        if (slot.outcome.ok()) return {};
        return fail(slot.outcome.code(), "device %s: a kernel failed: %s", options_.name, reason_);
      }
      done = slot.done;
    }
    // Where waiting itself fails, asking goes on: only the kernel's end may be reported as such.
    if (!seen(driver_->wait(done)).ok()) sched_yield();
  }
}

bool VmmDevice::do_busy() const {
  const std::scoped_lock lock(mutex_);
  if (!open_.load()) return false;
  bool busy = false;
  for (Slot& slot : slots_) busy = !look_at(slot) || slot.reserved || busy;
  return busy;
}

Status VmmDevice::drain() const {
  for (;;) {
    Event running = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      for (Slot& slot : slots_)
        if (!look_at(slot) && running == nullptr) running = slot.done;
    }
    if (running == nullptr) return lost_.load() ? lost_status() : Status{};
    if (!seen(driver_->wait(running)).ok()) sched_yield();
  }
}

// A driver's function handle: the driver knows whether it is one, at the launch.
Status VmmDevice::do_check_kernel(uhmm_kernel /*kernel*/) const {
  return open_.load() && !lost_.load() ? Status{} : lost_status();
}

}  // namespace uhmm::vmm
