// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/live_parts.hpp"

#include "preload/heap/areas.hpp"
#include "preload/managed.hpp"

namespace uhmm::preload::heap {

void LiveParts::look_again() {
  if (seen_version_ == managed_version() && seen_taken_ == bytes_taken()) return;
  seen_version_ = managed_version();
  seen_taken_ = bytes_taken();
  parts_ = managed_parts({VirtAddr{std::uint64_t{0}}, VirtAddr{kUserSpaceEnd}});
  // What an area still has in store was never touched.
  for (std::uint32_t i = 0; i < area_count(); ++i) {
    const Area* one = area(i);
    if (one == nullptr) continue;
    const ByteRange rest{one->live().end, VirtAddr{one->end}};
    for (std::size_t part = 0; part < parts_.size(); ++part) {
      const ByteRange whole = parts_[part];
      const ByteRange unused = whole.intersect(rest);
      if (unused.empty()) continue;
      parts_[part] = {whole.begin, unused.begin};
      if (unused.end < whole.end) parts_.push_back({unused.end, whole.end});
    }
  }
  bytes_ = 0;
  for (const ByteRange& part : parts_) bytes_ += part.bytes();
}

}  // namespace uhmm::preload::heap
