// SPDX-License-Identifier: Apache-2.0
// A registered byte range and its policy.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "runtime/backend/device.hpp"
#include "runtime/base/lock.hpp"
#include "runtime/base/types.hpp"
#include "runtime/state/locality.hpp"
#include "runtime/trace/trace.hpp"

namespace uhmm::state {

enum class Backing : std::uint8_t { Private, Shared };

struct Advice {
  std::atomic<std::uint32_t> preferred{~0u};  // processor, ~0 for none
  std::atomic<std::uint32_t> accessed_by{0};  // bit per processor
  std::atomic<bool> read_mostly{false};
  std::atomic<bool> pinned{false};
};

// What files have where private mappings of them were until anonymous memory took their place: a call that drops
// contents there gives those of the file. Whoever makes it knows how a view ends.
struct FileViews {
  struct View {
    ByteRange pages;
    const std::byte* bytes = nullptr;
  };
  FileViews(std::pmr::memory_resource* memory, void (*end_view)(const View&)) : views(memory), end(end_view) {}
  FileViews(const FileViews&) = delete;
  FileViews& operator=(const FileViews&) = delete;
  ~FileViews() {
    for (const View& view : views) end(view);
  }
  std::pmr::vector<View> views;
  void (*end)(const View&);
};

struct Range {
  Range(ByteRange span, Backing kind) : bytes(span), pages(span.to_pages()), backing(kind) {}

  // Both change only under the address space's exclusive lock, when a part of the range ends.
  ByteRange bytes;  // as registered
  ByteRange pages;  // every page it touches
  const Backing backing;
  std::byte* alias = nullptr;              // shared memory: our own view of `pages`
  std::shared_ptr<const FileViews> files;  // nullptr: none of it was a file's; of all that the range was cut from
  std::atomic<bool> can_move{false};       // UFFDIO_MOVE may be tried on it
  std::atomic<bool> mirrored{false};       // devices work on the program's own pages, none of them ever leaves
  std::atomic<bool> closing{false};        // being unregistered: nothing leaves system memory any more
  std::atomic<std::uint32_t> holds{0};     // acquires and queued stream work
  std::atomic<std::uint32_t> pool{0};      // pool index for its pages, 0 the default
  Advice advice;

  // Arming: userfaultfd watches the range only while something of it is away or duplicated.
  RankedMutex<LockRank::Arm> arm_mutex;
  bool armed = false;                      // guarded by arm_mutex
  bool had_neighbours = false;             // on an edge page, at some time; guarded by the address space's lock
  bool copies_known = false;               // guarded by the copy shield's lock: what the program keeps from children
  std::uint32_t departures = 0;            // guarded by arm_mutex: operations that need it armed right now
  std::atomic<std::int64_t> pages_out{0};  // pages of it in state shared, device, exclusive

  // Device windows. `attached` bit d: windows[d] is valid; set under arm_mutex, read anywhere.
  std::array<backend::Window, kMaxDevices> windows{};
  std::array<std::uint64_t, kMaxDevices> mirror_stamps{};  // what each device mirrors; guarded by arm_mutex
  std::atomic<std::uint32_t> attached{0};

  Locality cpu_locality;
  Locality device_locality;
  trace::Counters counters;
};

}  // namespace uhmm::state
