// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/fork_advice.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace uhmm::os {
namespace {

// The head of a mapping: "begin-end rwxp ...". False for other lines.
bool parse_head(const char* line, ByteRange* out) {
  std::uint64_t bounds[2] = {};
  for (int i = 0; i < 2; ++i) {
    const char* start = line;
    for (; (*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f'); ++line)
      bounds[i] = bounds[i] << 4 | static_cast<std::uint64_t>(*line <= '9' ? *line - '0' : *line - 'a' + 10);
    if (line == start || *line != (i == 0 ? '-' : ' ')) return false;
    ++line;
  }
  *out = {VirtAddr{bounds[0]}, VirtAddr{bounds[1]}};
  return true;
}

// `flag`: two letters after a space, as in the kernel's list.
bool for_each_with(const char* flag, void (*visit)(void* context, ByteRange pages), void* context) {
  const int file = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  ByteRange mapping;
  char line[256];  // a longer one (a path) is cut; what is looked for is not
  std::size_t length = 0;
  char buffer[16384];
  ssize_t count = 0;
  while ((count = read(file, buffer, sizeof(buffer))) > 0) {
    for (ssize_t i = 0; i < count; ++i) {
      if (buffer[i] != '\n') {
        if (length + 1 < sizeof(line)) line[length++] = buffer[i];
        continue;
      }
      line[length] = '\0';
      length = 0;
      if (std::strncmp(line, "VmFlags:", 8) == 0) {
        if (std::strstr(line, flag) != nullptr) visit(context, mapping);
      } else {
        (void)parse_head(line, &mapping);
      }
    }
  }
  close(file);
  return count == 0;
}

}  // namespace

bool for_each_wiped(void (*visit)(void* context, ByteRange pages), void* context) {
  return for_each_with(" wf", visit, context);
}

bool for_each_kept(void (*visit)(void* context, ByteRange pages), void* context) {
  return for_each_with(" dc", visit, context);
}

void keep_from_copies(ByteRange pages, bool on) {
  (void)madvise(pages.begin.pointer(), pages.bytes(), on ? MADV_DONTFORK : MADV_DOFORK);
}

}  // namespace uhmm::os
