// SPDX-License-Identifier: Apache-2.0
// What the kernel knows of the program's memory map, and ways to reach managed memory without ever sleeping in a fault.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/base/page_mask.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::os {

// A memory file of this name stands for a device's own memory: its mappings are Special.
inline constexpr const char* kDeviceMemoryName = "uhmm-device-memory";

enum class MappingKind : std::uint8_t { None, PrivateAnonymous, Shared, PrivateFile, Special, Lost };

struct Mapping {
  ByteRange range;
  MappingKind kind = MappingKind::None;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  std::uint64_t page_bytes = kPageBytes;
  // Which bytes of which file it shows.
  std::uint64_t file_system = 0;
  std::uint64_t inode = 0;
  std::uint64_t offset = 0;
};

// The process's own /proc files, opened once. All calls are allowed on service threads.
class ProcessMemory {
 public:
  Status open();
  void close();

  // The mapping that covers `address` or the next one above it; kind None when there is no more.
  Result<Mapping> find_mapping(VirtAddr address) const;
  // The same, but of the kind nothing is said. Never slow: NOT_SUPPORTED where the kernel would have to print
  // the whole map (before 6.11).
  Result<Mapping> find_access(VirtAddr address) const;
  // Which pages of a run of `block` have backing (present or swapped out) in the calling process's page table.
  Result<PageMask> backed(VirtAddr block, PageRun run) const;
  // Which of them raise SIGBUS when they are touched. Of memory that nobody watches.
  Result<PageMask> poisoned(VirtAddr block, PageRun run) const;
  // Which of them the program has made guard pages (MADV_GUARD_INSTALL): they look as if they were swapped out, and
  // can't be touched. None where the kernel can't tell (before 6.15).
  Result<PageMask> guarded(VirtAddr block, PageRun run) const;
  // Is the block one huge page of the program?
  bool is_huge(VirtAddr block) const;
  // Copy bytes out of managed memory. Absent pages end the copy instead of faulting: returns how many bytes were read.
  std::size_t read(VirtAddr from, std::byte* to, std::size_t bytes) const;

 private:
  Result<Mapping> find_mapping_in_text(VirtAddr address) const;
  Result<PageMask> with_flags(VirtAddr block, PageRun run, std::uint64_t any_of) const;

  int pagemap_ = -1;
  int mem_ = -1;
  int maps_ = -1;
};

// Address space of `bytes` with demand-zero private pages, no huge pages, not inherited by fork(), aligned like a
// block. nullptr on failure.
std::byte* map_private(std::size_t bytes);
// The same memory anew, without what its page tables held. `huge`: a touch may give it a huge page. 0 or an errno.
int renew_private(std::byte* memory, std::size_t bytes, bool huge);
// The same as a program gets from mmap(): for memory that becomes the program's.
std::byte* map_plain(std::size_t bytes);
// Give our own memory the protection of a mapping of the program's. 0 or an errno.
int protect_like(const Mapping& mapping, std::byte* memory, std::size_t bytes);
// Atomically puts the mapping at `from` over `to`, replacing what was there. 0 or an errno.
int move_mapping(std::byte* from, ByteRange to);
void unmap(void* address, std::size_t bytes);
// Address space with nothing behind it. nullptr on failure.
std::byte* reserve_addresses(std::size_t bytes);
// A second view of shared memory, put over reserved addresses. `pages` must lie in one mapping. 0 or an errno.
int map_alias(ByteRange pages, std::byte* at);
// Which pages of a shared view are in the page cache.
PageMask cached(const std::byte* block_in_view, PageRun run);

// Which pages of a run have nothing mapped there.
PageMask holes(VirtAddr block, PageRun run);

// Free private pages, or take shared pages out of the page table of the calling process, locked ones too. 0 or an
// errno: some may have gone all the same.
int drop_pages(ByteRange pages);
// Drop a shared view's pages from the page cache as well. 0 or an errno.
int remove_shared(ByteRange pages);
// Give every page of our own (never of managed) memory backing. 0 or an errno.
int populate_write(ByteRange pages);
// An atomic write to managed memory that changes nothing: breaks the sharing that a fork left. Never sleeps in a fault:
// false when the page is absent or may not be written.
bool touch_for_write(VirtAddr page);
// Put memory there whose access raises SIGBUS, where UFFDIO_POISON can't be had. 0 or an errno.
int map_bus_error(ByteRange pages);
// Put what `view`, made by map_alias(), shows back there. 0 or an errno.
int map_again(std::byte* view, ByteRange pages);
// Put fresh private memory there instead. 0 or an errno.
int map_zeros(ByteRange pages);
// Put private anonymous memory with the same contents and protection in place of a private file mapping's pages. A
// write to them meanwhile would be lost: nobody else may run. 0 or an errno.
int make_anonymous(const ProcessMemory& process, const Mapping& mapping, ByteRange pages);
// Bytes of a file, to be read; not inherited by fork(). nullptr on failure.
const std::byte* map_file(int fd, std::uint64_t offset, std::size_t bytes);
// Threads of this process.
std::uint32_t count_threads();

}  // namespace uhmm::os
