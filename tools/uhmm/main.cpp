// SPDX-License-Identifier: Apache-2.0
// The `uhmm` command.
#include <CLI/CLI.hpp>

#include "tools/uhmm/doctor.hpp"
#include "tools/uhmm/maps.hpp"
#include "uhmm/uhmm.h"

int main(int argc, char** argv) {
  CLI::App app("User-space heterogeneous memory management", "uhmm");
  app.set_version_flag("--version", std::string("uhmm ") + uhmm_version_string());
  app.require_subcommand(1);

  bool json = false;
  CLI::App* doctor = app.add_subcommand("doctor", "What this machine offers, what it lacks, and how to mend that");
  doctor->add_flag("--json", json, "Print a JSON array");

  int process = 0;
  CLI::App* maps = app.add_subcommand("maps", "Where the managed memory of a running program is");
  maps->add_flag("--json", json, "Print a JSON object");
  maps->add_option("PID", process, "The program's process number")->required()->check(CLI::PositiveNumber);

  CLI11_PARSE(app, argc, argv);
  if (doctor->parsed()) return uhmm::tool::doctor(json);
  if (maps->parsed()) return uhmm::tool::maps(process, json);
  return 0;
}
