// SPDX-License-Identifier: Apache-2.0
// What happened and how often. Both are written by service threads under block locks, so nothing here locks, waits or
// allocates after construction.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "uhmm/uhmm.h"

namespace uhmm::trace {

// The newest events. Make it with make_in_arena: it is about 600 KiB.
class EventRing {
 public:
  static constexpr std::uint64_t kCapacity = 8192;

  EventRing() = default;
  EventRing(const EventRing&) = delete;
  EventRing& operator=(const EventRing&) = delete;

  // Wait-free. Sets `number`, and `thread` and `time_ns` where they are 0. An event is given up when a writer a whole
  // ring behind still holds its slot; readers see the gap in the numbers.
  void record(const uhmm_event& event);
  // Copies up to `capacity` events numbered > cursor, oldest first, never a torn one; the cursor becomes the last one's
  // number. Stops before an event that is still being written, so that nothing is passed over.
  std::size_t read(std::uint64_t& cursor, uhmm_event* out, std::size_t capacity) const;
  // Number of the newest event begun; 0 before the first.
  std::uint64_t newest() const { return newest_.load(std::memory_order_acquire); }

  // For the one listener: take the bell's count, read, then wait(count) until something was recorded since.
  void listen(bool on) { listened_.store(on, std::memory_order_seq_cst); }
  std::uint32_t bell() const { return bell_.load(std::memory_order_acquire); }
  void wait(std::uint32_t bell) const { bell_.wait(bell, std::memory_order_acquire); }
  void ring();

 private:
  static constexpr std::size_t kWords = sizeof(uhmm_event) / sizeof(std::uint64_t);
  using Words = std::array<std::uint64_t, kWords>;
  // `turn`: 0 never used, 2n - 1 while event n is written, 2n when it is there.
  struct Slot {
    std::atomic<std::uint64_t> turn{0};
    std::array<std::atomic<std::uint64_t>, kWords> words{};
  };
  enum class Found { Event, Writing, Gone };
  Found try_read(std::uint64_t number, uhmm_event& out) const;

  std::atomic<std::uint64_t> newest_{0};
  std::atomic<std::uint64_t> given_up_{0};  // the newest event that was given up
  std::atomic<bool> listened_{false};
  std::atomic<std::uint32_t> bell_{0};
  std::array<Slot, kCapacity> slots_{};
};

// X(identifier, field of uhmm_stats). The remaining fields of uhmm_stats are not counted but measured on request.
#define UHMM_COUNTER_LIST(X)          \
  X(CpuFaults, cpu_faults)            \
  X(DeviceFaults, device_faults)      \
  X(FaultsMerged, faults_merged)      \
  X(BytesToDevice, bytes_to_device)   \
  X(BytesToSystem, bytes_to_system)   \
  X(PagesPopulated, pages_populated)  \
  X(PagesOnDevices, pages_on_devices) \
  X(PagesLost, pages_lost)            \
  X(MoveFallbacks, move_fallbacks)    \
  X(CopyNs, copy_ns)
// The same for fields that are counted by cause.
#define UHMM_CAUSE_COUNTER_LIST(X)  \
  X(PagesToDevice, pages_to_device) \
  X(PagesToSystem, pages_to_system) \
  X(PagesFreed, pages_freed)

enum class Counter : unsigned {
#define UHMM_X(name, field) name,
  UHMM_COUNTER_LIST(UHMM_X)
#undef UHMM_X
      kCount
};
enum class CauseCounter : unsigned {
#define UHMM_X(name, field) name,
  UHMM_CAUSE_COUNTER_LIST(UHMM_X)
#undef UHMM_X
      kCount
};

// One per range and one for the total; 464 bytes.
class Counters {
 public:
  void add(Counter counter, std::uint64_t n) { plain_[index(counter)].fetch_add(n, std::memory_order_relaxed); }
  void sub(Counter counter, std::uint64_t n) { plain_[index(counter)].fetch_sub(n, std::memory_order_relaxed); }
  void add(CauseCounter counter, uhmm_cause cause, std::uint64_t n) {
    by_cause_[index(counter)][cause].fetch_add(n, std::memory_order_relaxed);
  }
  std::uint64_t get(Counter counter) const { return plain_[index(counter)].load(std::memory_order_relaxed); }
  // Writes the listed fields and leaves the others. Each is exact; together they are not of one moment.
  void snapshot(uhmm_stats& out) const;

 private:
  template <typename Enum>
  static constexpr std::size_t index(Enum value) {
    return static_cast<std::size_t>(value);
  }
  std::array<std::atomic<std::uint64_t>, static_cast<std::size_t>(Counter::kCount)> plain_{};
  std::array<std::array<std::atomic<std::uint64_t>, UHMM_CAUSE_COUNT>, static_cast<std::size_t>(CauseCounter::kCount)>
      by_cause_{};
};
static_assert(sizeof(Counters) == 464);

}  // namespace uhmm::trace
