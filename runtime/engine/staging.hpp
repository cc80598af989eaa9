// SPDX-License-Identifier: Apache-2.0
// Recycled pages. UFFDIO_MOVE takes a page out of the program's range into a staging slot, and a filled slot's page is
// what a later migration back moves in: no page is allocated or zeroed twice. A slot mirrors a block: page i of a block
// is always staged at page i of a slot, so a run moves in one call.
//
// Slots are registered with userfaultfd (the destination of a move must be). So only `filled` pages may be touched:
// touching another one is a fault that is served with an error.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "runtime/base/lock.hpp"
#include "runtime/base/page_mask.hpp"
#include "runtime/base/status.hpp"
#include "runtime/os/memory.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::engine {

class Staging {
 public:
  struct Slot {
    std::byte* memory = nullptr;  // kBlockBytes
    PageMask filled;              // pages that are populated, contents meaningless
    bool in_use = false;
    bool huge = false;    // filled with one huge page
    bool small = false;   // its page table has had entries of single pages: no huge page moves in as one
    bool source = false;  // huge pages only move out of it
  };

  Staging();
  // Room for `bytes` of recycled pages and `users` slots in use at once.
  Status open(const os::Userfaultfd& uffd, std::uint64_t bytes, std::uint32_t users);
  void close();

  // A slot none of whose `pages` is filled (to move pages out into). nullptr: all slots are in use.
  Slot* acquire_empty(const PageMask& pages);
  // The slot with the most of `pages` filled (to move pages in from). nullptr: no slot has any.
  Slot* acquire_filled(const PageMask& pages);
  // The same for whole blocks that are one huge page: a slot into which, and one from which, it moves in one operation.
  // nullptr: none can be had now, single pages go on.
  Slot* acquire_for_huge();
  Slot* acquire_huge(const os::ProcessMemory& process);
  // Give a slot back; its `filled` must be right. Pages beyond the limit are freed, and so are others when the machine
  // or the control group runs short: recycled pages are worth less than the program's own.
  void release(Slot* slot);

  // Any thread. mlockall() touches everything: the kernel goes on elsewhere where it meets an error. Wakes.
  bool refuse_fault(const os::Userfaultfd& uffd, VirtAddr address) const;

  std::uint64_t bytes_held() const { return held_pages_.load(std::memory_order_relaxed) << kPageShift; }

 private:
  void free_pages(Slot& slot);
  bool renew(Slot& slot) const;
  std::uint64_t limit_now();
  // Slots in the order of a scan: from where something was found last.
  Slot& from(std::size_t start, std::size_t i) {
    const std::size_t at = start + i;
    return slots_[at < slots_.size() ? at : at - slots_.size()];
  }

  mutable RankedMutex<LockRank::Staging> mutex_;
  const os::Userfaultfd* uffd_ = nullptr;
  std::pmr::vector<Slot> slots_;
  static constexpr std::size_t kSources = 4;
  std::array<Slot, kSources> sources_;  // not watched, so that a touch gives them a huge page
  std::byte* source_memory_ = nullptr;
  std::byte* memory_ = nullptr;
  std::size_t memory_bytes_ = 0;
  std::uint64_t limit_pages_ = 0;
  std::size_t next_filled_ = 0;
  std::size_t next_empty_ = 0;
  std::atomic<std::uint64_t> looked_ns_{0};  // when system memory was looked at last
  std::atomic<bool> short_of_memory_{false};
  std::atomic<std::uint64_t> held_pages_{0};  // filled pages of slots not in use
};

}  // namespace uhmm::engine
