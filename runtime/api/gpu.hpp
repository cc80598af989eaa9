// SPDX-License-Identifier: Apache-2.0
// GPUs, as far as the configuration and the device table are concerned.
#pragma once

#include "runtime/api/runtime.hpp"

namespace uhmm::api {

// The vendor that the configuration names, or the one whose driver has a GPU. Errors: CONFIG (both have, and none is
// named), else what the drivers say.
Result<uhmm_device_kind> choose_gpu(const uhmm_config& config);
// Lifecycle lock held, on a worker.
Status add_gpu(Runtime& runtime, DeviceIndex index, const uhmm_device_desc& desc);

}  // namespace uhmm::api
