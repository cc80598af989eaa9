// SPDX-License-Identifier: Apache-2.0
// What the preloaded library has registered on the program's behalf, and what the program does to the map of that
// memory.
#pragma once

#include <cstdint>
#include <functional>

#include "preload/own_memory.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::preload {

// Register what of these pages is not yet. False: some of it can't be managed.
bool manage(ByteRange pages);
// The same for memory that nobody else maps, unmaps or registers.
bool manage_own(ByteRange pages);
// The parts of `pages` that were registered by manage(), ascending.
Vector<ByteRange> managed_parts(ByteRange pages);
// They end: to be called ahead of the system call.
void unmanage(ByteRange pages);
// Counts changes of what is managed.
std::uint64_t managed_version();
// In a forked child, with the lock: nothing is registered there.
void unmanage_all();
void lock_managed_for_fork();
void unlock_managed_after_fork();

// Is private anonymous memory that the program maps to be managed?
void manage_mappings(bool on);
bool mappings_managed();

// Counts what may have changed mappings: what was learned of the memory map before is out of date.
std::uint64_t map_generation();
void map_changes();

// Is the caller the program, whose calls count, and not the runtime itself?
bool called_by_program();

}  // namespace uhmm::preload
