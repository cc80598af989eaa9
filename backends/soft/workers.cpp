// SPDX-License-Identifier: Apache-2.0
// Kernel workers of the device process. They claim cells of posted launches in chunks, going round the ready slots, so
// that launches of several streams run beside each other.
#include <cstring>

#include "backends/soft/device_process.hpp"
#include "runtime/os/process.hpp"

namespace uhmm::soft {
namespace {

struct Claim {
  std::uint32_t slot = kSlots;
  std::uint32_t generation = 0;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

bool claim_from(Control& control, std::uint32_t index, Claim* claim) {
  Slot& slot = control.slot[index];
  std::uint64_t next = slot.next.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t first = next & kCellMask;
    if (first == kIdle) return false;
    // These belong to a later launch if the slot was refilled since; then the exchange below fails.
    const std::uint64_t cells = slot.cells.load(std::memory_order_acquire);
    const std::uint64_t chunk = slot.chunk.load(std::memory_order_acquire);
    if (first >= cells) return false;
    const std::uint64_t count = chunk < cells - first ? chunk : cells - first;
    if (slot.next.compare_exchange_weak(next, next + count, std::memory_order_acq_rel, std::memory_order_acquire)) {
      // Before `done` can reach `cells`, so before the slot can be refilled: the bit is still this launch's.
      if (first + count == cells) control.ready.fetch_and(~(std::uint64_t{1} << index), std::memory_order_acq_rel);
      *claim = {index, static_cast<std::uint32_t>(next >> kCellBits), first, count};
      return true;
    }
  }
}

// The next ready slot after `last`, wrapping round.
bool claim_any(Control& control, std::uint32_t last, Claim* claim) {
  const std::uint64_t ready = control.ready.load(std::memory_order_acquire);
  if (ready == 0) return false;
  for (std::uint32_t step = 1; step <= kSlots; ++step) {
    const std::uint32_t index = (last + step) % kSlots;
    if (((ready >> index) & 1) != 0 && claim_from(control, index, claim)) return true;
  }
  return false;
}

void run_cells(Control& control, const Claim& claim, std::uint32_t worker) {
  Slot& slot = control.slot[claim.slot];
  uhmm_kernel_item item{};
  for (int i = 0; i < 3; ++i) item.grid[i] = slot.grid[i];
  item.device = control.processor;
  item.worker = worker;
  std::uint64_t cell = claim.first;
  item.index[0] = static_cast<std::uint32_t>(cell % item.grid[0]);
  cell /= item.grid[0];
  item.index[1] = static_cast<std::uint32_t>(cell % item.grid[1]);
  item.index[2] = static_cast<std::uint32_t>(cell / item.grid[1]);
  for (std::uint64_t i = 0; i < claim.count; ++i) {
    // The kernel gets a copy: it may be buggy and cast const away.
    const uhmm_kernel_item mine = item;
    slot.kernel(&mine, slot.args);
    if (++item.index[0] < item.grid[0]) continue;
    item.index[0] = 0;
    if (++item.index[1] < item.grid[1]) continue;
    item.index[1] = 0;
    ++item.index[2];
  }
}

void finish_cells(Control& control, const Claim& claim) {
  Slot& slot = control.slot[claim.slot];
  const std::uint64_t cells =
      slot.cells.load(std::memory_order_relaxed);  // the slot can be refilled once `done` says so
  if (slot.done.fetch_add(claim.count, std::memory_order_acq_rel) + claim.count != cells) return;
  // First not busy, then finished: who waited for the launch finds the device idle.
  control.unfinished.fetch_sub(1, std::memory_order_seq_cst);
  slot.state.store(claim.generation << 1 | 1, std::memory_order_seq_cst);
  if (slot.waiters.load(std::memory_order_seq_cst) != 0) os::futex_wake_shared(slot.state, ~0u);
  control.finished_bell.fetch_add(1, std::memory_order_seq_cst);
  if (control.slot_waiters.load(std::memory_order_seq_cst) != 0) os::futex_wake_shared(control.finished_bell, ~0u);
}

}  // namespace

// An exception that leaves a kernel, or pthread_exit(), ends in std::terminate(): a crash of the kernel.
[[noreturn]] void run_worker(Control& control, std::uint32_t worker) noexcept {
  WorkerRecord& record = control.worker[worker];
  std::uint32_t last = worker % kSlots;
  for (;;) {
    const std::uint32_t bell = control.doorbell.load(std::memory_order_seq_cst);
    Claim claim;
    if (claim_any(control, last, &claim)) {
      last = claim.slot;
      // What earlier launches wrote happened before this one: the program saw their end before it posted this. The
      // segment's other words prove it to no tool that watches this process alone.
      (void)control.unfinished.load(std::memory_order_acquire);
      record.slot.store(claim.slot, std::memory_order_relaxed);
      record.generation.store(claim.generation, std::memory_order_relaxed);
      record.kernel.store(reinterpret_cast<std::uint64_t>(control.slot[claim.slot].kernel), std::memory_order_relaxed);
      run_cells(control, claim, worker);
      record.kernel.store(0, std::memory_order_relaxed);
      finish_cells(control, claim);
      continue;
    }
    control.sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (control.doorbell.load(std::memory_order_seq_cst) == bell) os::futex_wait_shared(control.doorbell, bell);
    control.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
}

#if defined(__x86_64__)
// One instruction, so that the handler of fatal signals knows it, and what is left of the copy is in a register.
asm(R"(
  .text
  .p2align 4
  .local uhmm_access_copy
  .type uhmm_access_copy, @function
uhmm_access_copy:
  mov %rdx, %rcx
  .local uhmm_access_move
uhmm_access_move:
  rep movsb
  .local uhmm_access_end
uhmm_access_end:
  mov %rcx, %rax
  ret
  .size uhmm_access_copy, .-uhmm_access_copy
)");
extern "C" {
__attribute__((visibility("hidden"))) std::uint64_t uhmm_access_copy(void* to, const void* from, std::uint64_t bytes);
__attribute__((visibility("hidden"))) void uhmm_access_move();  // labels, not called
__attribute__((visibility("hidden"))) void uhmm_access_end();
}

std::uint64_t resume_of_access(std::uint64_t instruction) {
  return instruction == reinterpret_cast<std::uint64_t>(uhmm_access_move)
             ? reinterpret_cast<std::uint64_t>(uhmm_access_end)
             : 0;
}
#else
static std::uint64_t uhmm_access_copy(void* to, const void* from, std::uint64_t bytes) {
  std::memcpy(to, from, bytes);
  return 0;
}

std::uint64_t resume_of_access(std::uint64_t /*instruction*/) { return 0; }
#endif

void access_kernel(const uhmm_kernel_item*, void* args) {
  const auto* access = static_cast<const AccessArgs*>(args);
  void* managed = reinterpret_cast<void*>(access->address);
  const std::uint64_t left = access->is_write != 0 ? uhmm_access_copy(managed, access->bounce, access->bytes)
                                                   : uhmm_access_copy(access->bounce, managed, access->bytes);
  access->left->store(left, std::memory_order_release);
}

}  // namespace uhmm::soft
