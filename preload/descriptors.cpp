// SPDX-License-Identifier: Apache-2.0
#include "preload/descriptors.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>

namespace uhmm::preload {
namespace {

constexpr int kMost = 4096;   // higher ones are not kept track of
constexpr int kNeeded = 128;  // eight devices' and the runtime's own, with room to spare
constexpr int kFirst = 3;

constinit std::bitset<kMost> kept;
constinit pid_t owner = -1;

bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

// Where the runtime's may begin: below the limit that programs with few descriptors have. 0: there is no room.
int floor_of_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const auto most = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1024));
  return most >= 2 * kNeeded ? most - kNeeded : 0;
}

}  // namespace

HighDescriptors::HighDescriptors() {
  const int floor = floor_of_limit();
  // Whatever is free below is taken for a moment.
  const int filler = floor != 0 ? ::open("/dev/null", O_RDONLY | O_CLOEXEC) : -1;
  if (filler < 0) return;
  kept.reset();
  int last = filler;
  while (last >= 0 && last < floor) {
    kept.set(static_cast<std::size_t>(last));
    last = fcntl(filler, F_DUPFD_CLOEXEC, last + 1);
  }
  if (last >= floor) (void)syscall(SYS_close, last);
  floor_ = floor;
  // What is open above belongs to whoever started the program.
  for (int fd = floor; fd < kMost; ++fd)
    if (is_open(fd)) kept.set(static_cast<std::size_t>(fd));
}

HighDescriptors::~HighDescriptors() {
  if (floor_ == 0) {
    return;
  }
  for (int fd = kFirst; fd < floor_; ++fd)
    if (kept.test(static_cast<std::size_t>(fd))) (void)syscall(SYS_close, fd);
  std::bitset<kMost> before = kept;
  kept.reset();
  for (int fd = floor_; fd < kMost; ++fd)
    if (is_open(fd) && !before.test(static_cast<std::size_t>(fd))) kept.set(static_cast<std::size_t>(fd));
  owner = getpid();
}

bool is_protected(int fd) {
  return fd >= kFirst && fd < kMost && kept.test(static_cast<std::size_t>(fd)) && owner == getpid();
}

int close_unprotected(unsigned first, unsigned last, int flags) {
  // Close-on-exec they are, all of them.
  for (unsigned at = first; at <= last;) {
    while (at <= last && is_protected(static_cast<int>(std::min(at, unsigned{kMost})))) ++at;
    unsigned end = at;
    while (end < last && end < kMost && !is_protected(static_cast<int>(end + 1))) ++end;
    if (end >= kMost) end = last;
    if (at > last) break;
    if (syscall(SYS_close_range, at, end, flags) != 0) return -1;
    if (end == ~0u) break;
    at = end + 1;
  }
  return 0;
}

}  // namespace uhmm::preload
