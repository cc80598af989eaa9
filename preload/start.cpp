// SPDX-License-Identifier: Apache-2.0
// What happens before the program's main(), and after it.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload/descriptors.hpp"
#include "preload/heap/areas.hpp"
#include "preload/heap/heap.hpp"
#include "preload/heap/keeper.hpp"
#include "preload/heap/report.hpp"
#include "preload/managed.hpp"
#include "runtime/api/run_options.hpp"

namespace uhmm::preload {
namespace {

constexpr int kBadOptions = 125;  // as env(1) and its like: it was not the program that failed

// Programs that this one executes are left alone: the words that brought the library here go.
void leave_children_alone() {
  constexpr const char* kName = "libuhmm_malloc.so";
  const char* preload = getenv("LD_PRELOAD");
  if (preload != nullptr) {
    char rest[4096] = "";
    char words[4096];
    if (strlen(preload) < sizeof(words)) {
      strcpy(words, preload);
      char* next = nullptr;
      for (char* word = strtok_r(words, ": ", &next); word != nullptr; word = strtok_r(nullptr, ": ", &next)) {
        const char* slash = strrchr(word, '/');
        if (strcmp(slash != nullptr ? slash + 1 : word, kName) == 0) continue;
        if (rest[0] != '\0') strcat(rest, ":");
        strcat(rest, word);
      }
      rest[0] != '\0' ? setenv("LD_PRELOAD", rest, 1) : unsetenv("LD_PRELOAD");
    }
  }
#define UHMM_X(name, environment, form, meaning) unsetenv(environment);
  UHMM_RUN_OPTION_LIST(UHMM_X)
#undef UHMM_X
}

// What all devices together may hold.
std::uint64_t device_bytes() {
  uhmm_processor ids[UHMM_MAX_DEVICES];
  std::uint32_t count = 0;
  std::uint64_t bytes = 0;
  if (uhmm_device_list(ids, UHMM_MAX_DEVICES, &count) != UHMM_OK) return 0;
  for (std::uint32_t i = 0; i < count && i < UHMM_MAX_DEVICES; ++i) {
    uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
    if (uhmm_device_get_info(ids[i], &info) == UHMM_OK) bytes += info.memory_bytes;
  }
  return bytes;
}

void warn(const api::RunOptions& options, const char* what) {
  if (!options.quiet) fprintf(stderr, "uhmm: %s: %s\n", program_invocation_short_name, what);
}

void begin(const api::RunOptions& options) {
  uhmm_config config = UHMM_CONFIG_INIT;
  // What is recycled of the program's own pages is system memory, too.
  constexpr std::uint64_t kStagingPart = 16;
  if (options.host_limit != 0 && getenv("UHMM_STAGING") == nullptr)
    config.staging_memory =
        options.host_limit / kStagingPart < kBlockBytes ? kBlockBytes : options.host_limit / kStagingPart;
  if (uhmm_init(&config) != UHMM_OK) {
    char text[512];
    snprintf(text, sizeof(text), "its memory is not managed: %s", uhmm_error_detail());
    return warn(options, text);
  }
  uhmm_config in_force = UHMM_CONFIG_INIT;
  (void)uhmm_get_config(&in_force);
  const bool can_migrate = in_force.fault_rung == UHMM_FAULTS_SYSCALL || in_force.fault_rung == UHMM_FAULTS_DEVICE;
  if (!can_migrate && options.migrates())
    warn(options,
         "its memory stays in system memory: this user may not serve faults of system calls (see uhmm doctor)");
  if (can_migrate && options.host_limit != 0 && !options.exceed)
    heap::limit_bytes(options.host_limit + device_bytes(), options.quiet);
  manage_mappings(options.mmap);
  if (!heap::start_keeper(options, can_migrate).ok()) warn(options, uhmm_error_detail());
}

__attribute__((constructor)) void start() {
  api::RunOptions options;
  if (!api::read_run_environment(options).ok()) {
    fprintf(stderr, "uhmm: %s\n", uhmm_error_detail());
    _exit(kBadOptions);
  }
  // Before anything else has to be written: a log of its own level is the user's own wish.
  if (options.quiet) (void)setenv("UHMM_LOG", "error", 0);
  heap::set_smallest(options.min_size);
  {
    const heap::PlainScope plain;
    const HighDescriptors high;
    begin(options);
    heap::prepare_report(options);
  }
  if (!options.children) leave_children_alone();
}

__attribute__((destructor)) void finish() { heap::write_report(); }

}  // namespace
}  // namespace uhmm::preload
