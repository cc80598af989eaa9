// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/heap.hpp"

#include <errno.h>
#include <jemalloc/jemalloc.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "preload/heap/areas.hpp"
#include "preload/heap/jemalloc.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

// One automatic arena, which is made of ordinary memory. Memory stays mapped (areas are never unmapped), dirty pages
// are given up for good, and the break is the program's own.
extern "C" {
extern const char* own_je_malloc_conf;
const char* own_je_malloc_conf =
    "narenas:1,retain:true,muzzy_decay_ms:0,oversize_threshold:0,dss:disabled,percpu_arena:disabled,"
    "metadata_thp:disabled";
}

namespace uhmm::preload::heap {

thread_local constinit Mode mode = Mode::Unknown;

namespace {

// An allocator's arena for each few threads: fewer than jemalloc's own choice on large machines, where each costs
// memory.
constexpr std::uint32_t kMostArenas = 64;
constexpr std::uint32_t kArenasPerCpu = 4;
constexpr int kPlainFlags = MALLOCX_ARENA(0) | MALLOCX_TCACHE_NONE;

constinit std::array<std::atomic<unsigned>, kMostArenas> arenas;  // 0: not made yet (that number is the plain one)
constinit std::atomic<std::uint32_t> next_arena{0};
constinit std::atomic<std::uint64_t> smallest_managed{0};

void* hook_alloc(extent_hooks_t*, void* wanted, size_t size, size_t alignment, bool* zero, bool* commit, unsigned) {
  if (wanted != nullptr) return nullptr;
  const int error = errno;
  void* memory = take(size, std::max<size_t>(alignment, kPageBytes));
  errno = error;
  if (memory == nullptr) return nullptr;
  *zero = true;
  *commit = true;
  return memory;
}
// Refused: it is kept for later.
bool hook_dalloc(extent_hooks_t*, void*, size_t, bool, unsigned) { return true; }
bool hook_purge(extent_hooks_t*, void* address, size_t, size_t offset, size_t length, unsigned) {
  const int error = errno;
  const bool dropped = drop(static_cast<std::byte*>(address) + offset, length);
  errno = error;
  return !dropped;
}
bool hook_split(extent_hooks_t*, void*, size_t, size_t, size_t, bool, unsigned) { return false; }
bool hook_merge(extent_hooks_t*, void* first, size_t, void* second, size_t, bool, unsigned) {
  return !same_area(first, second);
}

constinit extent_hooks_t hooks = {hook_alloc, hook_dalloc, nullptr,    nullptr,   nullptr,
                                  nullptr,    hook_purge,  hook_split, hook_merge};

// As jemalloc's experimental.arenas_create_ext wants it: hooks, but not for the arena's own records.
struct ArenaConfig {
  extent_hooks_t* extent_hooks = &hooks;
  bool metadata_use_hooks = false;
};

// 0: no memory.
unsigned make_arena() {
  unsigned index = 0;
  size_t size = sizeof(index);
  ArenaConfig config;
  if (own_je_mallctl("experimental.arenas_create_ext", &index, &size, &config, sizeof(config)) == 0) return index;
  // A jemalloc that has not got that: its records are managed memory, too.
  extent_hooks_t* plain_hooks = &hooks;
  if (own_je_mallctl("arenas.create", &index, &size, &plain_hooks, sizeof(plain_hooks)) == 0) return index;
  return 0;
}

unsigned arena_of_thread() {
  const std::uint32_t count = std::clamp(os::usable_cpu_count() * kArenasPerCpu, 1u, kMostArenas);
  std::atomic<unsigned>& mine = arenas[next_arena.fetch_add(1) % count];
  unsigned index = mine.load();
  if (index != 0) return index;
  const unsigned fresh = make_arena();
  // Somebody else may have been faster: then this one stays unused.
  return fresh == 0 || mine.compare_exchange_strong(index, fresh) ? fresh : index;
}

unsigned managed_arena() {
  thread_local constinit unsigned index = 0;
  if (index == 0) index = arena_of_thread();
  return index;
}

// What the calling thread is, for good.
Mode bind() {
  // Whatever is allocated on the way is plain.
  mode = Mode::Plain;
  const int error = errno;
  Mode found = Mode::Plain;
  if (Thread::is_ours() || os::in_device_process()) {
    // What it frees must not stay with it: that may be managed memory, which it would be given the next time.
    bool off = false;
    (void)own_je_mallctl("thread.tcache.enabled", nullptr, nullptr, &off, sizeof(off));
  } else if (smallest_managed.load() != 0) {
    found = Mode::BySize;
  } else if (unsigned index = managed_arena();
             index != 0 && own_je_mallctl("thread.arena", nullptr, nullptr, &index, sizeof(index)) == 0) {
    found = Mode::Direct;
  }
  errno = error;
  mode = found;
  return found;
}

void* plain(std::size_t size, int flags) { return own_je_mallocx(std::max<std::size_t>(size, 1), kPlainFlags | flags); }

void* out_of_memory() {
  errno = ENOMEM;
  return nullptr;
}

std::uint64_t counter(const char* name) {
  std::uint64_t value = 0;
  size_t size = sizeof(value);
  return own_je_mallctl(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

}  // namespace

void* allocate(std::size_t size, std::size_t alignment, bool zeroed) {
  const Mode now = mode == Mode::Unknown ? bind() : mode;
  const int flags = (alignment > 1 ? MALLOCX_ALIGN(alignment) : 0) | (zeroed ? MALLOCX_ZERO : 0);
  const std::size_t bytes = std::max<std::size_t>(size, 1);
  void* memory = nullptr;
  if (bytes > PTRDIFF_MAX || alignment > PTRDIFF_MAX) return out_of_memory();
  switch (now) {
    case Mode::Unknown:
    case Mode::Plain: memory = plain(size, flags); break;
    case Mode::Direct: memory = own_je_mallocx(bytes, flags); break;
    case Mode::BySize: {
      const bool managed = bytes >= smallest_managed.load(std::memory_order_relaxed);
      const unsigned arena = managed ? managed_arena() : 0;
      memory = arena != 0 ? own_je_mallocx(bytes, flags | MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE)
                          : own_je_mallocx(bytes, flags);
      break;
    }
  }
  return memory != nullptr ? memory : out_of_memory();
}

void* reallocate(void* pointer, std::size_t size) {
  if (pointer == nullptr) return allocate(size, 0, false);
  if (size == 0) {
    own_je_free(pointer);
    return nullptr;
  }
  const Mode now = mode == Mode::Unknown ? bind() : mode;
  if (now == Mode::Direct) {
    void* moved = own_je_realloc(pointer, size);
    return moved != nullptr ? moved : out_of_memory();
  }
  const std::size_t usable = own_je_malloc_usable_size(pointer);
  if (size <= usable && size >= usable / 2) return pointer;
  void* fresh = allocate(size, 0, false);
  if (fresh == nullptr) return nullptr;
  memcpy(fresh, pointer, std::min(size, usable));
  own_je_free(pointer);
  return fresh;
}

PlainScope::PlainScope() : before_(mode == Mode::Unknown ? bind() : mode) { mode = Mode::Plain; }
PlainScope::~PlainScope() { mode = before_; }

void set_smallest(std::uint64_t bytes) {
  smallest_managed.store(bytes);
  if (bytes == 0) return;
  // The calling thread has allocated before the options were read: its arena is the plain one from now on.
  unsigned index = 0;
  (void)own_je_mallctl("thread.arena", nullptr, nullptr, &index, sizeof(index));
  mode = Mode::BySize;
}
std::uint64_t smallest() { return smallest_managed.load(); }

HeapStats heap_stats() {
  std::uint64_t epoch = 1;
  size_t size = sizeof(epoch);
  (void)own_je_mallctl("epoch", &epoch, &size, &epoch, size);
  return {counter("stats.allocated"), counter("stats.active"), counter("stats.resident"), counter("stats.metadata"),
          counter("stats.mapped")};
}

bool trim() {
  const std::uint64_t before = counter("stats.resident");
  (void)own_je_mallctl("thread.tcache.flush", nullptr, nullptr, nullptr, 0);
  return own_je_mallctl("arena.4096.purge", nullptr, nullptr, nullptr, 0) == 0 && before != 0;
}

}  // namespace uhmm::preload::heap
