// SPDX-License-Identifier: Apache-2.0
// Which block has to go, and which loses its mapping to find out whether it is used. Pure decisions.
#pragma once

#include "runtime/state/device_memory.hpp"

namespace uhmm::policy {

// The block to evict: the one whose last sign of use is oldest. `may_go` says what must not (pinned, held, in the way).
template <typename MayGo>
state::BlockDevice* choose_victim(state::DeviceMemory& memory, std::uint32_t pool, MayGo&& may_go) {
  using state::MemoryList;
  if (auto* part = memory.oldest(MemoryList::Inactive, pool, may_go)) return part;
  return memory.oldest(MemoryList::Active, pool, may_go);
}

// The block to unmap in order to learn whether the device still uses it; nullptr while there is no pressure.
template <typename MayGo>
state::BlockDevice* choose_for_aging(state::DeviceMemory& memory, std::uint32_t pool, MayGo&& may_go) {
  if (!memory.pressed(pool) || !memory.wants_aging()) return nullptr;
  return memory.oldest(state::MemoryList::Active, pool, may_go);
}

}  // namespace uhmm::policy
