// SPDX-License-Identifier: Apache-2.0
// A thread of the runtime that looks after the program's heap: it registers new areas, and moves pages where the user
// has asked for that.
#pragma once

#include "runtime/api/run_options.hpp"

namespace uhmm::preload::heap {

// Starts the thread; the runtime runs already. `can_migrate`: faults of system calls reach us. Errors: SYSTEM.
Status start_keeper(const api::RunOptions& options, bool can_migrate);

}  // namespace uhmm::preload::heap
