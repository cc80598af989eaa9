// SPDX-License-Identifier: Apache-2.0
// How a test steers a double of a driver library: through functions that the library has besides the driver's own,
// found with dlsym() in the same library that the runtime has opened.
#pragma once

#include <cstddef>
#include <cstdint>

namespace uhmm::driver_double {

// X(identifier, default, meaning)
#define UHMM_DOUBLE_SETTINGS(X)                                                                  \
  X(DeviceMemory, std::uint64_t{1} << 30, "bytes of physical memory on the device")              \
  X(HostMemory, std::uint64_t{1} << 30, "bytes of pinned system memory for mappings")            \
  X(Devices, 1, "devices that the library says there are")                                       \
  X(Version, 13000, "the version that the driver says it is")                                    \
  X(Vmm, 1, "0: a device without virtual memory management")                                     \
  X(HostChunks, 1, "0: physical memory can't lie on the host")                                   \
  X(HonourHints, 1, "0: addresses are never reserved where they are asked for")                  \
  X(RawCalls, 0, "1: address space is taken by system calls of its own, not by the C library's") \
  X(NoPermission, 0, "1: the device files may not be opened")

enum class Setting : std::uint32_t {
#define UHMM_X(name, fallback, meaning) name,
  UHMM_DOUBLE_SETTINGS(UHMM_X)
#undef UHMM_X
      kCount
};

// What the library has handed out and not got back, and what it has seen.
struct Census {
  std::uint64_t reservations = 0;
  std::uint64_t chunks = 0;
  std::uint64_t mappings = 0;
  std::uint64_t streams = 0;
  std::uint64_t events = 0;
  std::uint64_t pinned = 0;     // allocations and registrations of host memory
  std::uint64_t executors = 0;  // processes that run kernels
  std::uint64_t device_bytes = 0;
  std::uint64_t host_bytes = 0;
  std::uint64_t pageable_copies = 0;  // of memory that is not pinned: the driver's lock was held meanwhile
};

struct Control {
  std::size_t size = sizeof(Control);
  void (*set)(Setting setting, std::uint64_t value) = nullptr;
  // The n-th call from now (1: the next) of a function fails with `error`; n == 0: none does. False: no such function.
  bool (*fail_call)(const char* function, std::uint64_t n, int error) = nullptr;
  bool (*failed)() = nullptr;                              // has that happened?
  std::uint64_t (*calls)(const char* function) = nullptr;  // how often it was called
  const char* (*function)(std::size_t index) = nullptr;    // every function by name, then nullptr
  Census (*census)() = nullptr;
  // Who is told before and after the double copies the process, which no driver of a real GPU does: the kernel's news
  // of it has to be read, whatever locks the runtime has.
  void (*tell_of_copies)(void (*listener)(bool begins)) = nullptr;
  // Everything as after loading, whatever state it is in.
  void (*reset)() = nullptr;
};

inline constexpr const char* kControlSymbol = "uhmm_driver_double_control";
using GetControl = const Control* (*)();

}  // namespace uhmm::driver_double
