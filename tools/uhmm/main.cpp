// SPDX-License-Identifier: Apache-2.0
// The `uhmm` command.
#include <CLI/CLI.hpp>

#include "tools/uhmm/conformance.hpp"
#include "tools/uhmm/doctor.hpp"
#include "tools/uhmm/home.hpp"
#include "tools/uhmm/maps.hpp"
#include "tools/uhmm/run.hpp"
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

  CLI::App* home =
      app.add_subcommand("home", "Bring a running program's memory home, ahead of a debugger or a core dump");
  home->add_option("PID", process, "The program's process number")->required()->check(CLI::PositiveNumber);

  bool dmirror = false;
  std::vector<std::string> command;
  CLI::App* run = app.add_subcommand("run", "Run a program with the devices of the kernel's HMM test module");
  run->add_flag("--dmirror", dmirror, "Serve /dev/hmm_dmirror0 to 3 on soft devices")->required();
  run->add_option("PROGRAM", command, "The program and its arguments, after --")->required();
  run->prefix_command();
  run->positionals_at_end();

  uhmm::tool::ConformanceOptions suite;
  CLI::App* conformance = app.add_subcommand("conformance", "Run the kernel's own HMM tests against uhmm");
  conformance->add_flag("--json", suite.json, "Print a JSON object");
  conformance->add_option("--source", suite.source, "A kernel's packed source")->capture_default_str();
  conformance->add_option("--cache", suite.cache, "Where the built suite is kept (default: the user's cache)");

  CLI11_PARSE(app, argc, argv);
  if (run->parsed()) return uhmm::tool::run(command, dmirror);
  if (conformance->parsed()) return uhmm::tool::conformance(suite);
  if (doctor->parsed()) return uhmm::tool::doctor(json);
  if (home->parsed()) return uhmm::tool::home(process);
  if (maps->parsed()) return uhmm::tool::maps(process, json);
  return 0;
}
