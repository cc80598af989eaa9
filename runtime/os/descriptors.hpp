// SPDX-License-Identifier: Apache-2.0
// Descriptors that the runtime gets while the program runs. A program that chooses its own numbers, or closes all that
// there are, knows nothing of them: where somebody guards them (set_descriptor_guard()), they are moved out of its way
// and told of, so that a number that the program has by now is never closed as the runtime's.
#pragma once

namespace uhmm::os {

// From now on: numbers of `floor` and above, and note(fd, true) for each that is the runtime's until note(fd, false).
// `note` is called by any thread and waits for nobody. Before there is anything to guard; nullptr: nobody guards them.
void set_descriptor_guard(int floor, void (*note)(int fd, bool ours));

// A descriptor just made: the number that it has from now on. -1, or any other error, stays what it is.
int keep_descriptor(int fd);
// Closes one that was kept. -1: nothing.
void close_kept(int fd);

}  // namespace uhmm::os
