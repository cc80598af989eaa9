// SPDX-License-Identifier: Apache-2.0
// What programs share that are run by `uhmm run --dmirror`: commands of a mirror device, and a count of what went
// wrong.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct command {
  uint64_t addr, ptr, npages, cpages, faults;
};
enum { READ, WRITE, TO_DEVICE, TO_SYSTEM, SNAPSHOT, EXCLUSIVE, CHECK_EXCLUSIVE, RELEASE, FLAGS, READ_UNLOCKED };
enum { PAGE = 4096 };

static int device;
static int failures;

#define EXPECT(condition)                                                                          \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s (errno: %s)\n", __func__, __LINE__, #condition, strerror(errno)); \
      ++failures;                                                                                  \
    }                                                                                              \
  } while (0)

static inline int command(int number, void* at, size_t pages, void* data, struct command* out) {
  struct command words = {(uint64_t)at, (uint64_t)data, pages, 0, 0};
  const int error = ioctl(device, _IOWR('H', number, struct command), &words) == 0 ? 0 : errno;
  if (out != NULL) *out = words;
  return error;
}
static inline char* map(size_t bytes) {
  return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
