// SPDX-License-Identifier: Apache-2.0
// References of the kernel to pages, taken and let go again, as drivers take them.
#pragma once

#include <cstdint>

#include "runtime/base/types.hpp"

namespace uhmm::os {

struct PinTimes {
  std::uint64_t get_ns = 0;
  std::uint64_t put_ns = 0;
};

// Short ones (get_user_pages), by vmsplice(2). At most 16 pages. 0 or an errno; times are added.
int reference_pages(ByteRange pages, PinTimes* times);
// Long-term ones (pin_user_pages with FOLL_LONGTERM), by registering a buffer with an io_uring. 0 or an errno.
int pin_pages(ByteRange pages, PinTimes* times);

}  // namespace uhmm::os
