// SPDX-License-Identifier: Apache-2.0
// How often the runtime ended: what belongs to an earlier epoch is no longer managed.
#pragma once

#include <atomic>
#include <cstdint>

namespace uhmm {
inline std::atomic<std::uint64_t> runtime_epoch{0};
}  // namespace uhmm
