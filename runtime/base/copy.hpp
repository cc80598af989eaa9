// SPDX-License-Identifier: Apache-2.0
// Copying whole pages. Many of them at once don't fit the caches, so their destination isn't read into the caches
// first: memcpy does that too, but only above a size that a block never reaches.
#pragma once

#include <cstddef>

namespace uhmm {

// Both page-aligned, not overlapping; `bytes` a multiple of the page size.
void copy_pages(std::byte* to, const std::byte* from, std::size_t bytes);

}  // namespace uhmm
