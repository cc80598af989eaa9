// SPDX-License-Identifier: Apache-2.0
// Functions of other libraries that the preloaded libraries answer in their place: the one list, with kernel_calls.hpp,
// which has those that are all alike. The linker's maps and the libraries' dynamic symbols are checked against them.
#pragma once

// libuhmm_preload.so (preload.map): what `uhmm run --dmirror` needs.

#define UHMM_INTERPOSED_LIST(X) \
  X(open)                       \
  X(open64)                     \
  X(openat)                     \
  X(openat64)                   \
  X(__open_2)                   \
  X(__open64_2)                 \
  X(__openat_2)                 \
  X(__openat64_2)               \
  X(close)                      \
  X(ioctl)                      \
  X(read)                       \
  X(__read_chk)                 \
  X(pread)                      \
  X(pread64)                    \
  X(__pread_chk)                \
  X(__pread64_chk)              \
  X(write)                      \
  X(pwrite)                     \
  X(pwrite64)                   \
  X(readv)                      \
  X(preadv)                     \
  X(preadv64)                   \
  X(preadv2)                    \
  X(preadv64v2)                 \
  X(writev)                     \
  X(pwritev)                    \
  X(pwritev64)                  \
  X(pwritev2)                   \
  X(pwritev64v2)                \
  X(send)                       \
  X(sendto)                     \
  X(recv)                       \
  X(__recv_chk)                 \
  X(recvfrom)                   \
  X(__recvfrom_chk)             \
  X(recvmsg)                    \
  X(recvmmsg)                   \
  X(getrandom)                  \
  X(fread)                      \
  X(__fread_chk)                \
  X(fwrite)                     \
  X(accept)                     \
  X(accept4)                    \
  X(wait4)                      \
  X(waitid)                     \
  X(waitpid)                    \
  X(sigtimedwait)               \
  X(getsockopt)                 \
  X(nanosleep)                  \
  X(clock_nanosleep)            \
  X(sigprocmask)                \
  X(pthread_sigmask)            \
  X(timerfd_settime)            \
  X(sigaltstack)                \
  X(posix_spawn)                \
  X(posix_spawnp)               \
  X(syscall)                    \
  X(wait)                       \
  X(wait3)                      \
  X(sigwaitinfo)                \
  UHMM_INTERPOSED_MEMORY_LIST(X)

// Both libraries: changes of the memory map.
#define UHMM_INTERPOSED_MEMORY_LIST(X) \
  X(mmap)                              \
  X(mmap64)                            \
  X(munmap)                            \
  X(mremap)                            \
  X(mprotect)                          \
  X(pkey_mprotect)                     \
  X(madvise)                           \
  X(mlock)                             \
  X(mlock2)

// libuhmm_malloc.so (malloc.map), with the list before: what would take the runtime's descriptors away or end the
// process.
#define UHMM_INTERPOSED_PROCESS_LIST(X) \
  X(close)                              \
  X(dup2)                               \
  X(dup3)                               \
  X(close_range)                        \
  X(closefrom)                          \
  X(_exit)                              \
  X(_Exit)

// The same: the heap, and jemalloc's own interface to it.
#define UHMM_INTERPOSED_HEAP_LIST(X) \
  X(malloc)                          \
  X(calloc)                          \
  X(realloc)                         \
  X(reallocarray)                    \
  X(free)                            \
  X(aligned_alloc)                   \
  X(memalign)                        \
  X(posix_memalign)                  \
  X(valloc)                          \
  X(pvalloc)                         \
  X(malloc_usable_size)              \
  X(malloc_trim)                     \
  X(mallopt)                         \
  X(mallinfo)                        \
  X(mallinfo2)                       \
  X(malloc_stats)                    \
  X(malloc_info)                     \
  X(mallocx)                         \
  X(rallocx)                         \
  X(xallocx)                         \
  X(sallocx)                         \
  X(dallocx)                         \
  X(sdallocx)                        \
  X(nallocx)                         \
  X(mallctl)                         \
  X(mallctlnametomib)                \
  X(mallctlbymib)                    \
  X(malloc_stats_print)

// The same: C++'s operators new and delete, by the names that the linker has for them.
#define UHMM_INTERPOSED_OPERATOR_LIST(X) \
  X(_Znwm)                               \
  X(_Znam)                               \
  X(_ZnwmRKSt9nothrow_t)                 \
  X(_ZnamRKSt9nothrow_t)                 \
  X(_ZnwmSt11align_val_t)                \
  X(_ZnamSt11align_val_t)                \
  X(_ZnwmSt11align_val_tRKSt9nothrow_t)  \
  X(_ZnamSt11align_val_tRKSt9nothrow_t)  \
  X(_ZdlPv)                              \
  X(_ZdaPv)                              \
  X(_ZdlPvRKSt9nothrow_t)                \
  X(_ZdaPvRKSt9nothrow_t)                \
  X(_ZdlPvm)                             \
  X(_ZdaPvm)                             \
  X(_ZdlPvSt11align_val_t)               \
  X(_ZdaPvSt11align_val_t)               \
  X(_ZdlPvSt11align_val_tRKSt9nothrow_t) \
  X(_ZdaPvSt11align_val_tRKSt9nothrow_t) \
  X(_ZdlPvmSt11align_val_t)              \
  X(_ZdaPvmSt11align_val_t)
