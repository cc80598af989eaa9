// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/surroundings.hpp"

#include <dlfcn.h>
#include <zlib.h>

#include <array>
#include <filesystem>
#include <regex>
#include <sstream>

#include "runtime/os/machine.hpp"

namespace uhmm::tool {
namespace {

// Plain or compressed; nothing if it can't be read.
std::optional<std::string> read_config(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return std::nullopt;
  std::string text;
  std::array<char, 8192> piece;
  int count;
  while ((count = gzread(file, piece.data(), piece.size())) > 0)
    text.append(piece.data(), static_cast<std::size_t>(count));
  gzclose(file);
  return count < 0 ? std::nullopt : std::optional(text);
}

bool can_open(const char* library) {
  // A driver that goes again leaves behind what it has allocated, with nobody who knows of it: it stays.
  void* handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
  if (handle != nullptr) dlclose(handle);
  return handle != nullptr;
}

std::string nvidia_version(const std::string& text) {
  std::smatch match;
  return std::regex_search(text, match, std::regex(R"(\s(\d+\.\d+(\.\d+)?)\s)")) ? match[1].str() : "unknown version";
}

void look_for_hmm(Surroundings& found, const std::string& release, const std::string& root) {
  const std::array places{root + "/proc/config.gz", root + "/boot/config-" + release,
                          root + "/lib/modules/" + release + "/config"};
  for (const std::string& place : places) {
    const std::optional<std::string> config = read_config(place);
    if (!config) continue;
    found.kernel_config_file = place;
    std::istringstream lines(*config);
    found.kernel_hmm = false;
    for (std::string line; std::getline(lines, line);)
      if (line == "CONFIG_DEVICE_PRIVATE=y") found.kernel_hmm = true;
    return;
  }
  for (const std::string& place : places)
    found.kernel_config_file += (found.kernel_config_file.empty() ? "" : ", ") + place;
}

}  // namespace

Surroundings look_around(const std::string& kernel_release, const std::string& root) {
  Surroundings found;
  look_for_hmm(found, kernel_release, root);
  if (const auto text = os::read_text(root + "/proc/driver/nvidia/version"))
    found.nvidia_driver = nvidia_version(*text);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/proc/driver/nvidia/gpus", error))
    found.nvidia_gpus.push_back(entry.path().filename());
  found.nvidia_library = can_open("libcuda.so.1");
  found.amd_driver = std::filesystem::exists(root + "/dev/kfd", error);
  found.amd_library = can_open("libamdhip64.so") || can_open("libamdhip64.so.5") || can_open("libamdhip64.so.6");
  return found;
}

}  // namespace uhmm::tool
