// SPDX-License-Identifier: Apache-2.0
// What is registered, asked by those who stand between the program and the kernel: on threads of the program.
#pragma once

#include <memory>
#include <span>

#include "runtime/state/range_index.hpp"

namespace uhmm::api {

// The first registered ranges that overlap `pages`, ascending, as many as there is room for. No lock is taken and
// nothing is waited for. None where no runtime is running.
std::size_t registered_ranges(ByteRange pages, std::span<state::RangeIndex::Entry> out);

// Pages that were a private file mapping until they were registered, and what the file has for them.
struct FilePart {
  ByteRange pages;  // empty: no more
  const std::byte* bytes = nullptr;
  std::shared_ptr<const void> keeps;  // `bytes` stay as long as this
};
// The first of them in `pages`. Waits for a worker.
FilePart first_file_part(ByteRange pages);

}  // namespace uhmm::api
