// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/tier.hpp"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "runtime/os/thread.hpp"

namespace uhmm::preload::heap {
namespace {

constexpr std::uint64_t kPieceBytes = 16 * kPageBytes;
// What is warm is noticed as long as it is looked for so often.
constexpr std::uint64_t kLookAtLeastEvery = 50'000'000;
// Devices keep that much free: filling one up makes it send back what it has.
constexpr std::uint64_t kDeviceReserve = 2 * kBlockBytes;

constinit std::atomic<std::uint64_t> most{0};

// Calls visit(block, run of its pages) for each piece of a block that the ranges cover, from `first` on and then round.
template <typename Visit>
void for_each_block(const Vector<ByteRange>& parts, VirtAddr first, Visit&& visit) {
  for (const bool behind : {false, true}) {
    for (const ByteRange& part : parts) {
      for (VirtAddr at = part.begin; at < part.end;) {
        const VirtAddr block = at.block_floor();
        const VirtAddr end = std::min(part.end, block + kBlockBytes);
        const PageRun run{at.page_in_block(), static_cast<std::uint32_t>((end - at) >> kPageShift)};
        at = end;
        if ((block < first) == behind && !visit(block, run)) return;
      }
    }
  }
}

PageMask piece_mask(std::uint32_t piece) { return PageMask::of({piece * 16, 16}); }

}  // namespace

std::uint64_t most_resident() { return most.load(); }

Status Tier::open(std::uint64_t limit, bool quiet) {
  limit_ = limit;
  quiet_ = quiet;
  if (const int error = own_.open(); error != 0) return fail_errno("/proc/self/statm", error);
  return process_.open();
}

// Counts what is in system memory, and learns what has come back.
std::uint64_t Tier::look() {
  private_ = own_.private_bytes();
  looked_ = os::now_ns();
  live_.look_again();
  std::uint64_t pages = 0;
  for_each_block(live_.parts(), VirtAddr{}, [&](VirtAddr block, PageRun run) {
    const Result<PageMask> backed = process_.backed(block, run);
    if (!backed.ok()) return true;
    const PageMask& here = backed.value();
    pages += here.count();
    const auto known = blocks_.find(block.value >> kBlockShift);
    if (known == blocks_.end()) return true;
    BlockPieces& pieces = known->second;
    for (std::uint32_t piece = 0; piece < kPieces; ++piece) {
      const std::uint32_t bit = std::uint32_t{1} << piece;
      if ((pieces.away & bit) == 0 || !here.intersects(piece_mask(piece))) continue;
      pieces.away &= ~bit;
      pieces.warmth[piece].came_back();
    }
    return true;
  });
  uhmm_stats stats = UHMM_STATS_INIT;
  (void)uhmm_get_stats(&stats);
  resident_ = (pages << kPageShift) + stats.staging_bytes;
  most.store(std::max(most.load(), resident_));
  return resident_;
}

// The emptiest device. False: all are full.
bool Tier::choose_device() {
  std::array<uhmm_processor, UHMM_MAX_DEVICES> ids{};
  std::uint32_t count = 0;
  device_free_ = 0;
  if (uhmm_device_list(ids.data(), UHMM_MAX_DEVICES, &count) != UHMM_OK) return false;
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(count, UHMM_MAX_DEVICES); ++i) {
    uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
    if (uhmm_device_get_info(ids[i], &info) != UHMM_OK || (info.flags & UHMM_DEVICE_IS_LOST) != 0) continue;
    const std::uint64_t free = info.memory_free - std::min(info.memory_free, kDeviceReserve);
    if (free <= device_free_) continue;
    device_free_ = free;
    device_ = ids[i];
  }
  return device_free_ >= kPieceBytes;
}

std::uint64_t Tier::send_block(VirtAddr block, PageRun run, std::uint64_t bytes) {
  const Result<PageMask> backed = process_.backed(block, run);
  if (!backed.ok() || backed.value().none()) return 0;
  BlockPieces& pieces = blocks_[block.value >> kBlockShift];
  PageMask chosen;
  std::uint64_t wanted = 0;
  for (std::uint32_t piece = 0; piece < kPieces; ++piece) {
    const PageMask here = backed.value() & piece_mask(piece);
    if (here.none() || !pieces.warmth[piece].passed()) continue;
    if (wanted >= bytes || wanted + kPieceBytes > device_free_) break;
    chosen |= here;
    wanted += std::uint64_t{here.count()} << kPageShift;
    pieces.away |= std::uint32_t{1} << piece;
  }
  std::uint64_t sent = 0;
  chosen.for_each_run([&](PageRun pages) {
    uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
    const VirtAddr begin = block + std::size_t{pages.first} * kPageBytes;
    if (uhmm_migrate(begin.pointer(), std::size_t{pages.count} * kPageBytes, device_, &result) == UHMM_OK)
      sent += result.pages_moved << kPageShift;
  });
  device_free_ -= std::min(device_free_, sent);
  return sent;
}

// Returns how many bytes went.
std::uint64_t Tier::send_away(std::uint64_t bytes) {
  std::uint64_t sent = 0;
  // By the last round everything has cooled down, however hot it was.
  for (int round = 0; round <= policy::Warmth::kHottest && sent < bytes; ++round) {
    bool full = false;
    for_each_block(live_.parts(), hand_, [&](VirtAddr block, PageRun run) {
      if (device_free_ < kPieceBytes && !choose_device()) {
        full = true;
        return false;
      }
      sent += send_block(block, run, bytes - sent);
      hand_ = sent < bytes ? block + kBlockBytes : block;
      return sent < bytes;
    });
    if (full) break;
  }
  return sent;
}

void Tier::warn() {
  if (warned_ || quiet_) return;
  warned_ = true;
  char text[256];
  const int length = snprintf(text, sizeof(text),
                              "uhmm: %lu KiB are in system memory, more than --host-limit says (%lu KiB): the devices "
                              "have no room for more, or the kernel holds the pages\n",
                              resident_ >> 10, limit_ >> 10);
  (void)!write(STDERR_FILENO, text, static_cast<std::size_t>(std::max(length, 0)));
}

std::uint64_t Tier::step() {
  const std::uint64_t now = os::now_ns();
  const std::uint64_t grown = own_.private_bytes();
  const std::uint64_t estimate = resident_ + (grown > private_ ? grown - private_ : 0);
  const std::uint64_t due = looked_ + kLookAtLeastEvery;
  if (policy::surplus(estimate, limit_) == 0 && (now < due || estimate < limit_ / 2))
    return policy::look_again(estimate, limit_);
  const std::uint64_t surplus = policy::surplus(look(), limit_);
  if (surplus != 0) {
    (void)choose_device();
    const std::uint64_t sent = send_away(surplus);
    resident_ -= std::min(resident_, sent);
    private_ = own_.private_bytes();
    // A fork, or a page under I/O, is over soon; a full device is not.
    if (resident_ > limit_ + limit_ / 4 && sent == 0 && device_free_ < kPieceBytes) warn();
  }
  return policy::look_again(resident_, limit_);
}

}  // namespace uhmm::preload::heap
