// SPDX-License-Identifier: Apache-2.0
// `uhmm doctor`: what this machine offers, and for each lack what it means and the command that mends it.
#pragma once

#include <string>
#include <vector>

#include "runtime/os/machine.hpp"
#include "tools/uhmm/surroundings.hpp"

namespace uhmm::tool {

// Good: all there. Limit: uhmm works, with less. Bad: it does not work. Note: just a fact.
enum class Verdict { Good, Limit, Bad, Note };
const char* verdict_text(Verdict verdict);

struct Finding {
  std::string name;
  Verdict verdict = Verdict::Note;
  std::string value;    // what was found
  std::string meaning;  // what it means for a program; empty when all is good
  std::string fix;      // a command, or what to install; "none: ..." where nothing can be done here
};

// Decides; asks nothing of the machine itself.
std::vector<Finding> diagnose(const os::Machine& machine, const Surroundings& around);

std::string as_table(const std::vector<Finding>& findings);
std::string as_json(const std::vector<Finding>& findings);

// Prints to standard output. 0, or 1 if anything is Bad.
int doctor(bool json);

}  // namespace uhmm::tool
