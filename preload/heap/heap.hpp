// SPDX-License-Identifier: Apache-2.0
// The program's heap: jemalloc over managed areas. What jemalloc itself needs is ordinary memory, and so is all that
// the runtime's own threads allocate: nothing that serves a fault ever needs a page that is away.
#pragma once

#include <cstddef>
#include <cstdint>

namespace uhmm::preload::heap {

// What the calling thread's allocations are made of.
enum class Mode : std::uint8_t {
  Unknown,  // its first
  Direct,   // managed memory, all of them
  BySize,   // managed memory, from a size on
  Plain,    // ordinary memory: a thread of the runtime, or the program's while it is inside the runtime
};
extern thread_local constinit Mode mode;

// The allocator's functions, where they have to choose.
void* allocate(std::size_t size, std::size_t alignment, bool zeroed);
void* reallocate(void* pointer, std::size_t size);

// Allocations of the calling thread are ordinary memory while this lives.
class PlainScope {
 public:
  PlainScope();
  PlainScope(const PlainScope&) = delete;
  PlainScope& operator=(const PlainScope&) = delete;
  ~PlainScope();

 private:
  Mode before_;
};

// Blocks of fewer bytes are ordinary memory, for threads that have not allocated yet and for the calling one.
void set_smallest(std::uint64_t bytes);
std::uint64_t smallest();

struct HeapStats {
  std::uint64_t allocated = 0;  // bytes in blocks of the program
  std::uint64_t active = 0;     // bytes in pages that have such blocks
  std::uint64_t resident = 0;   // bytes that the allocator believes to have pages
  std::uint64_t metadata = 0;   // bytes of its own
  std::uint64_t mapped = 0;     // bytes of address space
};
HeapStats heap_stats();
// Gives free pages back. True: there may have been some.
bool trim();

}  // namespace uhmm::preload::heap
