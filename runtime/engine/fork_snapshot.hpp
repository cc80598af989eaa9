// SPDX-License-Identifier: Apache-2.0
// What a forked child has not got yet: pages that were on a device when the process was copied. The table is in memory
// that parent and child share; either of them serves the child's faults from it (SnapshotReader), the parent while the
// child gets ready, then the child itself, for as long as it lives. Contents come from the devices' memory files, as
// long as nothing there has changed; ahead of a change the parent keeps the page in a file of the snapshot's own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "runtime/base/page_mask.hpp"
#include "runtime/base/types.hpp"
#include "runtime/os/bare.hpp"

namespace uhmm::engine {

// A set of pages of one block that two processes change.
class SharedMask {
 public:
  PageMask load() const;
  void add(const PageMask& pages);
  // How many of them were members.
  std::uint32_t remove(const PageMask& pages);

 private:
  std::array<std::atomic<std::uint64_t>, PageMask::kWords> words_{};
};

class ForkSnapshot {
 public:
  struct Entry {
    std::uint64_t block = 0;   // address
    std::uint32_t device = 0;  // whose memory file has the pages, at their addresses
    SharedMask owed;           // the child has not got them yet
    SharedMask kept;           // of what was owed at first: the snapshot's own file has them
    SharedMask lost;           // and of these nobody has them any more
  };

  // Memory for so many entries and ranges; nullptr when there is none.
  static ForkSnapshot* make(std::uint32_t entries, std::uint32_t ranges);
  static void unmap(ForkSnapshot* snapshot);
  void set_inherited(bool inherited);

  // While it is made: blocks ascending.
  void add_range(ByteRange pages);
  void add_owed(VirtAddr block, DeviceIndex device, const PageMask& pages);

  std::uint32_t most_entries() const { return most_entries_; }
  std::span<Entry> entries() { return {entries_, entry_count_}; }
  std::span<const ByteRange> ranges() const { return {ranges_, range_count_}; }  // watched when the process was copied
  // Calls visit(Entry&) for what there is of a block: an entry for each device that had pages of it.
  template <typename Visit>
  void for_each_of(VirtAddr block, Visit&& visit);
  std::uint64_t left() const { return left_.load(); }  // pages that are owed
  // They are owed no more: delivered, or given up by the child.
  void settle(Entry& entry, const PageMask& pages) { left_.fetch_sub(entry.owed.remove(pages)); }
  void give_up(ByteRange pages);
  // Of what was given up before the call the child's own reader delivers nothing any more, nor does it follow a move
  // that had ended before the call. Not for readers.
  void wait_for_round() const;

 private:
  friend class SnapshotReader;
  std::size_t bytes_ = 0;
  Entry* entries_ = nullptr;  // the same address in both processes
  ByteRange* ranges_ = nullptr;
  std::uint32_t entry_count_ = 0;
  std::uint32_t most_entries_ = 0;
  std::uint32_t range_count_ = 0;
  std::atomic<std::uint64_t> left_{0};
  // Odd while the child's own reader is at work. The parent's is not counted: it may end in the middle.
  std::atomic<std::uint32_t> rounds_{0};
};

template <typename Visit>
void ForkSnapshot::for_each_of(VirtAddr block, Visit&& visit) {
  std::uint32_t low = 0;
  std::uint32_t high = entry_count_;
  while (low < high) {
    const std::uint32_t middle = (low + high) / 2;
    if (entries_[middle].block < block.value)
      low = middle + 1;
    else
      high = middle;
  }
  for (; low < entry_count_ && entries_[low].block == block.value; ++low) visit(entries_[low]);
}

// What is missing of the pages raises SIGBUS from now on, in the process that the userfaultfd is of. 0, EAGAIN or
// ENOMEM.
int poison_missing(int uffd, ByteRange pages);

// The files that contents come from, as descriptors of the process that reads. -1: none.
struct SnapshotFiles {
  int kept = -1;
  std::array<int, kMaxDevices> devices{-1, -1, -1, -1, -1, -1, -1, -1};
};

// Gives a child its pages through its userfaultfd, or without one (-1), in the child itself, into its memory. With a
// userfaultfd nothing here needs more than `bare` does.
class SnapshotReader {
 public:
  static constexpr std::size_t kBufferBytes = kBlockBytes;
  // `buffer`: kBufferBytes, of this reader alone. `settles`: what it delivers is owed no more. It is not by a reader
  // that can't tell whether its userfaultfd is the child's.
  SnapshotReader(ForkSnapshot& snapshot, const SnapshotFiles& files, int uffd, std::byte* buffer, bool settles)
      : snapshot_(snapshot), files_(files), uffd_(uffd), buffer_(buffer), settles_(settles) {}

  // Reads what there is to read from the child's userfaultfd and serves it. True: the child has touched `bell`.
  bool serve(VirtAddr bell = VirtAddr{});
  void deliver_all();
  // Of what is owed: into the pages of the child that begin `offset` bytes further on. 0, or EAGAIN and ENOMEM: some
  // are still owed.
  int deliver_some(ForkSnapshot::Entry& entry, const PageMask& among, std::int64_t offset);
  // Ranges of which nothing is owed are ordinary memory from now on.
  void release_ranges();
  // The child's memory is ordinary from now on. Everything has to be delivered before.
  void watch_no_more();

 private:
  struct Round;
  void serve_fault(const os::UffdFault& fault);
  struct News;
  void read_all(News& news);
  // The child has moved memory: what is owed of it is delivered where it went. 0, or EAGAIN: not all of it yet.
  int follow(const os::UffdMove& move);
  // The child has been copied itself, by a system call that nobody was told of: in that copy what is owed raises
  // SIGBUS.
  void poison_in(int uffd);
  int deliver(ForkSnapshot::Entry& entry, PageRun run, std::int64_t offset);
  // The same in the child itself and without its userfaultfd: that ended with the parent.
  void write(ForkSnapshot::Entry& entry, PageRun run, std::int64_t offset);
  // Contents of the run, as they were. Pages of which there is nothing any more are in *lost.
  void fetch(const ForkSnapshot::Entry& entry, PageRun run, PageMask* lost);
  std::uint32_t window_at(VirtAddr page);
  void release(ByteRange range);

  ForkSnapshot& snapshot_;
  const SnapshotFiles& files_;
  const int uffd_;
  std::byte* const buffer_;
  const bool settles_;
  VirtAddr walk_;  // where the last window ended
  std::uint32_t window_ = 0;
};

}  // namespace uhmm::engine
