// SPDX-License-Identifier: Apache-2.0
// The runtime's own descriptors in a program that knows nothing of them: out of the way of the numbers that programs
// choose, and out of reach of those that close everything. Without them all that is away would be lost.
#pragma once

#include <cstdint>

namespace uhmm::preload {

// While it lives, descriptors that are opened get high numbers; afterwards those are protected, and those that the
// runtime keeps later (runtime/os/descriptors.hpp). Not beside other threads of the program.
class HighDescriptors {
 public:
  HighDescriptors();
  HighDescriptors(const HighDescriptors&) = delete;
  HighDescriptors& operator=(const HighDescriptors&) = delete;
  ~HighDescriptors();

 private:
  int floor_ = 0;
};

// May the program not close it? Never in a child, which has descriptors of its own.
bool is_protected(int fd);
// Closes what is not protected of [first, last]. 0, or -1 with errno.
int close_unprotected(unsigned first, unsigned last, int flags);

}  // namespace uhmm::preload
