// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/areas.hpp"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "runtime/engine/fork_heir.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::heap {
namespace {

constexpr std::uint64_t kFirstArea = std::uint64_t{64} << 20;
constexpr std::uint64_t kLargestArea = std::uint64_t{1} << 30;
constexpr std::uint32_t kMostAreas = 4096;

constinit std::array<Area, kMostAreas> areas;
constinit std::atomic<std::uint32_t> claimed{0};
constinit std::atomic<Area*> newest{nullptr};
constinit std::atomic<std::uint64_t> mapped{0};
constinit std::atomic<std::uint64_t> taken{0};
constinit std::atomic<std::uint64_t> limit{0};
constinit std::atomic<std::uint64_t> refused{0};
constinit std::atomic<bool> silent{false};
constinit std::atomic<std::uint32_t> new_areas{0};

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

// Past our own interposers, which would look the pages up among what is managed.
void* map_raw(std::uint64_t bytes) {
  const long got =
      syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0L);
  return got == -1 ? nullptr : reinterpret_cast<void*>(got);
}
void unmap_raw(std::uint64_t begin, std::uint64_t bytes) {
  if (bytes != 0) (void)syscall(SYS_munmap, begin, bytes);
}

// Blocks are the unit of everything that happens to an area: it begins with one. 0: no address space.
std::uint64_t map_area(std::uint64_t bytes) {
  void* memory = map_raw(bytes + kBlockBytes);
  if (memory == nullptr) return 0;
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  const std::uint64_t begin = round_up(address, kBlockBytes);
  unmap_raw(address, begin - address);
  unmap_raw(begin + bytes, address + kBlockBytes - begin);
  return begin;
}

// A new area with `bytes` of it handed out already; nullptr when there is no memory.
Area* make_area(std::uint64_t bytes) {
  const std::uint64_t least = round_up(bytes, kBlockBytes);
  // Larger as there are more, so that they stay few.
  std::uint64_t wanted = std::max(least, std::clamp(mapped.load(), kFirstArea, kLargestArea));
  std::uint64_t begin = map_area(wanted);
  if (begin == 0 && wanted != least) begin = map_area(wanted = least);
  if (begin == 0) return nullptr;
  const std::uint32_t number = claimed.fetch_add(1);
  if (number >= kMostAreas) {
    claimed.fetch_sub(1);
    unmap_raw(begin, wanted);
    return nullptr;
  }
  Area& fresh = areas[number];
  fresh.end = begin + wanted;
  fresh.used.store(bytes);
  fresh.begin.store(begin, std::memory_order_release);
  mapped.fetch_add(wanted);
  new_areas.fetch_add(1);
  new_areas.notify_all();
  return &fresh;
}

// Part of an area that has room; 0: it has not.
std::uint64_t take_from(Area& area, std::uint64_t bytes, std::uint64_t alignment) {
  const std::uint64_t begin = area.begin.load(std::memory_order_acquire);
  std::uint64_t used = area.used.load();
  for (;;) {
    const std::uint64_t start = round_up(begin + used, alignment);
    if (start + bytes > area.end || start + bytes < start) return 0;
    if (area.used.compare_exchange_weak(used, start + bytes - begin)) return start;
  }
}

void refuse(std::uint64_t bytes) {
  if (refused.fetch_add(1) != 0 || silent.load()) return;
  char text[256];
  const int length =
      snprintf(text, sizeof(text),
               "uhmm: no memory for %lu KiB: %lu KiB are in use, and system memory and devices may hold %lu KiB in "
               "all (--host-limit, --device-memory); the allocation fails\n",
               bytes >> 10, taken.load() >> 10, limit.load() >> 10);
  (void)!write(STDERR_FILENO, text, static_cast<std::size_t>(std::max(length, 0)));
}

Area* find(const void* address) {
  const auto at = reinterpret_cast<std::uint64_t>(address);
  const std::uint32_t count = area_count();
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint64_t begin = areas[i].begin.load(std::memory_order_acquire);
    if (begin != 0 && at >= begin && at < areas[i].end) return &areas[i];
  }
  return nullptr;
}

