// SPDX-License-Identifier: Apache-2.0
// GPUs, their drivers, and whether the kernel has HMM itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace uhmm::tool {

struct Surroundings {
  // CONFIG_DEVICE_PRIVATE; nothing: the kernel's configuration can't be read.
  std::optional<bool> kernel_hmm;
  std::string kernel_config_file;  // where that was read, or the places that were tried

  std::string nvidia_driver;             // version; empty: not loaded
  std::vector<std::string> nvidia_gpus;  // names of their /proc folders
  bool nvidia_library = false;           // libcuda.so.1 can be opened
  bool amd_driver = false;               // /dev/kfd is there
  bool amd_library = false;              // libamdhip64.so can be opened
};

// `root`: where /proc and /boot are looked for; tests bring their own.
Surroundings look_around(const std::string& kernel_release, const std::string& root = "");

}  // namespace uhmm::tool
