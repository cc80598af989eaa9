// SPDX-License-Identifier: Apache-2.0
// The control segment: memory that the program and one device process share, at the same address in both. Requests,
// launches and the last words of a crashing device go through it; page contents never do, except those of access().
//
// The host must survive whatever a kernel writes here by accident: it follows no pointer that it reads from the
// segment, and every wait for the device is bounded and looks whether the process still lives.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "uhmm/uhmm.h"

namespace uhmm::soft {

inline constexpr std::uint32_t kMostMailboxes = 4;
inline constexpr std::uint32_t kMostWorkers = 256;
inline constexpr std::uint32_t kRequestRanges = 256;
inline constexpr std::uint32_t kSlots = 64;
inline constexpr std::uint32_t kBounces = 2;
inline constexpr std::size_t kBounceBytes = std::size_t{1} << 20;
// Cells of one launch: what fits beside the generation in a slot's `next`.
inline constexpr std::uint32_t kCellBits = 40;
inline constexpr std::uint64_t kMostCells = (std::uint64_t{1} << kCellBits) - (std::uint64_t{1} << 20);

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free,
              "atomics in shared memory must not need a lock");

// ------------------------------------------------------------------- requests

enum class Operation : std::uint32_t {
  MapInaccessible,  // device memory over the range, no access yet: the host registers it for faults first
  MakeAccessible,
  Remove,         // the range is no longer the device's
  DropPageTable,  // pages stay in memory, the next touch faults
  Mirror,         // the range shows a file of the program's, which comes by the socket for files
};

enum class MailboxState : std::uint32_t { Idle, Posted, Done };

struct alignas(64) Mailbox {
  std::atomic<std::uint32_t> state;  // MailboxState; a futex for both sides
  Operation operation;
  std::uint32_t count;
  std::int32_t error;       // errno of the first range that failed
  std::uint32_t succeeded;  // ranges before it
  std::uint64_t offset;     // Mirror: of the file
  bool readable, writable;
  struct {
    std::uint64_t begin, end;
  } ranges[kRequestRanges];
};

// ------------------------------------------------------------------- launches

// Generations have 24 bits and count a slot's launches. `next` is generation << kCellBits | first cell that nobody has
// claimed. A worker claims with compare-exchange, so a claim proves that the slot still holds the launch that the
// worker read. kIdle: a slot that is being filled.
inline constexpr std::uint64_t kCellMask = (std::uint64_t{1} << kCellBits) - 1;
inline constexpr std::uint64_t kIdle = kCellMask;
inline constexpr std::uint32_t kGenerationMask = (1u << (64 - kCellBits)) - 1;

struct alignas(64) Slot {
  std::atomic<std::uint64_t> next;
  std::atomic<std::uint64_t> done;     // cells that returned
  std::atomic<std::uint32_t> state;    // generation << 1 | finished; a futex for waiting host threads
  std::atomic<std::uint32_t> waiters;  // host threads that sleep on `state`
  uhmm_kernel kernel;
  std::atomic<std::uint64_t> cells;
  std::atomic<std::uint64_t> chunk;  // cells per claim
  std::uint32_t grid[3];
  alignas(64) std::byte args[UHMM_MAX_ARGS_BYTES];
};

struct alignas(64) WorkerRecord {
  std::atomic<std::uint64_t> kernel;  // address of the function that it is in; 0: none
  std::atomic<std::uint32_t> slot;
  std::atomic<std::uint32_t> generation;
};

// ------------------------------------------------------------------ last words

enum class EndKind : std::uint32_t { None, Signal, Exit, Sanitizer };

struct alignas(64) LastWords {
  std::atomic<std::uint32_t> taken;  // the first to die speaks
  std::atomic<std::uint32_t> kind;   // EndKind, stored last
  std::int32_t number;               // signal or exit status
  std::uint64_t address;
  std::uint64_t instruction;
  std::uint64_t kernel;
  std::uint32_t slot;  // kSlots: not in a launch
  std::uint32_t generation;
};

// -------------------------------------------------------------------- segment

struct Control {
  // Set before the device process starts, constant while it runs.
  std::uint32_t mailboxes;
  std::uint32_t workers;
  std::uint32_t processor;  // what kernels see as their device

  std::atomic<std::uint32_t> started;  // threads that are up

  alignas(64) std::atomic<std::uint32_t> doorbell;       // futex of idle workers
  std::atomic<std::uint32_t> sleepers;                   // idle workers
  alignas(64) std::atomic<std::uint64_t> ready;          // bit s: slot s may have cells to claim
  alignas(64) std::atomic<std::uint32_t> unfinished;     // launches
  alignas(64) std::atomic<std::uint32_t> finished_bell;  // futex of host threads that wait for a free slot
  std::atomic<std::uint32_t> slot_waiters;

  LastWords last_words;
  Mailbox mailbox[kMostMailboxes];
  WorkerRecord worker[kMostWorkers];
  Slot slot[kSlots];
  // Bytes that an access could not reach: its memory ended, or may not be accessed.
  std::atomic<std::uint64_t> bounce_left[kBounces];
  alignas(4096) std::byte bounce[kBounces][kBounceBytes];
};

// ----------------------------------------------- the device process's own memory

// Everything that threads of the device process write besides managed memory lies in one area that the program keeps
// reserved: no later mapping of the program, which might be attached to the device, can be there.
//   [guard | first thread's stack] [alternate stack | guard | stack] x threads [for what libraries map]
inline constexpr std::size_t kGuardBytes = 64 << 10;
inline constexpr std::size_t kAlternateBytes = 64 << 10;
inline constexpr std::size_t kFirstStackBytes = 512 << 10;
inline constexpr std::size_t kStackBytes = 2 << 20;
inline constexpr std::size_t kLibraryBytes = std::size_t{512} << 20;  // address space only
inline constexpr std::size_t kThreadStride = kAlternateBytes + kGuardBytes + kStackBytes;

struct PrivateArea {
  std::byte* base = nullptr;  // aligned to kAlternateBytes
  std::uint32_t threads = 0;

  std::size_t bytes() const { return kGuardBytes + kFirstStackBytes + threads * kThreadStride + kLibraryBytes; }
  std::byte* first_stack() const { return base + kGuardBytes; }
  std::byte* first_stack_top() const { return first_stack() + kFirstStackBytes; }
  std::byte* alternate(std::uint32_t thread) const { return first_stack_top() + thread * kThreadStride; }
  std::byte* stack(std::uint32_t thread) const { return alternate(thread) + kAlternateBytes + kGuardBytes; }
  std::byte* library() const { return alternate(threads); }
  // The thread whose stacks contain `pointer`; `threads` if none.
  std::uint32_t thread_of(const void* pointer) const {
    const auto* byte = static_cast<const std::byte*>(pointer);
    if (byte < alternate(0) || byte >= alternate(threads)) return threads;
    return static_cast<std::uint32_t>(static_cast<std::size_t>(byte - alternate(0)) / kThreadStride);
  }
};

// Where each alternate stack begins: a crash handler finds it from its stack pointer, without thread-local storage.
struct ThreadRecord {
  static constexpr std::uint64_t kMagic = 0x75686d6d2d736f66;
  std::uint64_t magic;
  Control* control;
  std::uint32_t worker;  // kMostWorkers: a control thread
};

// The device process's first message; a userfaultfd comes with it.
struct Hello {
  std::uint32_t ok;
  std::uint32_t status;  // uhmm_status when not ok
  bool move, poison, write_protect, shared_missing, shared_minor, shared_write_protect, kernel_mode, continue_protected;
  char detail[192];
};

}  // namespace uhmm::soft
