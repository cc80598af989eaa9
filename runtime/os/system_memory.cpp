// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/system_memory.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/base/types.hpp"

namespace uhmm::os {
namespace {

// The beginning of a small file as text; empty when there is none.
template <std::size_t N>
bool read_text(const char* path, char (&text)[N]) {
  text[0] = '\0';
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t count = read(file, text, N - 1);
  close(file);
  text[count > 0 ? count : 0] = '\0';
  return count > 0;
}

std::uint64_t meminfo(const char* text, const char* key) {
  const char* line = std::strstr(text, key);
  return line == nullptr ? 0 : std::strtoull(line + std::strlen(key), nullptr, 10) << 10;
}

}  // namespace

SystemMemory system_memory() {
  char text[2048];
  SystemMemory memory;
  if (!read_text("/proc/meminfo", text)) return memory;
  memory.total = meminfo(text, "MemTotal:");
  memory.available = meminfo(text, "MemAvailable:");
  // Version 2 shows a container its own group here; "max" is no number and no limit.
  if (read_text("/sys/fs/cgroup/memory.max", text)) {
    const std::uint64_t limit = std::strtoull(text, nullptr, 10);
    if (limit != 0 && limit < memory.total) {
      memory.total = limit;
      const bool told = read_text("/sys/fs/cgroup/memory.current", text);
      const std::uint64_t used = told ? std::strtoull(text, nullptr, 10) : 0;
      memory.available = std::min(memory.available, limit - std::min(limit, used));
    }
  }
  return memory;
}

OwnMemory::~OwnMemory() {
  if (file_ >= 0) close(file_);
}

int OwnMemory::open() {
  file_ = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  return file_ >= 0 ? 0 : errno;
}

std::uint64_t OwnMemory::private_bytes() const {
  char text[128];
  const ssize_t count = pread(file_, text, sizeof(text) - 1, 0);
  if (count <= 0) return 0;
  text[count] = '\0';
  // size, resident, of that shared with files: in pages.
  char* at = text;
  std::strtoull(at, &at, 10);
  const std::uint64_t resident = std::strtoull(at, &at, 10);
  const std::uint64_t shared = std::strtoull(at, &at, 10);
  return resident > shared ? (resident - shared) << kPageShift : 0;
}

}  // namespace uhmm::os
