// SPDX-License-Identifier: Apache-2.0
// The narrow interface that a device implements. Public calls check and count, the do_* hooks act.
//
// Device memory has the program's addresses: page P of the program, when resident on the device, lives at P there.
// Three facts per page belong to the engine, not to the device: resident, mapped, allocated. The device only obeys.
//
// All data and page-table calls may come from service threads: they must not allocate from the heap, take a lock that a
// user thread can hold while it faults, or touch managed memory. Calls for disjoint pages may run at the same time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::backend {

struct Capabilities {
  char name[64] = {};
  std::uint32_t kind = UHMM_DEVICE_SOFT;
  bool coherent = false;       // the CPU may map device memory in place
  bool faulting = true;        // has a fault source; else all that a kernel may reach is brought there before it starts
  bool read_only_maps = true;  // map() with MapAccess::Read is honoured (else treat every mapping as writable)
  bool mirrors = false;        // mirror() works: kernels can work on the program's own pages
  std::uint64_t memory_bytes = 0;
  std::uint32_t workers = 0;
  std::int64_t process_id = 0;
};

enum class MapAccess : std::uint8_t { Read, ReadWrite };

// A range made reachable. `host` is where the CPU sees the device's memory for `range` (the aperture), or nullptr for a
// device without one. Page aligned.
struct Window {
  ByteRange range;
  std::byte* host = nullptr;
};

// What is mapped at pages of the program that a device is to work on where they are.
struct Mirrored {
  ByteRange pages;
  int file = -1;  // which the device needs no longer than the call lasts
  std::uint64_t offset = 0;
  bool readable = false;
  bool writable = false;
};

struct DeviceFault {
  VirtAddr address;  // page-aligned
  bool is_write = false;
  bool is_protection = false;  // the page is mapped read-only and was written
};

