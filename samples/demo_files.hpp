// SPDX-License-Identifier: Apache-2.0
// Files for the demo: what it reads when no file is named, plain read(2) and write(2), a temporary file.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace demo {

inline constexpr std::size_t kTransferBytes = std::size_t{1} << 20;  // of one read(2) or write(2)

[[noreturn]] inline void fail_with_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

inline Descriptor open_for_reading(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_with_errno("can't open " + path);
  return Descriptor(fd);
}

struct Source {
  std::string path;
  std::size_t bytes;
};

inline Source source_from_path(const std::string& path) {
  const Descriptor file = open_for_reading(path);
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail_with_errno("can't stat " + path);
  if (!S_ISREG(info.st_mode)) throw std::runtime_error(path + " is not a regular file");
  return {path, static_cast<std::size_t>(info.st_size)};
}

// Files of this machine, whatever it has, until there are `wanted` bytes: first libraries, then anything.
inline std::vector<Source> sources_of_this_machine(std::size_t wanted) {
  namespace fs = std::filesystem;
  constexpr std::uintmax_t kSmallest = 64 << 10;
  constexpr std::uintmax_t kLargest = 32 << 20;
  std::vector<Source> found;
  std::size_t total = 0;
  for (const char* root : {"/usr/lib", "/usr/bin", "/usr/share", "/lib", "/bin"}) {
    std::error_code error;
    fs::recursive_directory_iterator entry(root, fs::directory_options::skip_permission_denied, error);
    for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
      std::error_code ignored;
      if (entry->is_symlink(ignored) || !entry->is_regular_file(ignored)) continue;
      const std::uintmax_t bytes = entry->file_size(ignored);
      if (ignored || bytes < kSmallest || bytes > kLargest) continue;
      if (::access(entry->path().c_str(), R_OK) != 0) continue;
      found.push_back({entry->path().string(), static_cast<std::size_t>(bytes)});
      total += found.back().bytes;
      if (total >= wanted) return found;
    }
  }
  return found;  // a small machine: what there is
}

using OnProgress = std::function<void(std::size_t bytes_done)>;

// The files, one after the other, into `memory`, by read(2).
inline void read_sources(const std::vector<Source>& sources, std::span<unsigned char> memory,
                         const OnProgress& on_progress) {
  std::size_t done = 0;
  for (const Source& source : sources) {
    const Descriptor file = open_for_reading(source.path);
    for (std::size_t left = source.bytes; left > 0;) {
      const ssize_t got = ::read(file.get(), memory.data() + done, std::min(left, kTransferBytes));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_with_errno("read(2) of " + source.path);
      if (got == 0) throw std::runtime_error(source.path + " became shorter while it was read");
      done += static_cast<std::size_t>(got);
      left -= static_cast<std::size_t>(got);
      on_progress(done);
    }
  }
}

// A file without a name: gone when it is closed, also after a crash.
inline Descriptor temporary_file() {
  std::string path = (std::filesystem::temp_directory_path() / "uhmm-demo-XXXXXX").string();
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) fail_with_errno("can't make a temporary file " + path);
  ::unlink(path.c_str());
  return Descriptor(fd);
}

inline void write_all(int fd, std::span<const unsigned char> memory, const OnProgress& on_progress) {
  for (std::size_t done = 0; done < memory.size();) {
    const ssize_t put = ::write(fd, memory.data() + done, std::min(memory.size() - done, kTransferBytes));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EFAULT) {
      throw std::runtime_error(
          "write(2) from device memory: EFAULT. Here userfaultfd may not serve faults of system calls: run as root, "
          "give "
          "access to /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1");
    }
    if (put < 0) fail_with_errno("write(2) of the temporary file");
    done += static_cast<std::size_t>(put);
    on_progress(done);
  }
}

// What is in the file now, from its beginning.
inline std::vector<unsigned char> read_back(int fd, std::size_t bytes) {
  std::vector<unsigned char> contents(bytes);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t got = ::pread(fd, contents.data() + done, bytes - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno("pread(2) of the temporary file");
    if (got == 0) throw std::runtime_error("the temporary file is shorter than what was written");
    done += static_cast<std::size_t>(got);
  }
  return contents;
}

}  // namespace demo
