// SPDX-License-Identifier: Apache-2.0
// Running a program with uhmm ahead of its libraries.
#pragma once

#include <string>
#include <vector>

namespace uhmm::tool {

// Where the library is that is put ahead; "" if it can't be found beside this program.
std::string find_preload_library();
// The environment of a program that runs with it, as "NAME=value" words for execve(2).
std::vector<std::string> preload_environment(const std::string& library, bool dmirror);

// Becomes the program. Returns only when that fails, with an exit status as a shell's: 126, 127; or 1 when there is no
// library.
int run(const std::vector<std::string>& command, bool dmirror);

}  // namespace uhmm::tool