struct Launch {
  uhmm_kernel kernel = nullptr;
  const void* args = nullptr;
  std::size_t args_bytes = 0;
  std::uint32_t grid[3] = {1, 1, 1};
  // Of devices whose kernels run in blocks of threads.
  std::uint32_t block[3] = {1, 1, 1};
  std::uint32_t shared_bytes = 0;
};
using Ticket = std::uint64_t;  // of a launch; 0 is none

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  virtual const Capabilities& capabilities() const = 0;

  // Start the device (again after it was lost: everything on it is gone, no window is attached). User threads only.
  Status open();
  // Stop it and free everything. Idempotent.
  void close();

  // Make ranges reachable; fills in `host`. All or nothing. Pages are absent until map(): touching them faults.
  Status attach(std::span<Window> windows);
  // End it for `owned` (page aligned, inside window.range: pages that no other window shares); frees its memory.
  // `window.host` is unmapped as a whole.
  void detach(const Window& window, ByteRange owned);
  // `window` ends at `at` from now on, a page boundary inside it; returns a window of the rest. The device's page table
  // stays as it is. Can't fail after a reserve_split(), with no attach() between them. Errors of that: NO_MEMORY.
  Status reserve_split();
  Window split(Window& window, VirtAddr at);

  // Data. `pages` is page aligned inside window.range; buffers are staging, never managed memory.
  Status copy_in(const Window& window, ByteRange pages, const std::byte* from);
  Status copy_out(const Window& window, ByteRange pages, std::byte* to);
  Status zero(const Window& window, ByteRange pages);
  // Give physical memory back; pages must not be mapped by the device any more. Contents are gone.
  Status free_memory(const Window& window, ByteRange pages);
  // The link model's share of a copy done by other means (through Window::host).
  void charge_link(std::uint64_t bytes);

  // The device's page table. map: pages have current data; wakes faults there. Pages mapped already are fine.
  Status map(ByteRange pages, MapAccess access);
  // Change access of mapped pages; on return from a change to Read no write can happen any more. Wakes faults there
  // when access grows.
  Status protect(ByteRange pages, MapAccess access);
  // On return no kernel can reach the pages any more; they keep their memory.
  Status unmap(std::span<const ByteRange> pages);
  // The same for few pages while kernels run, where asking the device to unmap would cost more: unmaps by freeing
  // the pages' memory.
  Status unmap_and_free(const Window& window, ByteRange pages);
  // Any access by the device to these absent pages fails (a kernel that touches them crashes).
  Status poison(ByteRange pages);
  // Coherent devices: put a mapping of the device's memory into the program's address space at the same addresses,
  // replacing what is mapped there. NOT_SUPPORTED on private devices.
  Status map_host(const Window& window, ByteRange pages);
  // Let the device reach the program's own pages of a file, as the program does: no copy, no faults, no window. What
  // the device had at these addresses is out of its reach, at one stroke. Devices that can: Capabilities::mirrors.
  Status mirror(const Mirrored& source);
  // The device reaches nothing there any more.
  void unmirror(ByteRange pages);
  // Retry faults in `pages`.
  void wake(ByteRange pages);

  // Work. launch() does not block on the kernel. finished() is true also when the device is lost. `busy` is true while
  // any launch is unfinished.
  Result<Ticket> launch(const Launch& launch);
  bool finished(Ticket ticket) const;
  Status wait(Ticket ticket);
  bool busy() const;
  // Make busy() true ahead of a launch or access, and end that. For the engine, which must flush stale mappings after
  // the device counts as busy and before a kernel can run.
  void begin_work() { announced_work_.fetch_add(1, std::memory_order_seq_cst); }
  void end_work() { announced_work_.fetch_sub(1, std::memory_order_seq_cst); }
  // True if the device can call `kernel` (it was loaded when the device started); else fills the detail text.
  Status check_kernel(uhmm_kernel kernel) const;
  // Read or write through the device's page table, taking its faults. `buffer` is ordinary memory. User threads only.
  // FAULT: a part of it is not there any more, or poisoned; what comes before may have been written.
  Status access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write);

  // Faults: poll fault_fd() for POLLIN, then read. Returns how many were stored; 0 when none are pending.
  int fault_fd() const { return do_fault_fd(); }
  std::size_t read_faults(std::span<DeviceFault> faults);
  // Becomes readable when the device died on its own.
  int death_fd() const { return do_death_fd(); }
  // After death: marks the device lost, wakes every waiter, and says why (NUL-terminated). Idempotent.
  void handle_death(std::span<char> reason);
  bool lost() const;
  // A file that holds the device's memory, its offsets the program's addresses, or -1: a forked child of the program
  // can go on reading from a duplicate of the descriptor whatever becomes of the device.
  int memory_file() const { return do_memory_file(); }
  // In a forked child of the program: forget the device without touching it. Async-signal-safe; afterwards only the
  // destructor and close() may be called, and they do nothing.
  void abandon_after_fork() { do_abandon_after_fork(); }

 protected:
  virtual Status do_open() = 0;
  virtual void do_close() = 0;
  virtual Status do_attach(std::span<Window> windows) = 0;
  virtual void do_detach(const Window& window, ByteRange owned) = 0;
  virtual Status do_reserve_split() = 0;
  virtual void do_split(const Window& window, const Window& lower, const Window& upper) = 0;
  virtual Status do_copy_in(const Window& window, ByteRange pages, const std::byte* from) = 0;
  virtual Status do_copy_out(const Window& window, ByteRange pages, std::byte* to) = 0;
  virtual Status do_zero(const Window& window, ByteRange pages) = 0;
  virtual Status do_free_memory(const Window& window, ByteRange pages) = 0;
  virtual void do_charge_link(std::uint64_t bytes) = 0;
  virtual Status do_map(ByteRange pages, MapAccess access) = 0;
  virtual Status do_protect(ByteRange pages, MapAccess access) = 0;
  virtual Status do_unmap(std::span<const ByteRange> pages) = 0;
  virtual Status do_unmap_and_free(const Window& window, ByteRange pages) = 0;
  virtual Status do_poison(ByteRange pages) = 0;
  virtual Status do_map_host(const Window& window, ByteRange pages) = 0;
  virtual Status do_mirror(const Mirrored& source);
  virtual void do_unmirror(ByteRange /*pages*/) {}
  virtual void do_wake(ByteRange pages) = 0;
  virtual Result<Ticket> do_launch(const Launch& launch) = 0;
  virtual bool do_finished(Ticket ticket) const = 0;
  virtual Status do_wait(Ticket ticket) = 0;
  virtual bool do_busy() const = 0;
  virtual Status do_check_kernel(uhmm_kernel kernel) const = 0;
  virtual Status do_access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) = 0;
  virtual int do_fault_fd() const = 0;
  virtual std::size_t do_read_faults(std::span<DeviceFault> faults) = 0;
  virtual int do_death_fd() const = 0;
  virtual void do_handle_death(std::span<char> reason) = 0;
  virtual bool do_lost() const = 0;
  virtual int do_memory_file() const { return -1; }
  virtual void do_abandon_after_fork() = 0;

 private:
  std::atomic<std::uint64_t> announced_work_{0};
};

}  // namespace uhmm::backend
