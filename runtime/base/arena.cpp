// SPDX-License-Identifier: Apache-2.0
// Size classes with intrusive free lists over anonymous mappings. Not a std::pmr pool: its only way to report that mmap
// failed is an exception, and throwing allocates from the program's heap, which may be away on a device.
#include "runtime/base/arena.hpp"

#include <sys/mman.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "runtime/base/check.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/base/lock.hpp"
#include "runtime/base/types.hpp"

namespace uhmm {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{512} << 10;
constexpr std::size_t kMinClassBytes = 16;
constexpr std::size_t kMaxClassBytes = std::size_t{32} << 10;

// Powers of two and the halfway points between them: 16, 24, 32, 48, 64, 96, ... A block of 2^k is aligned to 2^k, one
// of 3 * 2^k to 2^k.
constexpr std::size_t kClasses = 2 * (std::bit_width(kMaxClassBytes) - std::bit_width(kMinClassBytes)) + 1;

constexpr std::size_t class_bytes(std::size_t index) {
  const std::size_t power = kMinClassBytes << (index / 2);
  return index % 2 == 0 ? power : power + power / 2;
}

// kClasses when it is too large for one.
constexpr std::size_t class_of(std::size_t bytes, std::size_t alignment) {
  if (bytes < kMinClassBytes) bytes = kMinClassBytes;
  if (bytes > kMaxClassBytes || alignment > kMaxClassBytes) return kClasses;
  const std::size_t power = std::bit_floor(bytes);
  std::size_t index = 2 * static_cast<std::size_t>(std::bit_width(power) - std::bit_width(kMinClassBytes));
  if (bytes > power) index += bytes <= power + power / 2 ? 1 : 2;
  const auto class_alignment = [](std::size_t i) { return class_bytes(i) & (~class_bytes(i) + 1); };
  while (index < kClasses && class_alignment(index) < alignment) ++index;
  return index;
}
static_assert(class_bytes(kClasses - 1) == kMaxClassBytes);
static_assert(class_of(1, 1) == 0 && class_bytes(class_of(17, 16)) == 32 && class_bytes(class_of(33, 16)) == 48);
static_assert(class_bytes(class_of(40, 64)) == 64 && class_of(kMaxClassBytes + 1, 1) == kClasses);

constexpr std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) & ~(unit - 1); }

std::byte* map_anonymous(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

// A mapping of its own. bytes <= SIZE_MAX / 2.
void* map_large(std::size_t bytes, std::size_t alignment) {
  const std::size_t length = round_up(bytes, kPageBytes);
  if (alignment <= kPageBytes) return map_anonymous(length);
  if (alignment > SIZE_MAX / 2 - length) return nullptr;
  std::byte* memory = map_anonymous(length + alignment);
  if (memory == nullptr) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::size_t before = round_up(address, alignment) - address;
  if (before != 0) munmap(memory, before);
  munmap(memory + before + length, alignment - before);
  return memory + before;
}

struct FreeBlock {
  FreeBlock* next;
};

struct Pools {
  RankedMutex<LockRank::Arena> mutex;
  FreeBlock* free[kClasses] = {};
  std::byte* chunk = nullptr;  // what is left of the newest mapping
  std::byte* chunk_end = nullptr;
};

// Constant-initialised and trivially destroyed: usable before the first constructor and after the last destructor.
constinit Pools pools;
constinit std::atomic<std::size_t> in_use{0};
constinit Arena arena;

// Called with the lock held.
void* carve(std::size_t bytes) {
  // Alignment of the class: its lowest set bit, which the page alignment of the mapping covers up to 4 KiB.
  const std::size_t alignment = bytes & (~bytes + 1);
  auto start = round_up(reinterpret_cast<std::uintptr_t>(pools.chunk), alignment);
  if (pools.chunk == nullptr || start + bytes > reinterpret_cast<std::uintptr_t>(pools.chunk_end)) {
    std::byte* memory = map_anonymous(kChunkBytes);
    if (memory == nullptr) return nullptr;
    pools.chunk = memory;
    pools.chunk_end = memory + kChunkBytes;
    start = round_up(reinterpret_cast<std::uintptr_t>(memory), alignment);
  }
  pools.chunk = reinterpret_cast<std::byte*>(start) + bytes;
  return reinterpret_cast<void*>(start);
}

class ArenaResource final : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* memory = arena.allocate(bytes, alignment);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void do_deallocate(void* pointer, std::size_t bytes, std::size_t alignment) override {
    arena.deallocate(pointer, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace

Arena& Arena::instance() { return arena; }

void* Arena::allocate(std::size_t bytes, std::size_t alignment) noexcept {
  UHMM_CHECK(std::has_single_bit(alignment), "an alignment is a power of two");
  if (inject::should_fail(inject::Point::ArenaAlloc) || bytes > SIZE_MAX / 2) return nullptr;
  const std::size_t index = class_of(bytes, alignment);
  void* memory = nullptr;
  if (index == kClasses) {
    memory = map_large(bytes == 0 ? 1 : bytes, alignment);
  } else {
    std::scoped_lock lock(pools.mutex);
    if (FreeBlock* block = pools.free[index]; block != nullptr) {
      pools.free[index] = block->next;
      memory = block;
    } else {
      memory = carve(class_bytes(index));
    }
  }
  if (memory != nullptr) in_use.fetch_add(bytes, std::memory_order_relaxed);
  return memory;
}

void Arena::deallocate(void* pointer, std::size_t bytes, std::size_t alignment) noexcept {
  if (pointer == nullptr) return;
  in_use.fetch_sub(bytes, std::memory_order_relaxed);
  const std::size_t index = class_of(bytes, alignment);
  if (index == kClasses) {
    munmap(pointer, round_up(bytes == 0 ? 1 : bytes, kPageBytes));
    return;
  }
#ifdef UHMM_CHECKS
  std::memset(pointer, 0xDB, class_bytes(index));  // whoever still reads it sees nonsense
#endif
  std::scoped_lock lock(pools.mutex);
  pools.free[index] = new (pointer) FreeBlock{pools.free[index]};
}

std::size_t Arena::bytes_in_use() const noexcept { return in_use.load(std::memory_order_relaxed); }

void Arena::forget_after_fork() { new (&pools) Pools; }

std::pmr::memory_resource* Arena::resource() noexcept {
  // Never destroyed, for containers that outlive static destruction.
  alignas(ArenaResource) static std::byte storage[sizeof(ArenaResource)];
  static auto* const resource = new (storage) ArenaResource;
  return resource;
}

}  // namespace uhmm
