// SPDX-License-Identifier: Apache-2.0
#include "preload/descriptors.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "runtime/os/descriptors.hpp"

namespace uhmm::preload {
namespace {

constexpr int kMost = 4096;   // higher ones are not kept track of
constexpr int kNeeded = 128;  // eight devices' and the runtime's own, with room to spare
constexpr int kFirst = 3;

// A set of descriptors that threads of the runtime change beside others that look.
class Numbers {
 public:
  bool has(int fd) const { return (word(fd).load() & bit(fd)) != 0; }
  void add(int fd) { word(fd).fetch_or(bit(fd)); }
  void remove(int fd) { word(fd).fetch_and(~bit(fd)); }
  void clear() {
    for (auto& word : words_) word.store(0);
  }

 private:
  static std::uint64_t bit(int fd) { return std::uint64_t{1} << (static_cast<unsigned>(fd) % 64); }
  std::atomic<std::uint64_t>& word(int fd) { return words_[static_cast<std::size_t>(fd) / 64]; }
  const std::atomic<std::uint64_t>& word(int fd) const { return words_[static_cast<std::size_t>(fd) / 64]; }
  std::array<std::atomic<std::uint64_t>, kMost / 64> words_{};
};

constinit Numbers kept;
constinit pid_t owner = -1;

void note(int fd, bool ours) {
  if (fd < kFirst || fd >= kMost) return;
  if (ours)
    kept.add(fd);
  else
    kept.remove(fd);
}

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
  kept.clear();
  int last = filler;
  while (last >= 0 && last < floor) {
    kept.add(last);
    last = fcntl(filler, F_DUPFD_CLOEXEC, last + 1);
  }
  if (last >= floor) (void)syscall(SYS_close, last);
  floor_ = floor;
  // What is open above belongs to whoever started the program.
  for (int fd = floor; fd < kMost; ++fd)
    if (is_open(fd)) kept.add(fd);
}

HighDescriptors::~HighDescriptors() {
  if (floor_ == 0) {
    return;
  }
  for (int fd = kFirst; fd < floor_; ++fd)
    if (kept.has(fd)) {
      (void)syscall(SYS_close, fd);
      kept.remove(fd);
    }
  for (int fd = floor_; fd < kMost; ++fd) {
    if (kept.has(fd))
      kept.remove(fd);
    else if (is_open(fd))
      kept.add(fd);
  }
  owner = getpid();
  os::set_descriptor_guard(floor_, note);
}

bool is_protected(int fd) { return fd >= kFirst && fd < kMost && kept.has(fd) && owner == getpid(); }

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
