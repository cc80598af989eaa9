// SPDX-License-Identifier: Apache-2.0
// The model's world: one page, two CPU threads, two devices, and at most one operation under the block's lock.
//
// Data is not modelled as bytes but as "is this copy the latest version?". A write makes the copy it goes to the only
// latest one; reading, or adding to, a copy that is not the latest is an error. That is finite for any number of
// writes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "runtime/state/page_protocol.hpp"

namespace uhmm::model {

inline constexpr unsigned kDevices = 2;
inline constexpr unsigned kLaunches = 2;  // of one device, which may overlap

enum class Entry : std::uint8_t { Absent, Read, Write, Poison };  // of a page table
enum class Buffer : std::uint8_t { Empty, Old, Latest };          // the staging slot
// A processor that wants the page. Fault: its message is queued; Served: somebody has read the message.
enum class Wait : std::uint8_t { No, Fault, Served, Retry };
enum class Life : std::uint8_t { Alive, Dead, Gone };  // Dead: the runtime does not know yet
// Announced: the device counts as busy. Flushing: took the page off the stale list, wants the block's lock.
enum class Launch : std::uint8_t { None, Announced, Flushing, Running };
enum class Operation : std::uint8_t { None, ToDevice, ToSystem, EndSharing, Home, Discard, Lose, Age };
enum class Want : std::uint8_t { Move, Duplicate, Exclusive };

struct Device {
  Entry entry = Entry::Absent;
  std::uint8_t latest = 0;    // its memory has the latest version
  std::uint8_t mapped = 0;    // the engine's mask: may have an entry
  std::uint8_t writable = 0;  // and it may allow writing
  std::uint8_t stale = 0;     // on the list of deferred unmappings
  Life life = Life::Alive;
  std::array<Launch, kLaunches> launches{};
  Wait wait = Wait::No;  // of its kernels
  std::uint8_t wait_write = 0;

  bool busy() const { return launches[0] != Launch::None || launches[1] != Launch::None; }
  bool running() const { return launches[0] == Launch::Running || launches[1] == Launch::Running; }
};

struct State {
  // The protocol's state, as the block's masks have it. None and System differ only in what the kernel knows.
  PageKind kind = PageKind::None;
  std::uint8_t holders = 0;
  std::uint8_t armed = 0;
  // The CPU.
  Entry entry = Entry::Absent;
  std::uint8_t latest = 0;
  Wait reader = Wait::No;
  Wait writer = Wait::No;
  Buffer buffer = Buffer::Empty;
  std::array<Device, kDevices> devices;
  // What the program may expect, which the engine can't see: zeros, because nothing was written since the last discard.
  std::uint8_t zeros = 1;
  // The operation that holds the block's lock.
  Operation operation = Operation::None;
  std::uint8_t step = 0;
  std::uint8_t device = 0;  // its target
  Want want = Want::Move;
  std::uint8_t few = 0;   // unmaps by freeing
  std::uint8_t done = 0;  // bit per device: its part is done already

