// SPDX-License-Identifier: Apache-2.0
// For a thread that shares everything with the thread that started it, thread-local storage too: nothing here touches
// errno, takes a lock or calls the C library. A process that was just forked can have such a thread whatever state the
// C library, an allocator or a sanitizer was in.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/types.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::os::bare {

// Runs body(argument) on a thread of this process with every signal blocked, on the stack that ends at `stack_top` (16
// bytes aligned). The thread has a table of descriptors of its own, a copy of the caller's: what the program closes
// stays open there, and the other way round. It ends when body returns. 0 or an errno.
int start_thread(void (*body)(void*), void* argument, void* stack_top);
// Closes everything in the calling thread's table but `keep`, ascending; entries below 0 are passed over.
void close_all_but(std::span<const int> keep);

// Private, zeroed pages of our own that no fork inherits; nullptr on failure. Past interposers of mmap.
std::byte* map_pages(std::size_t bytes);
void unmap_pages(std::byte* memory, std::size_t bytes);
// The same that a forked child finds too.
std::byte* map_inherited(std::size_t bytes);
// Memory that a forked child shares with its parent; nullptr on failure.
std::byte* map_shared(std::size_t bytes);
// False: later children do not find it.
void set_inherited(std::byte* memory, std::size_t bytes, bool inherited);
// Makes private pages absent again.
void drop(VirtAddr page, std::size_t bytes);
bool is_present(VirtAddr page);
bool is_mapped(VirtAddr page);

void close(int fd);
// Reads or writes all of it at the offset. False: not all, for whatever reason.
bool read_at(int fd, void* to, std::size_t bytes, std::uint64_t offset);
bool write_at(int fd, const void* from, std::size_t bytes, std::uint64_t offset);
// Waits until the descriptor can be read.
void wait_readable(int fd);
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected);
void futex_wake(const std::atomic<std::uint32_t>& word);
// Writes to memory of the calling process as a debugger would: also where the program may not. False: there is none.
bool write_own_memory(VirtAddr to, const void* from, std::size_t bytes);

// One message of a userfaultfd.
struct Message {
  enum class Kind : std::uint8_t { None, Fault, Fork, Move, Drop, Other };
  Kind kind = Kind::None;
  UffdFault fault;
  UffdMove move;
  ByteRange dropped;
  int fork_fd = -1;
};
Message read_message(int uffd);

// As the members of Userfaultfd, of the process that the descriptor is about. Calls that are told to try again, because
// its memory map is changing, return EAGAIN.
int register_missing(int uffd, ByteRange pages);
int unregister(int uffd, ByteRange pages);
Progress copy(int uffd, VirtAddr to, const void* from, std::uint64_t bytes);
Progress zero(int uffd, VirtAddr to, std::uint64_t bytes);
Progress map_existing(int uffd, ByteRange pages);
Progress poison(int uffd, ByteRange pages);
int unprotect(int uffd, ByteRange pages);
void wake(int uffd, ByteRange pages);
// Is the process gone, or has it begun another program?
bool process_gone(int uffd);

}  // namespace uhmm::os::bare
