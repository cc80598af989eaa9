// SPDX-License-Identifier: Apache-2.0
// What the kernel's page table of this process says of single pages, for those who report it.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/page_mask.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::os {

struct PageDetails {
  bool present = false;
  bool swapped = false;    // its contents are in swap, and no userfaultfd protects it
  bool file = false;       // of a file, or shared memory
  bool exclusive = false;  // mapped by this process alone
  bool zero = false;       // the page of zeros that reading untouched memory gives (6.7; before: unknown)
  bool huge = false;       // part of a huge page that is mapped as one (6.7; before: unknown)
};

// Is the page mapped as part of a huge page? `pagemap`: the open file. False where the kernel can't tell (before 6.7).
bool maps_huge(int pagemap, VirtAddr page);

// Fills in `out`, one page after the other from `first` on. Errors: SYSTEM.
Status page_details(VirtAddr first, std::span<PageDetails> out);

// Which pages of one block a system call would fault on, if userfaultfd watches them.
struct KernelFaults {
  PageMask absent;
  PageMask write_protected;  // asked for only with `write`
};
// What can't be told counts as absent.
KernelFaults kernel_faults(ByteRange pages, bool write);

}  // namespace uhmm::os
