// SPDX-License-Identifier: Apache-2.0
// One open of a mirror device: the device's page table of the opener's memory, and the commands on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "preload/dmirror/memory_view.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::dmirror {

// struct hmm_dmirror_cmd.
struct Command {
  std::uint64_t addr;    // in: of the program's memory
  std::uint64_t ptr;     // in: where data comes from or goes
  std::uint64_t npages;  // in
  std::uint64_t cpages;  // out: pages copied
  std::uint64_t faults;  // out: device faults

  ByteRange pages() const { return {VirtAddr{addr}, VirtAddr{addr + (npages << kPageShift)}}; }
};
static_assert(sizeof(Command) == 40);

enum class Number : std::uint32_t {
  Read = 0,
  Write,
  MigrateToDevice,
  MigrateToSystem,
  Snapshot,
  Exclusive,
  CheckExclusive,
  Release,
  Flags,         // 6.19 and later
  ReadUnlocked,  // later still: as Read, of memory whose faults the program itself may have to serve
  kCount
};
// Does the command bring data with it, or give some back: how many bytes?
std::size_t bytes_in(Number number, const Command& command);
std::size_t bytes_out(Number number, const Command& command);

// Does it work on the command's pages one after the other? Then at most so many at a time: the data is 64 MiB.
bool goes_by_pages(Number number);
inline constexpr std::uint64_t kMostPagesAtOnce = std::uint64_t{1} << 14;

class Mirror {
 public:
  explicit Mirror(uhmm_processor device, bool coherent) : device_(device), coherent_(coherent) {}

  // `data` has the larger of bytes_in() and bytes_out(). 0 or an errno; then only part of what a command does may have
  // been done, as in the kernel. The command's arguments have been checked.
  int run(Number number, Command& command, std::byte* data);
  // Everything of the device's memory comes home.
  void evict() const;

 private:
  int read(Command& command, std::byte* data, bool manage);
  int write(Command& command, const std::byte* data);
  int migrate_to_device(Command& command, std::byte* data);
  int migrate_to_system(Command& command);
  int snapshot(Command& command, std::byte* data);
  int exclusive(Command& command, std::byte* data);
  int check_exclusive(const Command& command);
  static int set_flags(const Command& command);

  bool is_here(const uhmm_page_info& page) const { return (page.devices & (1u << (device_ - 1))) != 0; }
  // Pages that the device reaches without a fault; of memory that is accessed in place, those it has reached before.
  Vector<bool> reached(const Vector<Piece>& pieces, bool write);
  void reach(const Piece& piece, bool write);
  int access(const Piece& piece, std::byte* data, bool write);
  std::uint8_t describe(const Piece& piece, const uhmm_page_info& state) const;

  const uhmm_processor device_;
  const bool coherent_;
  std::mutex mutex_;
  std::uint64_t generation_ = 0;           // of the memory map when `in_place_` was learned
  HashMap<std::uint64_t, bool> in_place_;  // page numbers; may it be written?
};

}  // namespace uhmm::preload::dmirror
