// SPDX-License-Identifier: Apache-2.0
// For tests that run in several configurations, and for those that have other processes do things.
#pragma once

#include <sys/wait.h>

#include <cstdint>
#include <ostream>

namespace uhmm::test {

struct Mode {
  const char* name;
  std::uint32_t flags;  // UHMM_CONFIG_*
};
inline void PrintTo(const Mode& mode, std::ostream* out) { *out << mode.name; }  // GoogleTest's name

// What a child ended with: its exit code, 1000 + the signal that killed it, or -1.
inline int exit_code_of(pid_t child) {
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

}  // namespace uhmm::test
