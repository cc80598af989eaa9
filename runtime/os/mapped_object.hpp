// SPDX-License-Identifier: Apache-2.0
// The file behind a shared mapping of the program's, opened again: also what has no name, as shared anonymous memory.
#pragma once

#include "runtime/os/memory.hpp"

namespace uhmm::os {

// A descriptor of the caller's, close-on-exec, for reading, and for writing if the mapping can be written. By
// /proc/self/map_files, which takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, or else by a descriptor that the program
// has. Errors: NOT_SUPPORTED (neither), SYSTEM.
Result<int> open_mapped(const Mapping& mapping);
// The same of a private mapping of a file: to be read, and also by its name where nothing else helps.
Result<int> open_mapped_file(Mapping mapping);
// Does the mapping show the file?
bool shows(const Mapping& mapping, int file);
// Is it in a file system by a name, where any process may open it?
bool has_name(int file);
// Opens the mapping that covers `address`, which may change its bounds meanwhile.
Result<int> open_mapped_at(const ProcessMemory& process, VirtAddr address);

}  // namespace uhmm::os
