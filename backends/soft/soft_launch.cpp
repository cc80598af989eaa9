// SPDX-License-Identifier: Apache-2.0
// Kernels on a soft device: launches are posted in slots of the control segment, workers of the device process claim
// their cells.
#include <sched.h>

#include <bit>
#include <cstring>

#include "backends/soft/soft_device_impl.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::soft {
namespace {

constexpr std::uint64_t kAnswerCheckNs = 50'000'000;
// A short kernel is over before a sleep would have begun.
constexpr std::uint64_t kSpinNs = 20'000;

struct TicketParts {
  std::uint32_t incarnation;
  std::uint32_t generation;
  std::uint32_t slot;
};

constexpr std::uint64_t to_ticket(TicketParts parts) {
  return std::uint64_t{parts.incarnation} << 32 | std::uint64_t{parts.generation} << 8 | parts.slot;
}
constexpr TicketParts to_parts(std::uint64_t ticket) {
  return {static_cast<std::uint32_t>(ticket >> 32), static_cast<std::uint32_t>(ticket >> 8) & kGenerationMask,
          static_cast<std::uint32_t>(ticket & 0xff) % kSlots};
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

bool SoftDevice::try_post(const backend::Launch& launch, backend::Ticket* ticket) {
  Control& control = *control_;
  for (std::uint32_t index = 0; index < kSlots; ++index) {
    Slot& slot = control.slot[index];
    const std::uint32_t state = slot.state.load(std::memory_order_acquire);
    if ((state & 1) == 0) continue;
    const std::uint32_t generation = ((state >> 1) + 1) & kGenerationMask;
    // Nobody can claim from a slot that says idle; what follows is seen only by who has seen that (claim_from).
    slot.next.store(std::uint64_t{generation} << kCellBits | kIdle, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    std::uint64_t cells = 1;
    for (int i = 0; i < 3; ++i) {
      slot.grid[i] = launch.grid[i] != 0 ? launch.grid[i] : 1;
      cells *= slot.grid[i];
    }
    // Few enough claims for their cost not to matter, enough for the last worker not to be late.
    const std::uint64_t chunk = cells / (std::uint64_t{control.workers} * 8);
    slot.cells.store(cells, std::memory_order_relaxed);
    slot.chunk.store(chunk < 1 ? 1 : chunk, std::memory_order_relaxed);
    slot.kernel = launch.kernel;
    if (launch.args_bytes != 0) std::memcpy(slot.args, launch.args, launch.args_bytes);
    slot.done.store(0, std::memory_order_relaxed);
    slot.state.store(generation << 1, std::memory_order_seq_cst);
    control.unfinished.fetch_add(1, std::memory_order_seq_cst);
    slot.next.store(std::uint64_t{generation} << kCellBits, std::memory_order_release);
    control.ready.fetch_or(std::uint64_t{1} << index, std::memory_order_acq_rel);
    control.doorbell.fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t sleepers = control.sleepers.load(std::memory_order_seq_cst);
    if (sleepers != 0)
      os::futex_wake_shared(control.doorbell, static_cast<std::uint32_t>(std::min<std::uint64_t>(sleepers, cells)));
    *ticket = to_ticket({incarnation_, generation, index});
    return true;
  }
  return false;
}

Result<backend::Ticket> SoftDevice::do_launch(const backend::Launch& launch) {
  // Each factor has 32 bits: multiply with care.
  std::uint64_t cells = 1;
  for (const std::uint32_t extent : launch.grid) {
    const std::uint64_t factor = extent != 0 ? extent : 1;
    if (cells > kMostCells / factor)
      return fail(UHMM_ERR_INVALID, "a grid of %u x %u x %u cells is too large: at most %llu", launch.grid[0],
                  launch.grid[1], launch.grid[2], static_cast<unsigned long long>(kMostCells));
    cells *= factor;
  }
  begin_work();
  for (;;) {
    if (!open_now()) {
      end_work();
      return lost_status();
    }
    const std::uint32_t bell = control_->finished_bell.load(std::memory_order_seq_cst);
    backend::Ticket ticket = 0;
    bool posted = false;
    {
      std::scoped_lock lock(launch_mutex_);
      posted = try_post(launch, &ticket);
    }
    if (posted) {
      end_work();
      return ticket;
    }
    control_->slot_waiters.fetch_add(1, std::memory_order_seq_cst);
    if (control_->finished_bell.load(std::memory_order_seq_cst) == bell)
      os::futex_wait_shared(control_->finished_bell, bell, kAnswerCheckNs);
    control_->slot_waiters.fetch_sub(1, std::memory_order_seq_cst);
    (void)still_alive(false);
  }
}

bool SoftDevice::do_finished(backend::Ticket ticket) const {
  const TicketParts parts = to_parts(ticket);
  if (!open_now() || parts.incarnation != incarnation_) return true;
  const std::uint32_t state = control_->slot[parts.slot].state.load(std::memory_order_acquire);
  return state >> 1 != parts.generation || (state & 1) != 0;
}

Status SoftDevice::launch_outcome(backend::Ticket ticket) const {
  const TicketParts parts = to_parts(ticket);
  if (control_ == nullptr || parts.incarnation != incarnation_)
    return fail(UHMM_ERR_DEVICE_LOST, "device %s was lost before the kernel finished", options_.name);
  const std::uint32_t state = control_->slot[parts.slot].state.load(std::memory_order_acquire);
  if (state >> 1 != parts.generation || (state & 1) != 0) return {};
  await_reason();
  const bool culprit = parts.slot == failed_slot_ && parts.generation == failed_generation_;
  return lost_status(culprit ? UHMM_ERR_KERNEL_FAILED : UHMM_ERR_DEVICE_LOST);
}

Status SoftDevice::do_wait(backend::Ticket ticket) {
  const TicketParts parts = to_parts(ticket);
  const std::uint64_t spin_end = os::now_ns() + kSpinNs;
  while (!do_finished(ticket) && os::now_ns() < spin_end) pause_cpu();
  while (!do_finished(ticket)) {
    Slot& slot = control_->slot[parts.slot];
    slot.waiters.fetch_add(1, std::memory_order_seq_cst);
    if (!do_finished(ticket)) os::futex_wait_shared(slot.state, parts.generation << 1, kAnswerCheckNs);
    slot.waiters.fetch_sub(1, std::memory_order_seq_cst);
    if (!do_finished(ticket)) (void)still_alive(false);
  }
  return launch_outcome(ticket);
}

bool SoftDevice::do_busy() const { return open_now() && control_->unfinished.load(std::memory_order_seq_cst) != 0; }

Status SoftDevice::do_check_kernel(uhmm_kernel kernel) const {
  if (!open_now()) return lost_status();
  return kernels_.check(reinterpret_cast<const void*>(kernel));
}

Status SoftDevice::do_access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) {
  if (!open_now()) return lost_status();
  // One of the bounce buffers, for as long as the access lasts.
  std::uint32_t bounce = kBounces;
  for (std::uint32_t taken = bounces_taken_.load(std::memory_order_relaxed); bounce == kBounces;) {
    const auto first_free = static_cast<std::uint32_t>(std::countr_one(taken));
    if (first_free >= kBounces) {
      bounces_taken_.wait(taken, std::memory_order_relaxed);
      taken = bounces_taken_.load(std::memory_order_relaxed);
    } else if (bounces_taken_.compare_exchange_weak(taken, taken | 1u << first_free, std::memory_order_acquire)) {
      bounce = first_free;
    }
  }
  Status status;
  for (std::size_t done = 0; status.ok() && done < bytes;) {
    const std::size_t part = std::min(bytes - done, kBounceBytes);
    std::byte* between = control_->bounce[bounce];
    std::atomic<std::uint64_t>& left = control_->bounce_left[bounce];
    const AccessArgs args{address.value + done, between, &left, part, is_write ? 1u : 0u};
    if (is_write) std::memcpy(between, buffer + done, part);
    backend::Launch launch;
    launch.kernel = access_kernel;
    launch.args = &args;
    launch.args_bytes = sizeof(args);
    auto ticket = do_launch(launch);
    status = ticket ? do_wait(*ticket) : ticket.status();
    if (const std::uint64_t rest = left.load(std::memory_order_acquire); status.ok() && rest != 0)
      status = fail(UHMM_ERR_FAULT, "device %s can't reach %#lx", options_.name, address.value + done + part - rest);
    if (status.ok() && !is_write) std::memcpy(buffer + done, between, part);
    done += part;
  }
  bounces_taken_.fetch_and(~(1u << bounce), std::memory_order_release);
  bounces_taken_.notify_one();
  return status;
}

}  // namespace uhmm::soft
