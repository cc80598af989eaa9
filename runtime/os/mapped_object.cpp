// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/mapped_object.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/os/process.hpp"

namespace uhmm::os {
namespace {

// No buffer of the C library's: it would be on the program's heap.
constexpr std::size_t kDirectoryBytes = 4096;
struct DirectoryEntry {
  std::uint64_t inode;
  std::int64_t next;
  std::uint16_t bytes;
  std::uint8_t type;
  char name[1];
};

int open_again(int fd, int mode) {
  char path[48];
  std::snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  return open(path, mode | O_CLOEXEC);
}

// Among what the program has open. -1: nothing is that file, or not with that access.
int find_open(const Mapping& mapping, int mode) {
  const int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return -1;
  int found = -1;
  alignas(DirectoryEntry) char entries[kDirectoryBytes];
  for (long bytes; found < 0 && (bytes = syscall(SYS_getdents64, directory, entries, sizeof(entries))) > 0;) {
    for (long at = 0; found < 0 && at < bytes;) {
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(entries + at);
      at += entry->bytes;
      char* end = nullptr;
      const long fd = std::strtol(entry->name, &end, 10);
      struct stat facts {};
      if (end == entry->name || *end != '\0' || fstat(static_cast<int>(fd), &facts) != 0) continue;
      if (facts.st_dev != mapping.file_system || facts.st_ino != mapping.inode || !S_ISREG(facts.st_mode)) continue;
      found = open_again(static_cast<int>(fd), mode);
    }
  }
  close(directory);
  return found;
}

struct MapFilesPath {
  explicit MapFilesPath(const Mapping& mapping) {
    std::snprintf(text, sizeof(text), "/proc/self/map_files/%lx-%lx", mapping.range.begin.value,
                  mapping.range.end.value);
  }
  char text[80];
};

// The link can be read where it can't be followed. -1: that name is of another file by now.
int open_by_name(const Mapping& mapping) {
  char name[4096];
  const ssize_t length = readlink(MapFilesPath(mapping).text, name, sizeof(name) - 1);
  if (length < 0) return -1;
  name[length] = '\0';
  struct stat facts {};
  const auto is_it = [&] {
    return facts.st_dev == mapping.file_system && facts.st_ino == mapping.inode && S_ISREG(facts.st_mode);
  };
  if (stat(name, &facts) != 0 || !is_it()) return -1;
  const int fd = open(name, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || (fstat(fd, &facts) == 0 && is_it())) return fd;
  close(fd);
  return -1;
}

}  // namespace

Result<int> open_mapped(const Mapping& mapping) {
  const int mode = mapping.writable ? O_RDWR : O_RDONLY;
  const MapFilesPath path(mapping);
  // Looked at before it is opened: opening a device does something.
  struct stat facts {};
  const bool seen = stat(path.text, &facts) == 0;
  if (seen && !S_ISREG(facts.st_mode))
    return fail(UHMM_ERR_NOT_SUPPORTED, "what is mapped at %#lx is no memory and no regular file",
                mapping.range.begin.value);
  int fd = seen ? open(path.text, mode | O_CLOEXEC) : -1;
  const int error = errno;
  if (fd < 0) fd = find_open(mapping, mode);
  if (fd >= 0) return above_stdio(fd);
  if (error == ENOENT) return fail(UHMM_ERR_BUSY, "the mapping at %#lx has changed", mapping.range.begin.value);
  return fail(UHMM_ERR_NOT_SUPPORTED,
              "what is mapped at %#lx can't be opened: the program has no descriptor of it, and /proc/self/map_files "
              "takes CAP_CHECKPOINT_RESTORE (%s)",
              mapping.range.begin.value, strerrorname_np(error));
}

Result<int> open_mapped_file(Mapping mapping) {
  mapping.writable = false;
  Result<int> file = open_mapped(mapping);
  if (file.ok()) return file;
  const int fd = open_by_name(mapping);
  return fd >= 0 ? Result<int>(above_stdio(fd)) : file;
}

Result<int> open_mapped_at(const ProcessMemory& process, VirtAddr address) {
  constexpr int kMostTries = 100;
  for (int tries = 1;; ++tries) {
    Result<Mapping> mapping = process.find_mapping(address);
    if (!mapping.ok()) return mapping.status();
    if (!mapping->range.contains(address)) return fail(UHMM_ERR_FAULT, "nothing is mapped at %#lx", address.value);
    Result<int> file = open_mapped(*mapping);
    if (file.ok() || file.status().code() != UHMM_ERR_BUSY || tries == kMostTries) return file;
  }
}

bool shows(const Mapping& mapping, int file) {
  struct stat facts {};
  return fstat(file, &facts) == 0 && facts.st_dev == mapping.file_system && facts.st_ino == mapping.inode;
}

bool has_name(int file) {
  struct stat facts {};
  return fstat(file, &facts) == 0 && facts.st_nlink != 0;
}

}  // namespace uhmm::os
