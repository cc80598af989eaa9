// SPDX-License-Identifier: Apache-2.0
// Data of devices whose memory the CPU can't see, on its way through a buffer of the runtime's.
#pragma once

#include "runtime/base/arena.hpp"
#include "runtime/engine/context.hpp"

namespace uhmm::engine {

class Bounce {
 public:
  static constexpr std::size_t kBytes = 16 * kPageBytes;

  Bounce() = default;
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;
  ~Bounce() {
    if (memory_ != nullptr) Arena::instance().deallocate(memory_, kBytes, kPageBytes);
  }

  // nullptr: out of memory.
  std::byte* memory() {
    if (memory_ == nullptr) memory_ = static_cast<std::byte*>(Arena::instance().allocate(kBytes, kPageBytes));
    return memory_;
  }
  // The device's data of these pages, kBytes at most; nullptr where it can't be had.
  const std::byte* fill(Context& context, const Segment& segment, DeviceIndex from, ByteRange pages);

 private:
  std::byte* memory_ = nullptr;
};

// Both under the block's lock. From one device to another; and from the program's protected pages to a device.
Status copy_between(Context& context, const Segment& segment, DeviceIndex from, DeviceIndex to, ByteRange pages);
Status copy_by_bounce(Context& context, const Segment& segment, DeviceIndex to, ByteRange pages);

}  // namespace uhmm::engine
