// SPDX-License-Identifier: Apache-2.0
// Another library's calls of the C library, answered by a function of ours: the slots through which it calls are
// rewritten. For drivers, which take address space with mmap() where the program's memory lies already.
#pragma once

#include <cstddef>

namespace uhmm::os {

struct Redirect {
  const char* function;
  void* replacement;
};

// In the library that dlopen() gave as `handle`. Returns how many slots lead to the replacements now: 0 where it has
// none, because it calls by other means, or on another processor than x86-64 and aarch64.
std::size_t redirect_calls(void* handle, const Redirect* redirects, std::size_t count);

}  // namespace uhmm::os