  PageState page() const { return {kind, holders}; }
  bool held_by(unsigned d) const { return ((holders >> d) & 1) != 0; }
};

// Calls visit(field, bits) for every field; their bits together make the packed state.
template <typename S, typename Visit>
constexpr void for_each_field(S& s, Visit visit) {
  visit(s.kind, 3), visit(s.holders, 2), visit(s.armed, 1), visit(s.entry, 2), visit(s.latest, 1);
  visit(s.reader, 2), visit(s.writer, 2), visit(s.buffer, 2), visit(s.zeros, 1);
  visit(s.operation, 3), visit(s.step, 5), visit(s.device, 1), visit(s.want, 2), visit(s.few, 1), visit(s.done, 2);
  for (auto& d : s.devices) {
    visit(d.entry, 2), visit(d.latest, 1), visit(d.mapped, 1), visit(d.writable, 1), visit(d.stale, 1);
    visit(d.life, 2), visit(d.launches[0], 2), visit(d.launches[1], 2), visit(d.wait, 2), visit(d.wait_write, 1);
  }
}

constexpr unsigned packed_bits() {
  unsigned total = 0;
  State s;
  for_each_field(s, [&](auto&, unsigned bits) { total += bits; });
  return total;
}
static_assert(packed_bits() <= 64);

inline std::uint64_t pack(const State& s) {
  std::uint64_t packed = 0;
  unsigned shift = 0;
  for_each_field(s, [&](const auto& field, unsigned bits) {
    packed |= static_cast<std::uint64_t>(field) << shift;
    shift += bits;
  });
  return packed;
}

inline State unpack(std::uint64_t packed) {
  State s;
  for_each_field(s, [&](auto& field, unsigned bits) {
    field = static_cast<std::remove_reference_t<decltype(field)>>(packed & ((1u << bits) - 1));
    packed >>= bits;
  });
  return s;
}

// X(identifier, what holds)
#define UHMM_PROPERTY_LIST(X)                                                                         \
  X(NoStaleRead, "no stale read: every read, by CPU or kernel, sees the latest write")                \
  X(NoLostWrite, "no lost write: every write goes to the latest version")                             \
  X(CopyExists, "a current copy exists, unless the page is none, lost, or its device just died")      \
  X(NobodyStuck, "no deadlock: from every state, whoever waits for the page can be served")           \
  X(InTable, "every commit is a transition that page_protocol.hpp allows")                            \
  X(WellFormed, "every state is well formed")                                                         \
  X(Watched, "no access goes unwatched while the page is away or protected")                          \
  X(HoldersCurrent, "between operations, whoever holds a copy by the state holds a current one")      \
  X(CpuEntryFits, "between operations, the CPU's entry is what the state says")                       \
  X(DeviceEntryFits, "between operations, a running device maps what it holds, shared pages to read") \
  X(MasksCover, "the masks of mapped and writable pages cover the devices' page tables")              \
  X(StagingEmpty, "between operations, no data is in staging only")

enum class Property : std::uint8_t {
#define UHMM_X(name, text) name,
  UHMM_PROPERTY_LIST(UHMM_X)
#undef UHMM_X
};

// Errors put into the model on purpose. Each must be found; otherwise the model proves nothing.
// X(identifier, what is wrong)
#define UHMM_MUTATION_LIST(X)                                                                         \
  X(SkipProtect, "a page is copied to a device for reading without write-protecting the CPU's entry") \
  X(SkipFlush, "a launch does not flush stale mappings")                                              \
  X(FlushAfterLaunch, "a launch does not wait for another launch that is still flushing")             \
  X(ForgetFailedFlush, "a mapping whose unmapping failed at a launch is forgotten")                   \
  X(PublishBeforeRevoke, "the CPU gets a page before the device's mapping is revoked")                \
  X(CommitBeforeRevoke, "a page moves between devices before the first one's mapping is revoked")     \
  X(KeepOtherDuplicates, "a device writes a shared page while another still maps it")                 \
  X(CopyBeforeTake, "a page is copied to a device for writing before it is taken from the CPU")       \
  X(SettleAfterMap, "the device maps a page before the CPU's entry is dropped")                       \
  X(NoRollback, "a failed copy to a device does not give the page back to the CPU")                   \
  X(PutBackWritable, "a failed move of a shared page gives it back writable, then protects it")       \
  X(ArmLate, "a page is found untouched before the CPU's first touch is watched")                     \
  X(UnprotectFirst, "a CPU write to a shared page is allowed before the devices' copies end")         \
  X(WriteWhileStaged, "a page is duplicated to system memory while its device may write")             \
  X(FailedProtectIgnored, "a device's old writable mapping of a shared page survives")                \
  X(FailedMapForgotten, "a mapping that failed half-way is not noted")                                \
  X(FreedCopyStaysCurrent, "ending a sharing fails after one copy's memory was freed")                \
  X(FreedStaysMapped, "memory freed at the end of a sharing is still noted as mapped")                \
  X(LostReadsZeros, "a lost page is not poisoned")                                                    \
  X(NoWake, "a CPU fault that needs nothing is not woken")                                            \
  X(DiscardKeepsMapping, "a discard does not revoke the devices' mappings nor frees the memory")

enum class Mutation : std::uint8_t {
  None,
#define UHMM_X(name, text) name,
  UHMM_MUTATION_LIST(UHMM_X)
#undef UHMM_X
};

struct Config {
  const char* name = "";
  bool move = true;                // pages are taken with UFFDIO_MOVE; else write-protect, copy, drop
  bool failures = true;            // any step that can fail may fail
  std::uint8_t mortal = 0;         // bit per device: it may die
  std::uint8_t launching = 3;      // bit per device: kernels run there
  std::uint8_t second_launch = 0;  // bit per device: launches may overlap
  bool requests = true;            // the program migrates, duplicates, discards; memory pressure evicts
  Mutation mutation = Mutation::None;
};

}  // namespace uhmm::model
