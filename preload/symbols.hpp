// SPDX-License-Identifier: Apache-2.0
// The C library's functions that the preloaded library answers in its place: the one list. preload.map and the test of
// the library's dynamic symbols are checked against it.
#pragma once

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
  X(mmap)                       \
  X(mmap64)                     \
  X(munmap)                     \
  X(mremap)                     \
  X(mprotect)                   \
  X(madvise)
