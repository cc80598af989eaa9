// SPDX-License-Identifier: Apache-2.0
// Where a page should be after a fault, given the range's advice. Pure decisions.
#pragma once

#include "runtime/policy/fault_around.hpp"
#include "runtime/state/range.hpp"

namespace uhmm::policy {

// Should the processor that holds a copy keep it when another one only reads?
inline bool keeps_copy(const state::Advice& advice, std::uint32_t holder) {
  return advice.read_mostly.load() || advice.preferred.load() == holder ||
         (advice.accessed_by.load() & (1u << holder)) != 0;
}

// A device's read fault on a page in system memory: take the page away at once?
inline bool moves_on_read(const state::Range& range) {
  return !keeps_copy(range.advice, UHMM_CPU) && predict_device_write(range.device_locality);
}

}  // namespace uhmm::policy
