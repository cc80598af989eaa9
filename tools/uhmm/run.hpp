// SPDX-License-Identifier: Apache-2.0
// Running a program with uhmm ahead of its libraries.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace uhmm::tool {

struct RunCommand {
  std::vector<std::string> program;  // and its arguments
  bool dmirror = false;              // the devices of the kernel's HMM test module, and not the heap
  std::string config_file;           // "": none
  // Words of UHMM_RUN_OPTION_LIST with their values, as they came.
  std::vector<std::pair<std::string, std::string>> options;
};

// Where the library is that is put ahead; "" if it can't be found beside this program.
std::string find_preload_library(bool dmirror);
// The environment of a program that runs with it, as "NAME=value" words for execve(2).
std::vector<std::string> preload_environment(const std::string& library, bool dmirror);
// "word = value" lines; '#' begins a comment. False: *problem says where and why.
bool read_config_file(const std::string& path, std::vector<std::pair<std::string, std::string>>* options,
                      std::string* problem);
// Why nothing can be put ahead of the program at `path`: a static program, one with more rights, ...; "" if it can.
std::string interposition_problem(const std::string& path);

// Becomes the program. Returns only when that fails, with an exit status as env(1)'s: 125 (options), 126, 127.
int run(const RunCommand& command);

}  // namespace uhmm::tool
