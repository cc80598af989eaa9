// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/descriptors.hpp"

#include <fcntl.h>

#include <atomic>

#include "runtime/os/bare.hpp"

namespace uhmm::os {
namespace {

using Note = void (*)(int fd, bool ours);
constinit std::atomic<int> guarded_floor{0};
constinit std::atomic<Note> guard{nullptr};

}  // namespace

void set_descriptor_guard(int floor, Note note) {
  guarded_floor.store(floor);
  guard.store(note, std::memory_order_release);
}

int keep_descriptor(int fd) {
  const Note note = guard.load(std::memory_order_acquire);
  if (fd < 0 || note == nullptr) return fd;
  // Where no higher number is free it keeps its own.
  const int high = fcntl(fd, F_DUPFD_CLOEXEC, guarded_floor.load());
  if (high >= 0) bare::close(fd);
  const int kept = high >= 0 ? high : fd;
  note(kept, true);
  return kept;
}

void close_kept(int fd) {
  if (fd < 0) return;
  // First: the number may be somebody else's at once.
  if (const Note note = guard.load(std::memory_order_acquire)) note(fd, false);
  bare::close(fd);
}

}  // namespace uhmm::os
