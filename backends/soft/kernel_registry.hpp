// SPDX-License-Identifier: Apache-2.0
// Which code the device process knows: what was loaded when it started. And names of kernels for messages.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::soft {

class KernelRegistry {
 public:
  KernelRegistry() = default;
  KernelRegistry(const KernelRegistry&) = delete;
  KernelRegistry& operator=(const KernelRegistry&) = delete;
  ~KernelRegistry();

  // Record what is loaded now. User threads only: takes the dynamic linker's lock. Errors: NO_MEMORY.
  Status record();
  // UNKNOWN_KERNEL, with the library that the function is in. User threads only; a kernel's name is looked up once and
  // kept for describe().
  Status check(const void* kernel);
  // "0x... (name in libfoo.so)", as far as known. Takes no lock: any thread.
  void describe(std::uint64_t kernel, std::span<char> text) const;

 private:
  static constexpr std::size_t kNames = 256;
  struct Name {
    std::atomic<std::uint64_t> kernel{0};  // 0: free
    std::atomic<bool> complete{false};
    char text[120] = {};
  };
  void remember(const void* kernel);
  void release();

  ByteRange* segments_ = nullptr;  // executable, ascending
  std::size_t count_ = 0;
  std::size_t capacity_ = 0;
  std::array<Name, kNames> names_;
};

}  // namespace uhmm::soft
