// SPDX-License-Identifier: Apache-2.0
// Failure injection: every step that can fail asks should_fail(point). Tests arm "the n-th call of a point fails" and
// sweep n until the operation succeeds. Or they shake the runtime: every point then takes a moment of random length, so
// that threads meet in orders that are rare otherwise. One relaxed load when nothing is armed.
#pragma once

#include <atomic>
#include <cstdint>

namespace uhmm::inject {

// X(identifier): one list; names are the identifiers.
#define UHMM_INJECT_LIST(X) \
  X(StagingAcquire)         \
  X(HugePage)               \
  X(MoveOut)                \
  X(MoveIn)                 \
  X(WriteProtect)           \
  X(ReadManaged)            \
  X(CopyToManaged)          \
  X(DropManaged)            \
  X(Poison)                 \
  X(SnapshotMake)           \
  X(SnapshotKeep)           \
  X(SnapshotTakeOver)       \
  X(Arm)                    \
  X(ArenaAlloc)             \
  X(DeviceReserve)          \
  X(DeviceAttach)           \
  X(DeviceCopyIn)           \
  X(DeviceCopyOut)          \
  X(DeviceZero)             \
  X(DeviceMap)              \
  X(DeviceProtect)          \
  X(DeviceUnmap)            \
  X(DeviceMirror)           \
  X(DeviceFree)             \
  X(DeviceLaunch)           \
  X(DeviceSpawn)

enum class Point : std::uint32_t {
#define UHMM_X(name) name,
  UHMM_INJECT_LIST(UHMM_X)
#undef UHMM_X
      kCount
};

const char* name(Point point);
// The n-th call from now (1 = next) fails; then the point disarms itself. n == 0 disarms.
void arm(Point point, std::uint64_t n);
// Any armed point whose turn came since arm()?
bool fired(Point point);
void disarm_all();
// Points yield, sleep or spin at random from now on. `seed` chooses the sequence; threads share it.
void shake(std::uint32_t seed);
void stop_shaking();

namespace detail {
extern std::atomic<bool> active;
bool consume(Point point);
}  // namespace detail

inline bool should_fail(Point point) {
  return detail::active.load(std::memory_order_relaxed) && detail::consume(point);
}

}  // namespace uhmm::inject
