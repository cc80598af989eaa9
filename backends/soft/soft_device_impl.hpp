// SPDX-License-Identifier: Apache-2.0
// The program's side of a soft device. Three files implement it: soft_device.cpp (data and page table),
// soft_lifecycle.cpp (process, windows, death) and soft_launch.cpp (kernels).
//
// One object lives through several processes: each open() after a loss is a new incarnation. The control segment and
// the process's private area keep their addresses, so a thread that still waits for a launch of the lost process looks
// at valid memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory_resource>
#include <mutex>
#include <vector>

#include "backends/soft/channel.hpp"
#include "backends/soft/device_process.hpp"
#include "backends/soft/kernel_registry.hpp"
#include "backends/soft/soft_device.hpp"
#include "runtime/base/lock.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::soft {

class SoftDevice final : public backend::Device {
 public:
  explicit SoftDevice(const Options& options);
  ~SoftDevice() override;

  const backend::Capabilities& capabilities() const override { return capabilities_; }

 protected:
  Status do_open() override;
  void do_close() override;
  Status do_attach(std::span<backend::Window> windows) override;
  void do_detach(const backend::Window& window, ByteRange owned) override;
  Status do_reserve_split() override;
  void do_split(const backend::Window& window, const backend::Window& lower, const backend::Window& upper) override;
  Status do_copy_in(const backend::Window& window, ByteRange pages, const std::byte* from) override;
  Status do_copy_out(const backend::Window& window, ByteRange pages, std::byte* to) override;
  Status do_zero(const backend::Window& window, ByteRange pages) override;
  Status do_free_memory(const backend::Window& window, ByteRange pages) override;
  void do_charge_link(std::uint64_t bytes) override;
  Status do_map(ByteRange pages, backend::MapAccess access) override;
  Status do_protect(ByteRange pages, backend::MapAccess access) override;
  Status do_unmap(std::span<const ByteRange> pages) override;
  Status do_unmap_and_free(const backend::Window& window, ByteRange pages) override;
  Status do_poison(ByteRange pages) override;
  Status do_map_host(const backend::Window& window, ByteRange pages) override;
  Status do_mirror(const backend::Mirrored& source) override;
  void do_unmirror(ByteRange pages) override;
  void do_wake(ByteRange pages) override;
  Result<backend::Ticket> do_launch(const backend::Launch& launch) override;
  bool do_finished(backend::Ticket ticket) const override;
  Status do_wait(backend::Ticket ticket) override;
  bool do_busy() const override;
  Status do_check_kernel(uhmm_kernel kernel) const override;
  Status do_access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) override;
  int do_fault_fd() const override { return uffd_.fd(); }
  std::size_t do_read_faults(std::span<backend::DeviceFault> faults) override;
  int do_death_fd() const override { return death_pidfd_; }
  void do_handle_death(std::span<char> reason) override;
  bool do_lost() const override { return state_.load(std::memory_order_acquire) == State::Lost; }
  int do_memory_file() const override { return memory_file_; }
  void do_abandon_after_fork() override;

 private:
  enum class State : std::uint32_t { Closed, Open, Dying, Lost };

  // Lifecycle.
  Status prepare_memory();
  void prepare_control();
  Status start_process(int timeout_ms);
  Status receive_hello(pid_t pid, int timeout_ms);
  void stop_process();
  void release_incarnation();
  void forget_incarnation();
  unsigned fault_modes() const;

  // Requests to the device process. `done` (may be null): ranges that were done.
  Status request(Operation operation, std::span<const ByteRange> ranges, std::size_t* done = nullptr);
  // A mailbox for this thread, locked.
  std::uint32_t lock_mailbox();
  int post_request(Mailbox& mailbox, Operation operation, std::span<const ByteRange> ranges, std::size_t* done);
  // Whether the process can still answer; notes its death. `hurry`: there is a sign that it is dying.
  bool still_alive(bool hurry);
  // Turns Open into Lost and composes the reason, once; others wait until that is done.
  void note_death();
  void compose_reason();
  // Another thread may be composing it right now.
  void await_reason() const;
  void wake_waiters();
  Status lost_status(uhmm_status code = UHMM_ERR_DEVICE_LOST) const;
  bool open_now() const { return state_.load(std::memory_order_acquire) == State::Open; }

  // Windows. Parts of `range` that no window covers yet.
  void uncovered(ByteRange range, std::pmr::vector<ByteRange>* out) const;
  Status attach_locked(std::span<backend::Window> windows);

  // Page table.
  Status map_run(ByteRange pages, bool write_protected);
  Status page_table_error(const char* what, ByteRange pages, int error);

  // When a copy of `bytes` that begins now is over, by the link model; 0 without one.
  std::uint64_t link_deadline(std::uint64_t bytes);
  static void wait_until(std::uint64_t deadline_ns);

  // Launches.
  bool try_post(const backend::Launch& launch, backend::Ticket* ticket);
  Status launch_outcome(backend::Ticket ticket) const;

  struct MappedWindow {
    ByteRange range;
    std::byte* host = nullptr;
  };

  Options options_;
  backend::Capabilities capabilities_;
  Control* control_ = nullptr;
  PrivateArea area_;
  std::atomic<State> state_{State::Closed};
  std::atomic<std::uint32_t> incarnation_{0};
  int memory_file_ = -1;
  int program_pidfd_ = -1;
  int files_ = -1;  // the end of a socket pair that files to mirror go by
  int socket_ = -1;
  int death_pidfd_ = -1;
  os::Userfaultfd uffd_;
  mutable KernelRegistry kernels_;
  DeviceProcess process_;  // what the new process is told
  std::uint8_t mailbox_of_cpu_[1024] = {};

  char reason_[192] = {};
  std::uint32_t failed_slot_ = kSlots;
  std::uint32_t failed_generation_ = 0;

  std::atomic<std::uint64_t> link_free_ns_{0};
  std::array<RankedMutex<LockRank::DeviceChannel>, kMostMailboxes> mailbox_mutex_;
  mutable RankedMutex<LockRank::DeviceChannel> launch_mutex_;
  RankedMutex<LockRank::DeviceFiles> files_mutex_;  // a file and the request that it is for
  std::atomic<std::uint32_t> bounces_taken_{0};     // bit b

  // Attached windows; a lock of the caller (VaSpace) keeps attach and detach apart.
  std::pmr::vector<MappedWindow> windows_;
};

}  // namespace uhmm::soft
