// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/run.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace uhmm::tool {
namespace {

constexpr const char* kName = "libuhmm_preload.so";

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& word : words) list.push_back(word.data());
  list.push_back(nullptr);
  return list;
}

}  // namespace

std::string find_preload_library() {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  // In a build tree, and installed.
  for (const char* beside : {"../preload", "../" UHMM_LIBRARY_FOLDER "/uhmm"}) {
    const fs::path found = fs::weakly_canonical(here / beside / kName, error);
    if (fs::exists(found, error)) return found.string();
  }
  return "";
}

std::vector<std::string> preload_environment(const std::string& library, bool dmirror) {
  constexpr const char* kPreload = "LD_PRELOAD=";
  constexpr const char* kDmirror = "UHMM_DMIRROR=";
  std::vector<std::string> words;
  std::string preload = kPreload + library;
  for (char** word = environ; *word != nullptr; ++word) {
    if (strncmp(*word, kPreload, strlen(kPreload)) == 0)
      preload += std::string(":") + (*word + strlen(kPreload));
    else if (strncmp(*word, kDmirror, strlen(kDmirror)) != 0)
      words.emplace_back(*word);
  }
  words.push_back(preload);
  if (dmirror) words.push_back(std::string(kDmirror) + "1");
  return words;
}

int run(const std::vector<std::string>& command, bool dmirror) {
  const std::string library = find_preload_library();
  if (library.empty()) {
    std::fprintf(stderr, "uhmm: %s is not where this program's installation has it\n", kName);
    return 1;
  }
  std::vector<std::string> words = command;
  std::vector<std::string> environment = preload_environment(library, dmirror);
  execvpe(words[0].c_str(), pointers(words).data(), pointers(environment).data());
  const int error = errno;
  std::fprintf(stderr, "uhmm: %s: %s\n", words[0].c_str(), std::strerror(error));
  return error == ENOENT ? 127 : 126;
}

}  // namespace uhmm::tool
