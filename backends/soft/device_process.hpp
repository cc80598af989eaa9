// SPDX-License-Identifier: Apache-2.0
// What runs in the device process: control threads that change its memory map on request, workers that run kernels, and
// a first thread that ends the process when the program is gone.
//
// The process is a copy of the program, but only stacks, the control segment and device memory are its own: anything
// else may at any moment be covered by managed memory. So after its start this code uses no heap and no global state.
#pragma once

#include <cstdint>

#include "backends/soft/channel.hpp"

// For code that runs where sanitizers have lost their way: in signal handlers, and on the first thread's stack, which
// AddressSanitizer does not know.
#define UHMM_NO_SANITIZE __attribute__((no_sanitize("address", "thread", "undefined")))

namespace uhmm::soft {

struct DeviceProcess {
  Control* control = nullptr;
  PrivateArea area;
  int memory_file = -1;
  int program_pidfd = -1;  // readable when the program is dead
  int files = -1;          // a socket that files to mirror come by
  int socket = -1;         // hung up when the program is dead or has become another one by exec
  std::uint32_t control_cpus[kMostMailboxes * 64] = {};  // row m: CPUs of control thread m
  std::uint32_t control_cpu_count[kMostMailboxes] = {};
  char name[8] = {};
};

// The new process's main function; `argument` is a DeviceProcess. Does not return.
void device_process_main(void* argument);

// Bodies of its threads; they never return.
[[noreturn]] void run_worker(Control& control, std::uint32_t worker) noexcept;
// Takes over fatal signals and exit(). Called once, before any other thread exists.
void install_crash_reports(Control& control, const PrivateArea& area);
// For the calling thread.
void arm_crash_reports(Control& control, std::byte* alternate_stack, std::uint32_t worker);

// The internal kernel behind Device::access: copies between managed memory and a bounce buffer. Memory that it can't
// reach ends the copy, not the process.
struct AccessArgs {
  std::uint64_t address;
  std::byte* bounce;
  std::atomic<std::uint64_t>* left;
  std::uint64_t bytes;
  std::uint32_t is_write;
};
void access_kernel(const uhmm_kernel_item* item, void* args);
// For the handler of fatal signals: where a thread goes on that failed at `instruction`. 0: it was no access.
std::uint64_t resume_of_access(std::uint64_t instruction);

}  // namespace uhmm::soft
