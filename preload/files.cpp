// SPDX-License-Identifier: Apache-2.0
// Calls of the program that open, use and close files: a few of them are devices that only uhmm has.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "preload/dmirror/dmirror.hpp"
#include "preload/managed.hpp"
#include "preload/real.hpp"

#define UHMM_INTERPOSE extern "C" __attribute__((visibility("default")))

namespace {

// The mode is there only when a file may be made.
#define UHMM_MODE(flags, mode)                                      \
  mode_t mode = 0;                                                  \
  if (((flags)&O_CREAT) != 0 || ((flags)&O_TMPFILE) == O_TMPFILE) { \
    va_list arguments;                                              \
    va_start(arguments, flags);                                     \
    mode = va_arg(arguments, mode_t);                               \
    va_end(arguments);                                              \
  }

int open_at(int folder, const char* path, int flags, mode_t mode) {
  using namespace uhmm::preload;
  if (called_by_program())
    if (const std::optional<int> opened = dmirror::open(path, flags)) return *opened;
  return real::openat(folder, path, flags, mode);
}

}  // namespace

// NOLINTBEGIN(cert-dcl50-cpp): variadic as what they stand for
UHMM_INTERPOSE int open(const char* path, int flags, ...) {
  UHMM_MODE(flags, mode)
  return open_at(AT_FDCWD, path, flags, mode);
}
UHMM_INTERPOSE int open64(const char* path, int flags, ...) {
  UHMM_MODE(flags, mode)
  return open_at(AT_FDCWD, path, flags, mode);
}
UHMM_INTERPOSE int openat(int folder, const char* path, int flags, ...) {
  UHMM_MODE(flags, mode)
  return open_at(folder, path, flags, mode);
}
UHMM_INTERPOSE int openat64(int folder, const char* path, int flags, ...) {
  UHMM_MODE(flags, mode)
  return open_at(folder, path, flags, mode);
}
UHMM_INTERPOSE int __open_2(const char* path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
UHMM_INTERPOSE int __open64_2(const char* path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
UHMM_INTERPOSE int __openat_2(int folder, const char* path, int flags) { return open_at(folder, path, flags, 0); }
UHMM_INTERPOSE int __openat64_2(int folder, const char* path, int flags) { return open_at(folder, path, flags, 0); }

UHMM_INTERPOSE int close(int fd) {
  using namespace uhmm::preload;
  return called_by_program() ? dmirror::close(fd) : real::close(fd);
}

UHMM_INTERPOSE int ioctl(int fd, unsigned long request, ...) {
  using namespace uhmm::preload;
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (called_by_program())
    if (const std::optional<int> done = dmirror::control(fd, request, argument)) return *done;
  return real::ioctl(fd, request, argument);
}
// NOLINTEND(cert-dcl50-cpp)
