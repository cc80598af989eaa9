// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_snapshot.hpp"

#include <algorithm>
#include <cerrno>
#include <new>

#include "runtime/os/memory.hpp"

namespace uhmm::engine {
namespace {

namespace bare = os::bare;

// A child's first fault somewhere brings so much; each that continues a walk doubles it.
constexpr std::uint32_t kFirstWindow = 16;

// What a range's pages are in a block.
PageMask part_of_block(ByteRange pages, VirtAddr block) {
  const ByteRange part = pages.intersect({block, block + kBlockBytes});
  if (part.empty()) return {};
  return PageMask::of({part.begin.page_in_block(), static_cast<std::uint32_t>(part.pages())});
}

// Calls step(offset, length) until all pages have been tried. A piece that reaches from one of the child's mappings
// into the next is refused as a whole, as if there were no memory: only what is said about a single page is believed. A
// page that is there already, or has no place any more, is passed over. EAGAIN (the child's memory map is changing) and
// ENOMEM end it, and are returned.
template <typename Step>
int push(std::uint64_t bytes, Step&& step) {
  std::uint64_t piece = bytes;
  for (std::uint64_t done = 0; done < bytes;) {
    piece = std::min(piece, bytes - done);
    const os::Progress progress = step(done, piece);
    done += progress.done;
    if (progress.error == 0) {
      piece = bytes;
    } else if (progress.error == EAGAIN || progress.error == ENOMEM) {
      return progress.error;
    } else if (progress.done == 0 && progress.error != EEXIST && piece > kPageBytes) {
      piece = (piece / 2 + kPageBytes - 1) & ~(kPageBytes - 1);
    } else if (progress.done == 0) {
      done += kPageBytes;
    }
  }
  return 0;
}

}  // namespace

int poison_missing(int uffd, ByteRange pages) {
  return push(pages.bytes(), [&](std::uint64_t done, std::uint64_t bytes) {
    return bare::poison(uffd, {pages.begin + done, pages.begin + done + bytes});
  });
}

PageMask SharedMask::load() const {
  PageMask mask;
  for (std::uint32_t i = 0; i < PageMask::kWords; ++i) mask.set_word(i, words_[i].load(std::memory_order_acquire));
  return mask;
}

void SharedMask::add(const PageMask& pages) {
  for (std::uint32_t i = 0; i < PageMask::kWords; ++i)
    if (pages.word(i) != 0) words_[i].fetch_or(pages.word(i));
}

std::uint32_t SharedMask::remove(const PageMask& pages) {
  std::uint32_t removed = 0;
  for (std::uint32_t i = 0; i < PageMask::kWords; ++i)
    if (const std::uint64_t bits = pages.word(i); bits != 0)
      removed += static_cast<std::uint32_t>(std::popcount(words_[i].fetch_and(~bits) & bits));
  return removed;
}

ForkSnapshot* ForkSnapshot::make(std::uint32_t entries, std::uint32_t ranges) {
  const std::size_t bytes = sizeof(ForkSnapshot) + std::size_t{entries} * sizeof(Entry) + ranges * sizeof(ByteRange);
  std::byte* memory = bare::map_shared(bytes);
  if (memory == nullptr) return nullptr;
  auto* snapshot = new (memory) ForkSnapshot;
  snapshot->bytes_ = bytes;
  snapshot->entries_ = reinterpret_cast<Entry*>(memory + sizeof(ForkSnapshot));
  snapshot->ranges_ = reinterpret_cast<ByteRange*>(snapshot->entries_ + entries);
  return snapshot;
}

void ForkSnapshot::unmap(ForkSnapshot* snapshot) {
  if (snapshot != nullptr) bare::unmap_pages(reinterpret_cast<std::byte*>(snapshot), snapshot->bytes_);
}

void ForkSnapshot::set_inherited(bool inherited) {
  bare::set_inherited(reinterpret_cast<std::byte*>(this), bytes_, inherited);
}

void ForkSnapshot::add_range(ByteRange pages) { new (&ranges_[range_count_++]) ByteRange(pages); }

void ForkSnapshot::add_owed(VirtAddr block, DeviceIndex device, const PageMask& pages) {
  Entry* entry = nullptr;
  for (std::uint32_t i = entry_count_; i > 0 && entries_[i - 1].block == block.value; --i)
    if (entries_[i - 1].device == device.value) entry = &entries_[i - 1];
  if (entry == nullptr) {
    entry = new (&entries_[entry_count_++]) Entry;
    entry->block = block.value;
    entry->device = device.value;
  }
  entry->owed.add(pages);
  left_.fetch_add(pages.count());
}

void ForkSnapshot::give_up(ByteRange pages) {
  for (Entry& entry : entries()) {
    const PageMask part = part_of_block(pages, VirtAddr{entry.block});
    if (part.any()) settle(entry, part);
  }
}

std::uint32_t SnapshotReader::window_at(VirtAddr page) {
  window_ = page == walk_ && window_ != 0 ? std::min(window_ * 2, kPagesPerBlock) : kFirstWindow;
  // Windows end where a larger page would.
  return std::min(window_, kPagesPerBlock - page.page_in_block());
}

bool SnapshotReader::serve(VirtAddr bell) {
  // Faults come out ahead of news, and while there is news that nobody has read no page can be given: so who faulted
  // sleeps until everything is read.
  constexpr std::size_t kMost = 128;
  os::UffdFault faults[kMost];
  std::size_t count = 0;
  bool rung = false;
  while (count < kMost) {
    const bare::Message message = bare::read_message(uffd_);
    if (message.kind == bare::Message::Kind::None) break;
    if (message.kind == bare::Message::Kind::Fork) {
      poison_in(message.fork_fd);
      bare::close(message.fork_fd);
    } else if (message.kind == bare::Message::Kind::Move) {
      follow(message.move);
    } else if (message.kind == bare::Message::Kind::Drop) {
      snapshot_.give_up(message.dropped);
    } else if (message.kind == bare::Message::Kind::Fault) {
      if (bell.value != 0 && message.fault.address == bell)
        rung = true;
      else
        faults[count++] = message.fault;
    }
  }
  for (std::size_t i = 0; i < count; ++i) serve_fault(faults[i]);
  return rung;
}

void SnapshotReader::serve_fault(const os::UffdFault& fault) {
  const VirtAddr page = fault.address;
  const VirtAddr block = page.block_floor();
  const ByteRange one{page, page + kPageBytes};
  if (fault.is_write_protect) {
    // The parent's protection of what it shares with a device: of no meaning here.
    if (bare::unprotect(uffd_, one) != 0) bare::wake(uffd_, one);
    return;
  }
  bool owed = false;
  const std::uint32_t first = page.page_in_block();
  snapshot_.for_each_of(block, [&](ForkSnapshot::Entry& entry) {
    if (owed || !entry.owed.load().test(first)) return;
    owed = true;
    const std::uint32_t count = window_at(page);
    deliver_entry(entry, PageMask::of({first, count}), 0);
    walk_ = page + std::uint64_t{count} * kPageBytes;
  });
  if (!owed) {
    const os::Progress progress = fault.is_minor ? bare::map_existing(uffd_, one) : bare::zero(uffd_, page, kPageBytes);
    if (progress.done != 0) return;
  }
  // Whoever was there first, or what there is no memory for: the access is tried again.
  bare::wake(uffd_, one);
}

void SnapshotReader::fetch(const ForkSnapshot::Entry& entry, PageRun run, PageMask* lost) {
  const auto from_file = [&](int file, PageRun part) {
    std::byte* to = buffer_ + std::size_t{part.first - run.first} * kPageBytes;
    if (!bare::read_at(file, to, part.bytes(), entry.block + part.offset())) lost->set(part);
  };
  const PageMask wanted = PageMask::of(run);
  PageMask kept;
  do {
    kept = entry.kept.load();
    lost->clear();
    (wanted & kept).for_each_run([&](PageRun part) { from_file(files_.kept, part); });
    wanted.minus(kept).for_each_run([&](PageRun part) { from_file(files_.devices[entry.device], part); });
    // What has been kept meanwhile may have been changed on the device before it was read there.
  } while ((entry.kept.load() & wanted) != (kept & wanted));
  *lost |= entry.lost.load() & wanted;
}

void SnapshotReader::deliver(ForkSnapshot::Entry& entry, PageRun run, std::int64_t offset) {
  PageMask lost;
  fetch(entry, run, &lost);
  const auto target = [&](PageRun part) {
    return VirtAddr{entry.block + part.offset() + static_cast<std::uint64_t>(offset)};
  };
  int error = 0;
  PageMask::of(run).minus(lost).for_each_run([&](PageRun part) {
    if (error != 0) return;
    const std::byte* from = buffer_ + std::size_t{part.first - run.first} * kPageBytes;
    const VirtAddr to = target(part);
    error = push(part.bytes(), [&](std::uint64_t done, std::uint64_t bytes) {
      return bare::copy(uffd_, to + done, from + done, bytes);
    });
  });
  lost.for_each_run([&](PageRun part) {
    if (error != 0) return;
    error = poison_missing(uffd_, {target(part), target(part) + part.bytes()});
  });
  if (error != 0) return;  // tried again at the next fault
  snapshot_.settle(entry, PageMask::of(run));
}

void SnapshotReader::deliver_entry(ForkSnapshot::Entry& entry, const PageMask& among, std::int64_t offset) {
  (entry.owed.load() & among).for_each_run([&](PageRun run) { deliver(entry, run, offset); });
}

void SnapshotReader::follow(const os::UffdMove& move) {
  const ByteRange from{move.from, move.from + move.bytes};
  const auto offset = static_cast<std::int64_t>(move.to.value - move.from.value);
  for (ForkSnapshot::Entry& entry : snapshot_.entries()) {
    const PageMask part = part_of_block(from, VirtAddr{entry.block});
    // Told again while the map is changing; nobody else would know where the pages went.
    while ((entry.owed.load() & part).any()) deliver_entry(entry, part, offset);
  }
}

void SnapshotReader::deliver_all() {
  for (ForkSnapshot::Entry& entry : snapshot_.entries()) deliver_entry(entry, PageMask::all(), 0);
}

void SnapshotReader::release(ByteRange range) {
  if (bare::unregister(uffd_, range) == 0) return;
  // Of several mappings, some of which are gone or of another kind by now.
  for (VirtAddr page = range.begin; page < range.end; page = page + kPageBytes)
    (void)bare::unregister(uffd_, {page, page + kPageBytes});
}

void SnapshotReader::release_ranges() {
  for (const ByteRange& range : snapshot_.ranges()) {
    bool owed = false;
    for (VirtAddr block = range.begin.block_floor(); block < range.end && !owed; block = block + kBlockBytes)
      snapshot_.for_each_of(block, [&](const ForkSnapshot::Entry& entry) {
        owed = owed || entry.owed.load().intersects(part_of_block(range, block));
      });
    if (!owed) release(range);
  }
}

void SnapshotReader::watch_no_more() {
  for (const ByteRange& range : snapshot_.ranges()) release(range);
}

void SnapshotReader::write_all() {
  for (ForkSnapshot::Entry& entry : snapshot_.entries())
    entry.owed.load().for_each_run([&](PageRun run) {
      PageMask lost;
      fetch(entry, run, &lost);
      PageMask::of(run).minus(lost).for_each_run([&](PageRun part) {
        const std::byte* from = buffer_ + std::size_t{part.first - run.first} * kPageBytes;
        (void)bare::write_own_memory(VirtAddr{entry.block + part.offset()}, from, part.bytes());
      });
      lost.for_each_run([&](PageRun part) {
        const VirtAddr begin{entry.block + part.offset()};
        (void)os::map_bus_error({begin, begin + part.bytes()});
      });
      snapshot_.settle(entry, PageMask::of(run));
    });
}

void SnapshotReader::poison_in(int uffd) {
  for (ForkSnapshot::Entry& entry : snapshot_.entries())
    entry.owed.load().for_each_run([&](PageRun run) {
      const VirtAddr to{entry.block + run.offset()};
      (void)poison_missing(uffd, {to, to + run.bytes()});
    });
}

}  // namespace uhmm::engine
