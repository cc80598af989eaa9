// SPDX-License-Identifier: Apache-2.0
// `uhmm home`: a running program's memory comes home, so that debuggers, core dumps and checkpoints find it.
#pragma once

#include <sys/types.h>

namespace uhmm::tool {

// Prints how much came to standard output. 0; 1 with a sentence on standard error when the program can't be asked, or
// when some of its memory is still on devices.
int home(pid_t process);

}  // namespace uhmm::tool
