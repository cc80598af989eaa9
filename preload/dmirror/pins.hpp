// SPDX-License-Identifier: Apache-2.0
// The kernel's gup_test file, which no process can be: its references to pages are taken here by system calls that take
// the same ones. Short ones by vmsplice(2); long-term ones, which may not be to device memory, by io_uring's registered
// buffers. Source: mm/gup_test.c.
#pragma once

#include <optional>

namespace uhmm::preload::dmirror {

// ioctl(2) on it: -1 with errno, or 0.
int control_pins(unsigned long request, void* argument);

}  // namespace uhmm::preload::dmirror
