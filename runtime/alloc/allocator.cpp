// SPDX-License-Identifier: Apache-2.0
// The uhmm_malloc family, on public calls. Small blocks come from the standard library's pool resource over managed
// regions; large ones are mappings of their own, which can be freed without bringing anything back. Locks here are
// taken by threads of the program only: the runtime's threads never allocate.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <new>

#include "runtime/base/epoch.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::alloc {
namespace {

constexpr std::size_t kLarge = std::size_t{128} << 10;
constexpr std::size_t kAlignment = 16;
constexpr std::uint64_t kMagic = 0x75686d6d616c6c6f;

std::byte* map_pages(std::size_t bytes, std::size_t alignment) {
  const std::size_t extra = alignment > kPageBytes ? alignment : 0;
  if (bytes + extra < bytes) return nullptr;
  void* memory = mmap(nullptr, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* start = static_cast<std::byte*>(memory);
  if (extra == 0) return start;
  const auto address = reinterpret_cast<std::uintptr_t>(start);
  const std::size_t skip = (alignment - address % alignment) % alignment;
  if (skip != 0) munmap(start, skip);
  if (extra != skip) munmap(start + skip + bytes, extra - skip);
  return start + skip;
}

// Regions and large blocks by address, outside managed memory: looking a pointer up never touches the block.
struct Extent {
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  std::size_t usable = 0;  // of a large block; 0 marks a region of small ones
};

class Extents {
 public:
  void add(void* start, std::size_t bytes, std::size_t usable) {
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    const std::scoped_lock lock(mutex_);
    by_start_[address] = {address, bytes, usable};
  }
  void remove(void* start) {
    const std::scoped_lock lock(mutex_);
    by_start_.erase(reinterpret_cast<std::uintptr_t>(start));
  }
  // The one that contains `address`; of 0 bytes if there is none.
  Extent find(std::uintptr_t address) {
    const std::scoped_lock lock(mutex_);
    const auto above = by_start_.upper_bound(address);
    if (above == by_start_.begin()) return {};
    const Extent& extent = std::prev(above)->second;
    return address < extent.start + extent.bytes ? extent : Extent{};
  }

 private:
  std::mutex mutex_;
  std::map<std::uintptr_t, Extent> by_start_;
};

class Regions : public std::pmr::memory_resource {
 public:
  explicit Regions(Extents& extents) : extents_(extents) {}
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* pointer, std::size_t bytes, std::size_t alignment) override;
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

 private:
  Extents& extents_;
};

class Allocator {
 public:
  void* allocate(std::size_t size, std::size_t alignment, bool zeroed);
  bool free(void* pointer);
  std::size_t usable_size(const void* pointer);
  Allocator* previous = nullptr;  // of an earlier epoch: its blocks stay as they are, so it does too
  const std::uint64_t epoch = runtime_epoch.load();

 private:
  // In front of every small block.
  struct alignas(kAlignment) Header {
    std::uint64_t check;   // kMagic ^ address of the block
    std::uint32_t offset;  // from the pool's block to ours
    std::uint32_t bytes;   // of the pool's block
  };
  static_assert(sizeof(Header) == kAlignment);
  enum class Kind { Foreign, Small, Large };
  Kind find(const void* pointer, Extent* extent);
  void* allocate_large(std::size_t size, std::size_t alignment);
  static Header* header_of(const void* pointer) {
    return reinterpret_cast<Header*>(reinterpret_cast<std::uintptr_t>(pointer) - sizeof(Header));
  }

