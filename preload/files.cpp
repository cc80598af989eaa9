// SPDX-License-Identifier: Apache-2.0
// Calls of the program that open, use and close files: a few of them are devices that only uhmm has.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>

#include "preload/dmirror/dmirror.hpp"
#include "preload/kernel_access.hpp"
#include "preload/managed.hpp"
#include "preload/next.hpp"
#include "preload/real.hpp"

using namespace uhmm::preload;

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
  if (called_by_program())
    if (const std::optional<int> opened = dmirror::open(path, flags)) return *opened;
  return retried(
      -1, [&] { return real::openat(folder, path, flags, mode); }, [&] { return make_ready({text(path)}); });
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

UHMM_INTERPOSE int close(int fd) { return called_by_program() ? dmirror::close(fd) : real::close(fd); }

UHMM_INTERPOSE int ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (called_by_program())
    if (const std::optional<int> done = dmirror::control(fd, request, argument)) return *done;
  // Its size is often in the number; what it points to is beyond us.
  return retried(
      -1, [&] { return real::ioctl(fd, request, argument); },
      [&] { return make_ready({out(argument, std::max<std::size_t>(_IOC_SIZE(request), 256))}); });
}
// NOLINTEND(cert-dcl50-cpp)
