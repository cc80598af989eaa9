// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/system_memory.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

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

}  // namespace uhmm::os
