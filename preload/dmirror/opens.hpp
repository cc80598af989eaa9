// SPDX-License-Identifier: Apache-2.0
// The opens of this process: each a socket pair, of which the program has one end and this process keeps the other.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <optional>

#include "preload/dmirror/mirror.hpp"

namespace uhmm::preload::dmirror {

// What a descriptor of the program's stands for. `mirror`: of this process; nullptr: of the process that it was forked
// from, and asked by a message on the descriptor.
struct Open {
  std::shared_ptr<Mirror> mirror;
  bool pins = false;  // the kernel's gup_test file instead of a mirror
};
// Nothing: the descriptor is no device's.
std::optional<Open> find_open(int fd);
// The program's end of a new open, or -1 with errno.
int make_open(std::shared_ptr<Mirror> mirror, bool close_on_exec);
// Opens whose last descriptor is closed have ended when this returns.
void settle_closes();

// Around fork(), with the devices' table that dmirror.cpp keeps.
void lock_units_for_fork();
void unlock_units_after_fork();

// Ask the opener to run a command. 0 or an errno.
int ask_opener(int fd, Number number, Command& command, std::byte* data);

}  // namespace uhmm::preload::dmirror
