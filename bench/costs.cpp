// SPDX-License-Identifier: Apache-2.0
// What it costs to be managed without using a device, and what the runtime itself needs.
#include <cmath>
#include <optional>

#include "bench/support.hpp"

namespace uhmm::bench {
namespace {

// Reads and writes every word of the memory.
double pass_s(const Memory& memory) {
  const double before = now_s();
  for (std::size_t i = 0; i < memory.word_count(); ++i) memory.words()[i] += i;
  benchmark::ClobberMemory();
  return now_s() - before;
}

// The same memory, registered and not, in turn: so both loops run on the same physical pages.
void idle(Rounds& rounds) {
  const Runtime runtime;
  Memory memory(64 * kMiB);
  memory.fill();
  for (int i = 0; i < 3; ++i) (void)pass_s(memory);
  while (rounds.next()) {
    std::vector<double> plain;
    std::vector<double> managed;
    for (int i = 0; i < 4; ++i) {
      // Alternating which is first takes a drift of the machine out.
      for (const bool on : {i % 2 == 0, i % 2 != 0}) {
        std::optional<Registration> registered;
        if (on) registered.emplace(memory);
        (on ? managed : plain).push_back(pass_s(memory) * 1e3);
      }
    }
    rounds.add(median(plain), median(managed));
  }
}

// Fresh memory's first touches.
void first_touch(Rounds& rounds) {
  const Runtime runtime;
  const auto once = [](bool on) {
    const Memory memory(64 * kMiB);
    std::optional<Registration> registered;
    if (on) registered.emplace(memory);
    const double before = now_s();
    for (std::size_t i = 0; i < memory.pages(); ++i) *memory.page(i) = std::byte{1};
    return (now_s() - before) * 1e3;
  };
  while (rounds.next()) {
    const double plain = once(false);
    rounds.add(plain, once(true));
  }
}

double metadata_mb(const Runtime& runtime) { return static_cast<double>(runtime.stats().metadata_bytes) / 1e6; }

// A page of each block went to a device and came back, then everything did.
void metadata_touched(Rounds& rounds) {
  const Runtime runtime;
  // The target is 0.1 % and 1 MiB: the floor is the allowance, the value what is used.
  while (rounds.next()) {
    const double empty = metadata_mb(runtime);
    Memory memory(large_bytes());
    memory.fill();
    const Registration registered(memory);
    migrate(memory.data(), memory.bytes(), kDevice);
    const double used = metadata_mb(runtime) - empty;
    rounds.add(static_cast<double>(memory.bytes()) / 1e9 + static_cast<double>(kMiB) / 1e6, used);
  }
}

void metadata_untouched(Rounds& rounds) {
  const Runtime runtime;
  while (rounds.next()) {
    const double empty = metadata_mb(runtime);
    const Memory small(kGiB);
    const Registration small_registered(small);
    const double first = metadata_mb(runtime);
    const Memory large(64 * kGiB);
    const Registration large_registered(large);
    // Both need a range; what the large one needs more is for its untouched blocks.
    rounds.add(0, std::round(((metadata_mb(runtime) - first) - (first - empty)) * 1e6) + 0.0);  // never "-0"
  }
}

}  // namespace

void add_cost_rows() {
  add_row({"idle/registered", "read-modify-write loop over registered memory, nothing on a device",
           "the same memory, unregistered", "ms", Goal::AtMost, 1.01, 25},
          idle);
  add_row(
      {"idle/first_touch", "first touch of registered memory, 64 MiB", "unregistered memory", "ms", Goal::None, 0, 9},
      first_touch);
  add_row({"metadata/touched", "metadata, every page on a device", "0.1 % of the registered bytes + 1 MiB", "MB",
           Goal::AtMost, 1.0, 1},
          metadata_touched);
  add_row({"metadata/untouched", "metadata of 64 GiB untouched, more than of 1 GiB", "", "bytes", Goal::None, 0, 1},
          metadata_untouched);
}

}  // namespace uhmm::bench
