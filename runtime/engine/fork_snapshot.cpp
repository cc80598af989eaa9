// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_snapshot.hpp"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <new>

#include "runtime/os/memory.hpp"
#include "runtime/os/page_details.hpp"

namespace uhmm::engine {
namespace {

namespace bare = os::bare;

// A child's first fault somewhere brings so much; each that continues a walk doubles it.
constexpr std::uint32_t kFirstWindow = 16;

constexpr int kMostTries = 5000;  // milliseconds

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
  snapshot->most_entries_ = entries;
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

void ForkSnapshot::wait_for_round() const {
  const std::uint32_t round = rounds_.load();
  while (round % 2 != 0 && rounds_.load() == round) sched_yield();
}

struct SnapshotReader::Round {
  explicit Round(SnapshotReader& reader) : rounds(reader.settles_ ? &reader.snapshot_.rounds_ : nullptr) {
    if (rounds != nullptr) rounds->fetch_add(1);
  }
  Round(const Round&) = delete;
  Round& operator=(const Round&) = delete;
  ~Round() {
    if (rounds != nullptr) rounds->fetch_add(1);
  }
  std::atomic<std::uint32_t>* const rounds;
};

std::uint32_t SnapshotReader::window_at(VirtAddr page) {
  window_ = page == walk_ && window_ != 0 ? std::min(window_ * 2, kPagesPerBlock) : kFirstWindow;
  // Windows end where a larger page would.
  return std::min(window_, kPagesPerBlock - page.page_in_block());
}

// What was read and is not done yet. While a change of the map is unread no page can be given, and faults come out
// ahead of changes: so who faulted sleeps until everything is read, and changes are followed in their order.
struct SnapshotReader::News {
  static constexpr std::size_t kMostFaults = 128;
  static constexpr std::size_t kMostChanges = 64;
  struct Change {
    os::UffdMove move;
    bool is_drop = false;
  };
  VirtAddr bell;
  bool rung = false;
  bool more_faults = false;  // than there is room for: they sleep until all are woken
  std::size_t fault_count = 0;
  std::size_t change_count = 0;
  os::UffdFault faults[kMostFaults];
  Change changes[kMostChanges];
};

void SnapshotReader::read_all(News& news) {
  while (news.change_count < News::kMostChanges) {
    const bare::Message message = bare::read_message(uffd_);
    switch (message.kind) {
      case bare::Message::Kind::None: return;
      case bare::Message::Kind::Fork:
        poison_in(message.fork_fd);
        bare::close(message.fork_fd);
        break;
      case bare::Message::Kind::Move: news.changes[news.change_count++] = {message.move, false}; break;
      case bare::Message::Kind::Drop:
        news.changes[news.change_count++] = {{message.dropped.begin, {}, message.dropped.bytes()}, true};
        break;
      case bare::Message::Kind::Fault:
        if (news.bell.value != 0 && message.fault.address == news.bell)
          news.rung = true;
        else if (news.fault_count < News::kMostFaults)
          news.faults[news.fault_count++] = message.fault;
        else
          news.more_faults = true;
        break;
      case bare::Message::Kind::Other: break;
    }
  }
}

bool SnapshotReader::serve(VirtAddr bell) {
  // Who moves memory goes on when it is read, and may drop it before it is followed.
  const Round round(*this);
  News news;
  news.bell = bell;
  read_all(news);
  for (std::size_t i = 0; i < news.change_count;) {
    const News::Change& change = news.changes[i];
    if (change.is_drop) {
      if (settles_) snapshot_.give_up({change.move.from, change.move.from + change.move.bytes});
      ++i;
    } else if (follow(change.move) == EAGAIN) {
      read_all(news);  // of the change that is in the way
    } else {
      const ByteRange target{change.move.to, change.move.to + change.move.bytes};
      if (news.more_faults) bare::wake(uffd_, target);
      ++i;
    }
  }
  for (std::size_t i = 0; i < news.fault_count; ++i) serve_fault(news.faults[i]);
  if (news.more_faults)
    for (const ByteRange& range : snapshot_.ranges()) bare::wake(uffd_, range);
  return news.rung;
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
    // The child knows better what it is still owed.
    const std::uint32_t count = settles_ ? window_at(page) : 1;
    (void)deliver_some(entry, PageMask::of({first, count}), 0);
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

int SnapshotReader::deliver(ForkSnapshot::Entry& entry, PageRun run, std::int64_t offset) {
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
  if (error == 0 && settles_) snapshot_.settle(entry, PageMask::of(run));
  return error;
}

int SnapshotReader::deliver_some(ForkSnapshot::Entry& entry, const PageMask& among, std::int64_t offset) {
  int error = 0;
  (entry.owed.load() & among).for_each_run([&](PageRun run) {
    if (uffd_ < 0)
      write(entry, run, offset);
    else if (error == 0)
      error = deliver(entry, run, offset);
  });
  return error;
}

int SnapshotReader::follow(const os::UffdMove& move) {
  const ByteRange from{move.from, move.from + move.bytes};
  const auto offset = static_cast<std::int64_t>(move.to.value - move.from.value);
  // What was owed at the target is not there any more.
  if (settles_) snapshot_.give_up({move.to, move.to + move.bytes});
  for (ForkSnapshot::Entry& entry : snapshot_.entries()) {
    const PageMask part = part_of_block(from, VirtAddr{entry.block});
    int error = 0;
    do error = deliver_some(entry, part, offset);
    while (error == ENOMEM);  // nobody else would know where the pages went
    if (error != 0) return error;
  }
  return 0;
}

void SnapshotReader::deliver_all() {
  const Round round(*this);
  for (ForkSnapshot::Entry& entry : snapshot_.entries()) (void)deliver_some(entry, PageMask::all(), 0);
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

void SnapshotReader::write(ForkSnapshot::Entry& entry, PageRun run, std::int64_t offset) {
  PageMask lost;
  fetch(entry, run, &lost);
  const auto target = [&](PageRun part) {
    return VirtAddr{entry.block + part.offset() + static_cast<std::uint64_t>(offset)};
  };
  // What had come home by the time of the copy may have been changed since it was written down.
  std::array<os::PageDetails, kPagesPerBlock> details{};
  (void)os::page_details(target(run), std::span(details).first(run.count));
  PageMask missing;
  for (std::uint32_t i = 0; i < run.count; ++i)
    if (!details[i].swapped && (!details[i].present || details[i].zero)) missing.set(run.first + i);
  (missing.minus(lost)).for_each_run([&](PageRun part) {
    const std::byte* from = buffer_ + std::size_t{part.first - run.first} * kPageBytes;
    const VirtAddr to = target(part);
    // It may be watched for a moment longer than the parent lives. What can't be written is not there, or is lost.
    constexpr timespec kMoment{0, 1'000'000};
    for (int tries = 0; !bare::write_own_memory(to, from, part.bytes()); ++tries) {
      if (tries == kMostTries || !bare::is_mapped(to)) {
        lost.set(part);
        break;
      }
      (void)nanosleep(&kMoment, nullptr);
    }
  });
  (lost & missing).for_each_run([&](PageRun part) {
    const VirtAddr begin = target(part);
    if (bare::is_mapped(begin)) (void)os::map_bus_error({begin, begin + part.bytes()});
  });
  snapshot_.settle(entry, PageMask::of(run));
}

void SnapshotReader::poison_in(int uffd) {
  for (ForkSnapshot::Entry& entry : snapshot_.entries())
    entry.owed.load().for_each_run([&](PageRun run) {
      const VirtAddr to{entry.block + run.offset()};
      (void)poison_missing(uffd, {to, to + run.bytes()});
    });
}

}  // namespace uhmm::engine
