// SPDX-License-Identifier: Apache-2.0
// What the program may ask for about its memory. All of these run on threads of the runtime (WorkerPool::call).
#pragma once

#include "runtime/engine/evictor.hpp"

namespace uhmm::engine {

// Counts of a request over many blocks.
struct Counts {
  Status status;
  std::uint64_t requested = 0;
  Outcome done;
};

// `caller_is_program`: it is a thread of the program that waits for this.
Status register_range(Context& context, ByteRange bytes, bool caller_is_program);
Status unregister_range(Context& context, VirtAddr begin);
// Everything home and every range gone. DATA_LOST if something was lost.
Status unregister_all(Context& context);

// Devices take the faults again that were left unserved while the fork gate was closed.
void retry_device_faults(Context& context);

// `to`: 0 is the CPU, else a device. Pages of pinned ranges are skipped.
struct MigrateRequest {
  ByteRange bytes;
  std::uint32_t to = 0;
  Want want = Want::Move;
  uhmm_cause cause = UHMM_CAUSE_USER;
};
Counts migrate(Context& context, const MigrateRequest& request);
Status discard_bytes(Context& context, ByteRange bytes);
Status advise(Context& context, ByteRange bytes, uhmm_advice advice, std::uint32_t processor);
// Exclusive access for a device; all or nothing.
Counts make_exclusive(Context& context, ByteRange bytes, DeviceIndex device);
// Hold what is resident on a device: it is not evicted until let go.
Status hold(Context& context, ByteRange bytes, DeviceIndex device, bool on);

// With the address space locked (Operation): returns when the moves that are under way in the range have ended. A
// thread that waited for one of its pages goes on as soon as that page is there, and may ask before the move is
// counted.
void wait_for_moves(Context& context, const Range& range);

// States of consecutive pages, at most kPagesPerBlock of them, starting at `page`.
struct SnapshotPart {
  Status status;
  std::uint32_t count = 0;
  uhmm_page_info pages[64];
};
SnapshotPart snapshot_part(Context& context, VirtAddr page, std::uint32_t count);

// Bring everything home that is on one device, or on any (kMaxDevices).
Status bring_home(Context& context, std::uint32_t device, uhmm_cause cause);
// Ranges of a pool: bring their pages home from the pool's device.
Status bring_pool_home(Context& context, std::uint32_t pool);

Status check_registered(Context& context, ByteRange bytes);
// DATA_LOST when a page of the range is lost.
Status check_not_lost(Context& context, ByteRange bytes);

}  // namespace uhmm::engine
