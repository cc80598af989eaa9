// SPDX-License-Identifier: Apache-2.0
// Processes, descriptors, futexes and privileges: what a device process needs from Linux. Everything marked [child] may
// run in a process that was just forked from a program with many threads: no heap, no locks, no stdio.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::os {

// ------------------------------------------------------------------ processes

struct SpawnedProcess {
  pid_t pid = -1;
  int pidfd = -1;  // close-on-exec
};

// Runs child_main(argument) in a new process that is a copy of this one, as after fork(): the C library, the allocator
// and pthread_atfork handlers are in order, only the calling thread exists there, all signals are blocked. It runs on
// the stack that ends at `stack_top` (64 KiB or more, readable and writable, 16-byte aligned); child_main must not
// return.
//
// The process is *not* a child of this one: the program's own `while (wait(NULL) > 0)` must not hang on it, no
// waitpid(-1) may reap it and no SIGCHLD may announce it. Init reaps it; its pidfd tells of its end.
// Returns 0 or an errno. User threads only: it runs pthread_atfork handlers and copies the page tables.
int spawn_process(void (*child_main)(void*), void* argument, void* stack_top, SpawnedProcess* out);
// Before this process is copied, by spawn_process() and by whoever else does it past the C library, and after:
// `listener` is told, so that somebody reads the kernel's news of it whatever locks the caller has. nullptr: nobody is.
void announce_copy(bool begins);
void listen_to_copies(void (*listener)(void* context, bool begins), void* context);
// A page that every process made by spawn_process() unmaps before anything else; nullptr: none. Where it is watched by
// userfaultfd, whoever reads that news knows what kind of copy it is.
void set_calling_card(void* page);
// True in a thread that is inside spawn_process (and in the new process's first thread): the runtime's own
// pthread_atfork handlers ask this and then do nothing.
bool spawning_in_this_thread();
// True in a process made by spawn_process: calls of the public API there are refused.
bool in_device_process();

// A pidfd of the calling process, or -1 with errno.
int open_own_pidfd();
// True once every thread of the process is gone and its memory map is freed.
bool process_ended(int pidfd, int timeout_ms);
void kill_process(int pidfd);
// The wait status of an ended process if this kernel can still tell (6.15 and later, after it was reaped).
bool ended_status(int pidfd, int* wait_status);

// CPUs that the calling thread may run on, ascending; returns how many were stored, at least 1.
std::size_t allowed_cpus(std::span<std::uint32_t> cpus);
// [child] The calling thread runs on these CPUs only. Failure is ignored: it only costs speed.
void pin_to_cpus(std::span<const std::uint32_t> cpus);
// [child] At most 15 characters.
void name_thread(const char* name);

// [child] No capability and no way to gain one, no core dumps, no new privileges by exec.
void drop_privileges();
// [child] Every signal's disposition becomes the default; `handler` is installed for `fatal` signals, on the alternate
// stack. Goes past sanitizers and interposers. The handler returns only after resume_at().
using FatalHandler = void (*)(int signal, void* siginfo, void* ucontext);
void take_over_signals(std::span<const int> fatal, FatalHandler handler);
// [child] For the calling thread: alternate stack, and only the fatal signals unblocked.
void thread_signals(std::span<const int> fatal, void* alternate_stack, std::size_t bytes);
// The instruction and the address that a fatal signal is about.
void fatal_details(void* siginfo, void* ucontext, std::uint64_t* address, std::uint64_t* instruction);
// Where the thread goes on when the handler returns.
void resume_at(void* ucontext, std::uint64_t instruction);
// [child] End the process at once: no handlers, no flushing, no sanitizer reports.
[[noreturn]] void exit_now(int code);

// ---------------------------------------------------------------- descriptors

// Gives the descriptor a number that no standard stream has: a program that has closed one may open another in its
// place. -1 stays -1, errno too.
int above_stdio(int fd);
// Another number for the same file, close-on-exec and above stdio. -1 with errno.
int duplicate(int fd);
// The same, of a file that can be read, for reading only.
int duplicate_read_only(int fd);
// A sparse shared memory file that nobody can resize: its offsets are addresses. -1 with errno. [0, 2] are never used.
int make_memory_file(const char* name, std::uint64_t bytes);
// Both ends close-on-exec, message oriented, above stdio; `ends[0]` receives the sender's identity. 0 or an errno.
int make_channel(int ends[2]);
// Sends bytes and, if fd >= 0, a descriptor. 0 or an errno. [child]
int send_message(int socket, const void* bytes, std::size_t size, int fd);
struct Message {
  std::size_t size = 0;
  int fd = -1;
  pid_t sender = -1;
  uid_t user = static_cast<uid_t>(-1);
};
// A descriptor that somebody writes to in order to be noticed: close-on-exec, above stdio, never blocks. -1 with errno.
int make_bell();
void ring(int bell);
void silence(int bell);
// Waits until something can be read from one of them, or it is hung up: `ready` says of which. Or for `timeout_ms`, if
// that is not negative.
struct Watched {
  int fd = -1;  // -1: passed over
  short wanted = 1;
  short ready = 0;
};
void wait_for(std::span<Watched> watched, int timeout_ms = -1);
// Waits for a message; 0 or an errno (EPIPE: the other side is gone; ETIMEDOUT).
int receive_message(int socket, void* bytes, std::size_t size, int timeout_ms, Message* out);
// [child] Closes everything but `keep` and 1 and 2; 0 becomes /dev/null. `keep` holds numbers above 2.
void close_other_descriptors(std::span<const int> keep);
// [child] Blocks until one of them is readable or hung up.
void wait_any(int first, int second);

// -------------------------------------------------------------- memory (raw)

// The system calls themselves: past sanitizers and past our own interposers. 0 or an errno. [child]
int map_file_fixed(ByteRange pages, int file, std::uint64_t offset, bool accessible);
int map_shared_fixed(ByteRange pages, int file, std::uint64_t offset, bool readable, bool writable);
int make_accessible(ByteRange pages);
int drop_page_tables(ByteRange pages);  // of shared memory: the pages stay in the file

// From now on the process maps memory only in `pages` unless it names an address: everything else that is free becomes
// inaccessible memory, `pages` become free. As well as it can be done. [child, one thread]
void confine_mappings(ByteRange pages);
// AddressSanitizer's knowledge of these pages is as old as this process; from now on it takes every byte for valid.
// Nothing where the program is built without. [child]
void trust_memory(ByteRange pages);
int map_nothing_fixed(ByteRange pages);  // inaccessible, whatever was there before

// Allocates zeroed pages of a file; punch_file frees them and unmaps them in every process. 0 or an errno.
int allocate_file(int file, ByteRange offsets);
int punch_file(int file, ByteRange offsets);

// -------------------------------------------------------------------- futexes

// Between processes: the word is in shared memory. Returns when woken, when the word differs, or at the timeout
// (0: never). May return early.
void futex_wait_shared(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns = 0);
void futex_wake_shared(const std::atomic<std::uint32_t>& word, std::uint32_t waiters);

}  // namespace uhmm::os