  Extents extents_;
  Regions regions_{extents_};
  std::pmr::synchronized_pool_resource pool_{std::pmr::pool_options{0, kLarge * 2}, &regions_};
};

// One per run of the runtime; never destroyed, since its blocks stay readable.
std::atomic<Allocator*> current{nullptr};

// Null when nothing was allocated since the runtime started.
Allocator* existing() {
  Allocator* allocator = current.load(std::memory_order_acquire);
  return allocator != nullptr && allocator->epoch == runtime_epoch.load() ? allocator : nullptr;
}

Allocator& instance() {
  // No lock: a child of fork() might find it taken for ever.
  for (;;) {
    if (Allocator* allocator = existing()) return *allocator;
    auto fresh = std::make_unique<Allocator>();
    fresh->previous = current.load();
    if (existing() == nullptr && current.compare_exchange_strong(fresh->previous, fresh.get())) return *fresh.release();
  }
}

void* Regions::do_allocate(std::size_t bytes, std::size_t alignment) {
  const std::size_t rounded = (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
  std::byte* memory = map_pages(rounded, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  if (uhmm_register(memory, rounded) != UHMM_OK) {
    munmap(memory, rounded);
    throw std::bad_alloc();
  }
  extents_.add(memory, rounded, 0);
  return memory;
}

void Regions::do_deallocate(void* pointer, std::size_t bytes, std::size_t) {
  const std::size_t rounded = (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
  extents_.remove(pointer);
  (void)uhmm_unregister(pointer);
  munmap(pointer, rounded);
}

void* Allocator::allocate_large(std::size_t size, std::size_t alignment) {
  const std::size_t rounded = (size + kPageBytes - 1) & ~(kPageBytes - 1);
  if (rounded < size) throw std::bad_alloc();
  std::byte* memory = map_pages(rounded, std::max(alignment, kPageBytes));
  if (memory == nullptr) {
    (void)fail(UHMM_ERR_NO_MEMORY, "mmap of %zu bytes failed", rounded);
    return nullptr;
  }
  if (uhmm_register(memory, rounded) != UHMM_OK) {
    munmap(memory, rounded);
    return nullptr;
  }
  try {
    extents_.add(memory, rounded, rounded);
  } catch (const std::bad_alloc&) {
    (void)uhmm_unregister(memory);
    munmap(memory, rounded);
    return nullptr;
  }
  return memory;
}

void* Allocator::allocate(std::size_t size, std::size_t alignment, bool zeroed) {
  alignment = std::max(alignment, kAlignment);
  if (size > kLarge || alignment > kPageBytes) return allocate_large(std::max<std::size_t>(size, 1), alignment);
  // The pool aligns no better than its block sizes do (24-byte blocks are in it): whole units of 16 bytes, and room to
  // align more strictly ourselves.
  const std::size_t slack = alignment - kAlignment;
  const std::size_t wanted = sizeof(Header) + slack + std::max<std::size_t>(size, 1);
  const std::size_t bytes = (wanted + kAlignment - 1) & ~(kAlignment - 1);
  auto* block = static_cast<std::byte*>(pool_.allocate(bytes, kAlignment));
  const auto first = reinterpret_cast<std::uintptr_t>(block) + sizeof(Header);
  const std::size_t lead = sizeof(Header) + (alignment - first % alignment) % alignment;
  std::byte* pointer = block + lead;
  *header_of(pointer) = {kMagic ^ reinterpret_cast<std::uint64_t>(pointer), static_cast<std::uint32_t>(lead),
                         static_cast<std::uint32_t>(bytes)};
  if (zeroed) std::memset(pointer, 0, size);
  return pointer;
}

Allocator::Kind Allocator::find(const void* pointer, Extent* extent) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  *extent = extents_.find(address);
  if (extent->bytes == 0) return Kind::Foreign;
  if (extent->usable != 0) return address == extent->start ? Kind::Large : Kind::Foreign;
  if (address % kAlignment != 0 || address - extent->start < sizeof(Header)) return Kind::Foreign;
  return header_of(pointer)->check == (kMagic ^ address) ? Kind::Small : Kind::Foreign;
}

bool Allocator::free(void* pointer) {
  Extent extent;
  switch (find(pointer, &extent)) {
    case Kind::Foreign: return false;
    case Kind::Large:
      extents_.remove(pointer);
      // Contents first: what is on a device then has nothing to bring back.
      (void)uhmm_discard(pointer, extent.bytes);
      (void)uhmm_unregister(pointer);
      munmap(pointer, extent.bytes);
      return true;
    case Kind::Small: {
      const Header header = *header_of(pointer);
      header_of(pointer)->check = 0;  // a second free is foreign
      pool_.deallocate(static_cast<std::byte*>(pointer) - header.offset, header.bytes, kAlignment);
      return true;
    }
  }
  return false;
}

std::size_t Allocator::usable_size(const void* pointer) {
  Extent extent;
  switch (find(pointer, &extent)) {
    case Kind::Foreign: return 0;
    case Kind::Large: return extent.usable;
    case Kind::Small: return header_of(pointer)->bytes - header_of(pointer)->offset;
  }
  return 0;
}

// Allocation is for running programs only; says why not otherwise.
bool ready() {
  uhmm_config ignored = UHMM_CONFIG_INIT;
  return uhmm_get_config(&ignored) == UHMM_OK;
}

void* checked(std::size_t size, std::size_t alignment, bool zeroed) {
  if (!ready()) {
    errno = ENOMEM;
    return nullptr;
  }
  void* pointer = nullptr;
  try {
    pointer = instance().allocate(size, alignment, zeroed);
  } catch (const std::bad_alloc&) {
    (void)fail(UHMM_ERR_NO_MEMORY, "no memory for %zu bytes", size);
  }
  if (pointer == nullptr) errno = ENOMEM;
  return pointer;
}

}  // namespace

}  // namespace uhmm::alloc

using namespace uhmm;

extern "C" {

void* uhmm_malloc(size_t size) { return alloc::checked(size, 16, false); }

void* uhmm_calloc(size_t count, size_t size) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    (void)fail(UHMM_ERR_NO_MEMORY, "%zu * %zu overflows", count, size);
    errno = ENOMEM;
    return nullptr;
  }
  return alloc::checked(bytes, 16, true);
}

void* uhmm_aligned_alloc(size_t alignment, size_t size) {
  if (!std::has_single_bit(alignment) || alignment > (std::size_t{1} << 40)) {
    (void)fail(UHMM_ERR_INVALID, "the alignment %zu is not a power of two, or too large", alignment);
    errno = EINVAL;
    return nullptr;
  }
  return alloc::checked(size, alignment, false);
}

void* uhmm_realloc(void* pointer, size_t size) {
  if (pointer == nullptr) return uhmm_malloc(size);
  if (size == 0) {
    uhmm_free(pointer);
    return nullptr;
  }
  const std::size_t usable = uhmm_usable_size(pointer);
  if (usable == 0) {
    (void)fail(UHMM_ERR_INVALID, "%p is not a block of uhmm_malloc", pointer);
    errno = EINVAL;
    return nullptr;
  }
  if (size <= usable && size >= usable / 2) return pointer;
  void* fresh = uhmm_malloc(size);
  if (fresh == nullptr) return nullptr;
  std::memcpy(fresh, pointer, std::min(size, usable));
  uhmm_free(pointer);
  return fresh;
}

void uhmm_free(void* pointer) {
  if (pointer == nullptr || !alloc::ready()) return;
  alloc::Allocator* allocator = alloc::existing();
  if (allocator == nullptr || !allocator->free(pointer))
    (void)fail(UHMM_ERR_INVALID, "%p is not a block of uhmm_malloc", pointer);
}

size_t uhmm_usable_size(const void* pointer) {
  if (pointer == nullptr || !alloc::ready()) return 0;
  alloc::Allocator* allocator = alloc::existing();
  return allocator != nullptr ? allocator->usable_size(pointer) : 0;
}

}  // extern "C"