bool drop_raw(void* address, std::uint64_t bytes) {
  // A forked child that is served from devices finds zeros there, not what was there at the fork.
  engine::give_up_inheritance({VirtAddr{address}, VirtAddr{address} + bytes});
  return syscall(SYS_madvise, address, bytes, MADV_DONTNEED) == 0;
}

}  // namespace

ByteRange Area::live() const {
  const VirtAddr first{begin.load(std::memory_order_acquire)};
  return {first, (first + used.load()).page_ceil()};
}

void* take(std::uint64_t bytes, std::uint64_t alignment) {
  const std::uint64_t most = limit.load();
  if (taken.fetch_add(bytes) + bytes > most && most != 0) {
    taken.fetch_sub(bytes);
    refuse(bytes);
    return nullptr;
  }
  std::uint64_t start = 0;
  if (Area* area = newest.load(std::memory_order_acquire)) start = take_from(*area, bytes, alignment);
  if (start == 0 && alignment <= kBlockBytes) {
    if (Area* fresh = make_area(bytes)) {
      newest.store(fresh, std::memory_order_release);
      start = fresh->begin.load();
    }
  } else if (start == 0 && bytes <= ~std::uint64_t{0} - alignment) {
    // Alignment beyond a block's is rare: an area for it alone.
    if (Area* fresh = make_area(bytes + alignment)) start = round_up(fresh->begin.load(), alignment);
  }
  if (start == 0) taken.fetch_sub(bytes);
  return reinterpret_cast<void*>(start);
}

bool drop(void* address, std::uint64_t bytes) {
  Area* area = find(address);
  if (area == nullptr) return drop_raw(address, bytes);
  for (;;) {
    area->droppers.fetch_add(1);
    if (area->state.load() == AreaState::Plain) {
      const bool dropped = drop_raw(address, bytes);
      area->droppers.fetch_sub(1);
      return dropped;
    }
    area->droppers.fetch_sub(1);
    if (area->state.load() == AreaState::Registered) break;
    sched_yield();
  }
  switch (uhmm_discard(address, bytes)) {
    case UHMM_OK: return true;
    // The runtime has ended: all of it is home.
    case UHMM_ERR_NOT_INITIALIZED:
    case UHMM_ERR_NOT_REGISTERED:
    case UHMM_ERR_FORKED: return drop_raw(address, bytes);
    default: return false;
  }
}

bool same_area(const void* first, const void* second) {
  const Area* area = find(first);
  return area != nullptr && area == find(second);
}

std::uint32_t area_count() { return std::min(claimed.load(std::memory_order_acquire), kMostAreas); }
Area* area(std::uint32_t number) {
  Area& one = areas[number];
  return one.begin.load(std::memory_order_acquire) != 0 ? &one : nullptr;
}

void forget_registrations() {
  for (Area& one : areas) {
    one.state.store(AreaState::Plain);
    one.droppers.store(0);
  }
}

void limit_bytes(std::uint64_t bytes, bool quiet) {
  silent.store(quiet);
  limit.store(bytes);
}
std::uint64_t bytes_taken() { return taken.load(); }
std::uint64_t refusals() { return refused.load(); }

std::atomic<std::uint32_t>& bell() { return new_areas; }

}  // namespace uhmm::preload::heap

// jemalloc's own memory, and what it does to it.
extern "C" {

void* own_je_mmap(void* address, size_t length, int protection, int flags, int fd, long offset) {
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}
int own_je_munmap(void* address, size_t length) { return static_cast<int>(syscall(SYS_munmap, address, length)); }
int own_je_madvise(void* address, size_t length, int advice) {
  if (advice == MADV_DONTNEED || advice == MADV_FREE)
    uhmm::engine::give_up_inheritance({uhmm::VirtAddr{address}, uhmm::VirtAddr{address} + length});
  return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}
int own_je_mprotect(void* address, size_t length, int protection) {
  return static_cast<int>(syscall(SYS_mprotect, address, length, protection));
}

}  // extern "C"
