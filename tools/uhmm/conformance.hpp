// SPDX-License-Identifier: Apache-2.0
// The kernel's own HMM tests, unmodified, against the mirror devices of `uhmm run --dmirror`.
#pragma once

#include <string>

namespace uhmm::tool {

struct ConformanceOptions {
  std::string source = "/usr/src/linux-source-6.1.tar.xz";  // a kernel's source, packed
  std::string cache;                                        // folder for the built suite; "": the user's cache
  bool json = false;
};

// Builds the suite if it is not built yet, runs it with and without uhmm, prints the table. 0: everything passed and
// nothing was skipped; 1: not so; 2: it could not be run, and the reason is on stderr.
int conformance(const ConformanceOptions& options);

}  // namespace uhmm::tool
