// SPDX-License-Identifier: Apache-2.0
// Calls to pool owners, and the scope that every operation on memory runs in. Owners are called with no runtime lock
// held: what happens under locks is noted per thread and delivered when the operation's scope has let its locks go.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Holds the address space's lock shared; delivers noted calls after letting it go.
class Operation {
 public:
  explicit Operation(Context& context) : context_(context) { context_.space.mutex().lock_shared(); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  ~Operation();

 private:
  Context& context_;
};

// The device's copies of these pages ended: counts it and notes the owner's page_free calls. Under any lock.
void note_freed(Context& context, const Segment& segment, DeviceIndex device, const PageMask& pages, uhmm_cause cause);
// Deliver what this thread noted. No lock held.
void deliver_pool_calls(Context& context);
// Ask the pool's owner about a CPU fault. No lock held. MIGRATE when there is no owner.
uhmm_fault_action ask_owner(Context& context, std::uint32_t pool, const uhmm_fault_info& info);

}  // namespace uhmm::engine
