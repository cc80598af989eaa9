// SPDX-License-Identifier: Apache-2.0
// Work on a device without page faults. What a kernel may reach has to be there when it starts and to stay there until
// it ends; what it may reach is every registered page, for nobody knows which pointers it will follow. So whoever
// starts work first gathers everything on the device, and whoever takes something from it waits for the work that runs:
// not longer, because work that starts meanwhile would find something missing, and waits in turn.
//
// One of the two sees the other: who takes counts that first and then looks for running work; who starts counts itself
// as running first and then looks whether something was taken since it had gathered.
#pragma once

#include <atomic>
#include <cstdint>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::engine {

struct Context;

class WorkGate {
 public:
  // Before pages leave the device (a block's lock may be held: work ends without any). Waits for what runs.
  void take() {
    note_change();
    for (std::uint32_t count = running_.load(); count != 0; count = running_.load()) running_.wait(count);
  }
  // Something is not on the device that was, or that is new.
  void note_change() { changes_.fetch_add(1); }
  std::uint64_t changes() const { return changes_.load(); }

  // False: something changed since `seen`, and nothing has started.
  bool try_start(std::uint64_t seen) {
    running_.fetch_add(1);
    if (changes_.load() == seen) return true;
    end();
    return false;
  }
  void end() {
    running_.fetch_sub(1);
    running_.notify_all();
  }

  // Guarded by the device's flush lock: everything was there at this count of changes.
  std::uint64_t complete = 0;
  // Somebody gathers: nothing is evicted from the device, which would only have to come back.
  std::atomic<bool> gathering{false};

 private:
  std::atomic<std::uint32_t> running_{0};
  std::atomic<std::uint64_t> changes_{1};
};

// Every page that the program may read comes to the device, and work counts as started there. The address space lock is
// held shared, the fork gate is entered, the device's flush lock is held. Errors: DEVICE_FULL, BUSY (a page stays
// pinned for I/O), DEVICE_LOST, and what moving pages may say.
Status gather(Context& context, DeviceIndex index);

// Before pages move for another reason than gathering: who gathers may have been overtaken too often, and goes first.
void let_gather_first(Context& context, DeviceIndex towards);

}  // namespace uhmm::engine
