// SPDX-License-Identifier: Apache-2.0
// The `uhmm` command.
#include <CLI/CLI.hpp>

#include "tools/uhmm/doctor.hpp"
#include "uhmm/uhmm.h"

int main(int argc, char** argv) {
  CLI::App app("User-space heterogeneous memory management", "uhmm");
  app.set_version_flag("--version", std::string("uhmm ") + uhmm_version_string());
  app.require_subcommand(1);

  bool json = false;
  CLI::App* doctor = app.add_subcommand("doctor", "What this machine offers, what it lacks, and how to mend that");
  doctor->add_flag("--json", json, "Print a JSON array");

  CLI11_PARSE(app, argc, argv);
  if (doctor->parsed()) return uhmm::tool::doctor(json);
  return 0;
}
