// SPDX-License-Identifier: Apache-2.0
// Calls of the program that would take the runtime's descriptors away, and those that end the process unasked.
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/descriptors.hpp"
#include "preload/heap/report.hpp"
#include "preload/managed.hpp"
#include "preload/real.hpp"

#define UHMM_INTERPOSE extern "C" __attribute__((visibility("default")))

namespace {

bool taken(int fd, int error) {
  if (!uhmm::preload::is_protected(fd) || !uhmm::preload::called_by_program()) return false;
  errno = error;
  return true;
}

}  // namespace

// As if it were not there.
UHMM_INTERPOSE int close(int fd) { return taken(fd, EBADF) ? -1 : uhmm::preload::real::close(fd); }

UHMM_INTERPOSE int dup2(int from, int to) noexcept {
  return from != to && taken(to, EBUSY) ? -1 : static_cast<int>(syscall(SYS_dup2, from, to));
}
UHMM_INTERPOSE int dup3(int from, int to, int flags) noexcept {
  return taken(to, EBUSY) ? -1 : static_cast<int>(syscall(SYS_dup3, from, to, flags));
}

UHMM_INTERPOSE int close_range(unsigned first, unsigned last, int flags) noexcept {
  if (first > last || !uhmm::preload::called_by_program())
    return static_cast<int>(syscall(SYS_close_range, first, last, flags));
  return uhmm::preload::close_unprotected(first, last, flags);
}
UHMM_INTERPOSE void closefrom(int first) noexcept {
  (void)uhmm::preload::close_unprotected(first < 0 ? 0 : static_cast<unsigned>(first), ~0u, 0);
}

UHMM_INTERPOSE void _exit(int status) {
  uhmm::preload::heap::write_report();
  for (;;) (void)syscall(SYS_exit_group, status);
}
UHMM_INTERPOSE void _Exit(int status) noexcept { _exit(status); }
