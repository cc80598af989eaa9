// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory_resource>

#include "backends/vmm/adoption.hpp"
#include "backends/vmm/copy_lanes.hpp"
#include "backends/vmm/vmm_device.hpp"
#include "runtime/base/lock.hpp"
#include "runtime/base/page_mask.hpp"

namespace uhmm::vmm {

class VmmDevice final : public backend::Device {
 public:
  explicit VmmDevice(const Options& options);
  VmmDevice(const VmmDevice&) = delete;
  VmmDevice& operator=(const VmmDevice&) = delete;
  ~VmmDevice() override;

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
  void do_wake(ByteRange pages) override;
  Result<backend::Ticket> do_launch(const backend::Launch& launch) override;
  bool do_finished(backend::Ticket ticket) const override;
  Status do_wait(backend::Ticket ticket) override;
  bool do_busy() const override;
  Status do_check_kernel(uhmm_kernel kernel) const override;
  Status do_access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) override;
  int do_fault_fd() const override;
  std::size_t do_read_faults(std::span<backend::DeviceFault> faults) override;
  int do_death_fd() const override;
  void do_handle_death(std::span<char> reason) override;
  bool do_lost() const override;
  void do_abandon_after_fork() override;

 private:
  using Mutex = RankedMutex<LockRank::DeviceChannel>;
  // Addresses that were reserved in one call and are given back in one.
  struct Reservation {
    std::uint64_t begin = 0;
    std::uint64_t bytes = 0;
    std::uint32_t blocks_used = 0;
  };
  struct Block {
    Reservation* reservation = nullptr;
    std::uint32_t windows = 0;  // that touch it
    Chunk chunk = 0;            // its physical memory, mapped as a whole; 0: none
    Place place = Place::Device;
    PageMask used;  // pages with memory, as the engine counts it
  };
  using Blocks = std::pmr::map<std::uint64_t, Block>;
  using Reservations = std::pmr::map<std::uint64_t, Reservation>;

  // One launch at a time; used again by later ones, which have other generations.
  struct Slot {
    Stream stream = nullptr;
    Event done = nullptr;
    std::uint32_t generation = 0;
    bool reserved = false;  // by somebody who launches
    bool running = false;
    Status outcome;  // of the last one that has ended
  };
  static constexpr std::size_t kSlots = 32;

  // Every entry from outside begins with it: open, and the calling thread's driver calls are about this device.
  Status begin() const;
  // What a driver call said; remembers when it was that the device is lost.
  Status seen(Status status) const;
  void lose(const char* why) const;
  Status lost_status() const;
  Status prepare();
  void drop_everything(bool broken);

  // Under mutex_.
  Status reserve_blocks(std::uint64_t begin, std::uint64_t end);
  void release_window(std::uint64_t begin, std::uint64_t end);
  void release_chunk(std::uint64_t base, Block& block);
  Status give_chunk(std::uint64_t base, Block& block);

  // The pages' block has memory from now on, and these pages are used.
  Status back(ByteRange pages);
  template <typename Visit>
  static Status for_each_block(ByteRange pages, Visit&& visit);
  // Waits until no launch runs.
  Status drain() const;
  bool look_at(Slot& slot) const;
  Status take_slot(std::size_t* index);

  const Options options_;
  backend::Capabilities capabilities_;
  Facts facts_;
  Driver* driver_ = nullptr;
  bool can_adopt_ = false;
  std::atomic<bool> open_{false};
  std::atomic<bool> abandoned_{false};

  mutable Mutex mutex_;  // blocks, chunks and slots
  Reservations reservations_;
  Blocks blocks_;
  std::uint64_t device_bytes_ = 0;
  std::uint64_t spilled_bytes_ = 0;
  std::uint64_t memory_bytes_ = 0;  // the most of each
  std::uint64_t spill_bytes_ = 0;

  CopyLanes lanes_;
  mutable std::array<Slot, kSlots> slots_;
  std::uint32_t incarnation_ = 0;

  int death_fd_ = -1;
  mutable std::atomic<bool> lost_{false};
  mutable std::atomic<bool> reason_taken_{false};
  mutable std::atomic<bool> reason_ready_{false};
  mutable char reason_[192] = {};
};

}  // namespace uhmm::vmm
