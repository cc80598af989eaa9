// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace uhmm::alloc {

// The runtime has ended: what was allocated stays as it is, but is no longer managed and can't be freed. The next
// allocation, after the runtime was started again, begins with nothing.
void abandon();

}  // namespace uhmm::alloc
