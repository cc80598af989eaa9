// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/check.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace uhmm {

void panic(const char* file, int line, const char* expression, const char* why) {
  char text[512];
  const int wanted =
      std::snprintf(text, sizeof text, "uhmm: %s:%d: %s: check failed: %s\n", file, line, why, expression);
  const int length = std::clamp(wanted, 0, static_cast<int>(sizeof text) - 1);
  if (length == static_cast<int>(sizeof text) - 1) text[length - 1] = '\n';
  // Nothing can be done when stderr is closed; abort() says the rest.
  if (write(STDERR_FILENO, text, static_cast<std::size_t>(length)) < 0) std::abort();
  std::abort();
}

}  // namespace uhmm
