// SPDX-License-Identifier: Apache-2.0
// Recycled pages. UFFDIO_MOVE takes a page out of the program's range into a staging slot, and a filled slot's page is
// what a later migration back moves in: no page is allocated or zeroed twice. A slot mirrors a block: page i of a block
// is always staged at page i of a slot, so a run moves in one call.
//
// Slots are registered with userfaultfd (the destination of a move must be). So only `filled` pages may be touched:
// touching another one is a fault that is served with an error.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "runtime/base/lock.hpp"
#include "runtime/base/page_mask.hpp"
#include "runtime/base/status.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::engine {

class Staging {
 public:
  struct Slot {
    std::byte* memory = nullptr;  // kBlockBytes
    PageMask filled;              // pages that are populated, contents meaningless
    bool in_use = false;
  };

  Staging();
  // Room for `bytes` of recycled pages and `users` slots in use at once.
  Status open(const os::Userfaultfd& uffd, std::uint64_t bytes, std::uint32_t users);
  void close();

  // A slot none of whose `pages` is filled (to move pages out into). nullptr: all slots are in use.
  Slot* acquire_empty(const PageMask& pages);
  // The slot with the most of `pages` filled (to move pages in from). nullptr: no slot has any.
  Slot* acquire_filled(const PageMask& pages);
  // Give a slot back; its `filled` must be right. Pages beyond the limit are freed, and so are others when the machine
  // or the control group runs short: recycled pages are worth less than the program's own.
  void release(Slot* slot);

  // Any thread. mlockall() touches everything: the kernel goes on elsewhere where it meets an error. Wakes.
  bool refuse_fault(const os::Userfaultfd& uffd, VirtAddr address) const;

  std::uint64_t bytes_held() const { return held_pages_.load(std::memory_order_relaxed) << kPageShift; }

 private:
  void free_pages(Slot& slot);
  std::uint64_t limit_now();
  // Slots in the order of a scan: from where something was found last.
  Slot& from(std::size_t start, std::size_t i) {
    const std::size_t at = start + i;
    return slots_[at < slots_.size() ? at : at - slots_.size()];
  }

  mutable RankedMutex<LockRank::Staging> mutex_;
  std::pmr::vector<Slot> slots_;
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
