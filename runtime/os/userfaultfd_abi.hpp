// SPDX-License-Identifier: Apache-2.0
// What an installed <linux/userfaultfd.h> that is older than the running kernel lacks: under our own names where the
// layout matters, and tested at run time. For the files of this room that speak to userfaultfd.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace uhmm::os {

struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t moved;
};
inline constexpr std::uint64_t kMoveDontWake = 1;
struct PoisonArgs {
  struct uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
inline constexpr unsigned long kMoveRequest = _IOWR(UFFDIO, 0x05, MoveArgs);
inline constexpr unsigned long kPoisonRequest = _IOWR(UFFDIO, 0x08, PoisonArgs);
inline constexpr std::uint64_t kContinueWriteProtected = 2;

}  // namespace uhmm::os
