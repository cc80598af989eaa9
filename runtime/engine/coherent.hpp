// SPDX-License-Identifier: Apache-2.0
// Memory of coherent devices, which the CPU maps in place of its own: pages on such a device stay where they are when
// the CPU touches them. The program's mapping is exchanged, atomically in both directions: a mapping of device memory
// goes over the emptied private one, and a private mapping that holds the data already is moved over that again.
// Block lock held.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Let the CPU access pages that just became resident on `device` alone. Where it can't be done (no address space for
// more mappings, a private device, shared memory) the pages behave as on a private device.
void map_in_place(Context& context, const Segment& segment, DeviceIndex device, const PageMask& pages);
// Copy such pages home and give the program private memory again. Returns those that came.
PageMask bring_home_from_place(Context& context, const Segment& segment, DeviceIndex device, const PageMask& pages,
                               Status& status);
// Fresh, untouched private memory instead.
void replace_by_zeros(Context& context, const Segment& segment, const PageMask& pages);

}  // namespace uhmm::engine
