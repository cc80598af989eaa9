// SPDX-License-Identifier: Apache-2.0
// What `uhmm run` can be told: one list of words, each with its variable for the program's environment. The command
// checks them and sets the variables; the library inside the program reads those.
#pragma once

#include <climits>
#include <cstdint>

#include "runtime/base/status.hpp"

namespace uhmm::api {

// X(word, environment name, what a value looks like, meaning)
#define UHMM_RUN_OPTION_LIST(X)                                                                                  \
  X("min-size", "UHMM_RUN_MIN_SIZE", "SIZE", "Manage blocks of at least SIZE bytes only; default 0, all")        \
  X("mmap", "UHMM_RUN_MMAP", "yes|no", "Manage private anonymous memory of mmap(2), too; default no")            \
  X("chaos", "UHMM_RUN_CHAOS", "SEED[:RATE]", "Move random live pages to devices and back, RATE times a second") \
  X("host-limit", "UHMM_RUN_HOST_LIMIT", "SIZE", "Keep at most SIZE of the memory in system memory")             \
  X("over-budget", "UHMM_RUN_OVER_BUDGET", "fail|exceed",                                                        \
    "When system and device budget are used up: fail allocations (default), or exceed the limit")                \
  X("stats", "UHMM_RUN_STATS", "table|json", "Tell at exit what moved and why")                                  \
  X("stats-file", "UHMM_RUN_STATS_FILE", "FILE", "Append that to FILE, not to standard error")                   \
  X("children", "UHMM_RUN_CHILDREN", "yes|no", "Also for programs that the program executes; default yes")       \
  X("quiet", "UHMM_RUN_QUIET", "yes|no", "Say nothing but errors that end the program; default no")              \
  X("devices", "UHMM_SOFT_DEVICES", "N", "Soft devices, 1 to 8; default 1")                                      \
  X("device-memory", "UHMM_DEVICE_MEMORY", "SIZE", "Memory of each device; default 2G")                          \
  X("device-kind", "UHMM_SOFT_KIND", "private|coherent", "Kind of the devices; default private")

enum class RunStats : std::uint8_t { None, Table, Json };

struct RunOptions {
  std::uint64_t min_size = 0;
  std::uint64_t host_limit = 0;  // 0: none
  std::uint64_t chaos_seed = 0;
  std::uint64_t chaos_rate = 0;  // migrations a second; 0: no chaos
  RunStats stats = RunStats::None;
  bool mmap = false;
  bool exceed = false;
  bool children = true;
  bool quiet = false;
  char stats_file[PATH_MAX] = "";

  bool migrates() const { return chaos_rate != 0 || host_limit != 0; }
};

inline constexpr std::uint64_t kLeastHostLimit = std::uint64_t{4} << 20;

// Reads one value. Words of the runtime's own settings (devices, ...) are passed over: it reads them itself. Errors:
// CONFIG, with the name that the user knows (`shown`) in the detail text; INVALID (no such word).
Status set_run_option(RunOptions& options, const char* word, const char* shown, const char* value);
// From the environment; nothing of it in a setuid program. Errors: CONFIG.
Status read_run_environment(RunOptions& options);

}  // namespace uhmm::api
