// SPDX-License-Identifier: Apache-2.0
// `uhmm maps`: where the managed memory of a running program is, as its runtime and the kernel tell.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.hpp"
#include "runtime/engine/report_format.hpp"

namespace uhmm::tool {

struct MappedRange {
  engine::ReportRange told;        // by the program's runtime
  std::uint64_t system_pages = 0;  // in system memory or swapped out, as the kernel's pagemap tells
  std::string mapping;             // what /proc/PID/maps calls the place of its first page; empty: anonymous
};

struct Maps {
  pid_t process = 0;
  std::uint32_t version = 0;  // UHMM_VERSION of the program's library
  std::vector<engine::ReportDevice> devices;
  std::vector<MappedRange> ranges;
};

// Asks a running program. Errors: NOT_FOUND, PERMISSION, TIMEOUT, SYSTEM, INVALID.
Result<Maps> ask(pid_t process, engine::Request request);
// Reads what a runtime wrote; records of a newer one may be longer. Errors: INVALID (that is no report, or half of
// one).
Result<Maps> parse_report(std::span<const std::byte> bytes);
// Adds what the kernel knows. `proc` is the process's folder in /proc. Errors: SYSTEM, PERMISSION.
Status add_kernel_view(Maps& maps, const std::string& proc);

std::string maps_as_table(const Maps& maps);
std::string maps_as_json(const Maps& maps);

// Prints to standard output; 0, or 1 with a sentence on standard error.
int maps(pid_t process, bool json);

}  // namespace uhmm::tool
