// SPDX-License-Identifier: Apache-2.0
// The child's side of a fork whose pages stayed on devices: a thread of the child's own gives the program its pages
// when it touches them. It needs nothing of the parent, which may end at any time, and nothing of this process but its
// memory: no lock, no allocator, no descriptor that the program could close (runtime/os/bare.hpp).
#pragma once

#include "runtime/engine/fork_keeper.hpp"

namespace uhmm::engine {

// In the child, first of all. `keeper` is the child's copy.
void inherit(ForkKeeper& keeper);
// Brings all that is owed. On return the process's memory is ordinary, nobody serves its faults any more, and it can be
// copied again or start a runtime of its own. Nothing to do in a process that has inherited nothing.
void finish_inheriting();
// The program drops these pages: what is owed of them need not come, they read as zeros.
void give_up_inheritance(ByteRange pages);

}  // namespace uhmm::engine
