// SPDX-License-Identifier: Apache-2.0
// The `uhmm` command.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "runtime/api/run_options.hpp"
#include "tools/uhmm/conformance.hpp"
#include "tools/uhmm/doctor.hpp"
#include "tools/uhmm/home.hpp"
#include "tools/uhmm/maps.hpp"
#include "tools/uhmm/run.hpp"
#include "uhmm/uhmm.h"

namespace {

// The words of the one list, and what the user said.
struct RunWords {
  struct One {
    std::string word;
    std::string value;
    CLI::Option* option = nullptr;
  };
  std::vector<One> all;

  explicit RunWords(CLI::App& run) {
    all.reserve(32);  // options refer to the values
#define UHMM_X(word, environment, form, meaning) add(run, word, form, meaning);
    UHMM_RUN_OPTION_LIST(UHMM_X)
#undef UHMM_X
  }
  void add(CLI::App& run, const std::string& word, const char* form, const char* meaning) {
    One& one = all.emplace_back(One{word, "", nullptr});
    // Some may stand without a value.
    const std::string alone = word == "stats" ? "table" : word == "quiet" || word == "mmap" ? "yes" : "";
    one.option = alone.empty() ? run.add_option("--" + word, one.value, meaning)
                               : run.add_flag("--" + word + "{" + alone + "}", one.value, meaning);
    one.option->type_name(form);
  }
  std::vector<std::pair<std::string, std::string>> given() const {
    std::vector<std::pair<std::string, std::string>> list;
    for (const One& one : all)
      if (one.option->count() != 0) list.emplace_back(one.word, one.value);
    return list;
  }
};

}  // namespace

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

  uhmm::tool::RunCommand run_command;
  CLI::App* run = app.add_subcommand("run", "Run a program whose heap is managed memory");
  run->add_flag("--dmirror", run_command.dmirror, "Serve /dev/hmm_dmirror0 to 3 on soft devices, and nothing else");
  run->add_option("--config", run_command.config_file, "Read options from a file of lines word = value")
      ->type_name("FILE");
  RunWords run_words(*run);
  run->add_option("PROGRAM", run_command.program, "The program and its arguments, after --")->required();
  run->prefix_command();  // what follows the program's name is the program's
  run->positionals_at_end();

  uhmm::tool::ConformanceOptions suite;
  CLI::App* conformance = app.add_subcommand("conformance", "Run the kernel's own HMM tests against uhmm");
  conformance->add_flag("--json", suite.json, "Print a JSON object");
  conformance->add_option("--source", suite.source, "A kernel's packed source")->capture_default_str();
  conformance->add_option("--cache", suite.cache, "Where the built suite is kept (default: the user's cache)");

  CLI11_PARSE(app, argc, argv);
  run_command.options = run_words.given();
  for (const std::string& word : run->remaining()) {
    if (word == "--") continue;
    std::fprintf(stderr, "uhmm: run has no option %s\n", word.c_str());
    return 125;
  }
  if (run->parsed()) return uhmm::tool::run(run_command);
  if (conformance->parsed()) return uhmm::tool::conformance(suite);
  if (doctor->parsed()) return uhmm::tool::doctor(json);
  if (home->parsed()) return uhmm::tool::home(process);
  if (maps->parsed()) return uhmm::tool::maps(process, json);
  return 0;
}
