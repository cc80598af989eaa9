// SPDX-License-Identifier: Apache-2.0
// The devices /dev/hmm_dmirror0 to 3 of the kernel's HMM test module, served by soft devices. A descriptor is one end
// of a socket pair whose other end this process keeps: it may be duplicated, inherited and closed as any other, and
// always stands for the memory of the process that opened it. Source: lib/test_hmm.c.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>

namespace uhmm::preload::dmirror {

// open(2): a descriptor, or -1 with errno. Nothing: the path is no device's, or `uhmm run --dmirror` was not asked for.
std::optional<int> open(const char* path, int flags);
// ioctl(2). Nothing: the descriptor is no device's.
std::optional<int> control(int fd, unsigned long request, void* argument);
// mmap(2), also of a device's descriptor.
void* map(void* address, std::size_t length, int protection, int flags, int fd, off_t offset);
// close(2): when the last descriptor of an open goes, the device's pages have come home before it returns.
int close(int fd);

}  // namespace uhmm::preload::dmirror
