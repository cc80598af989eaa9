// SPDX-License-Identifier: Apache-2.0
// `uhmm run --stats`: what became of the program's heap, told when it exits.
#pragma once

#include "runtime/api/run_options.hpp"

namespace uhmm::preload::heap {

// Keeps a way to standard error, which a program may have closed by the time it exits.
void prepare_report(const api::RunOptions& options);
// Once for a process that prepared it; nothing in its forked children.
void write_report();

}  // namespace uhmm::preload::heap
