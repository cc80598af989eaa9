// SPDX-License-Identifier: Apache-2.0
// How long a CPU waits for one page that is on a device.
#include "bench/fault_floor.hpp"

#include <optional>

namespace uhmm::bench {
namespace {

constexpr std::size_t kBytes = 64 * kMiB;
constexpr std::size_t kTouches = 4096;

void random_faults(Rounds& rounds, bool pinned, std::uint32_t flags, uhmm_fault_rung rung = UHMM_FAULTS_AUTO) {
  std::optional<PinnedHere> here;
  const int cpu = last_cpu();
  // Threads inherit the CPUs of the thread that starts them: now the whole runtime is on that CPU.
  if (pinned) here.emplace(cpu);
  uhmm_config config = bench_config();
  config.flags |= flags;
  config.fault_rung = rung;
  const Runtime runtime(config);
  FaultFloor floor(kBytes, cpu);
  Memory memory(kBytes);
  memory.fill();
  const Registration registered(memory);
  std::mt19937_64 random(1);
  const auto once = [&] {
    migrate(memory.data(), memory.bytes(), kDevice);
    const auto pages = random_numbers(random, kTouches, memory.pages());
    const double us = median_touch_us(memory.data(), pages);
    for (const std::uint32_t page : pages)
      require(*reinterpret_cast<std::uint64_t*>(memory.page(page)) == page * (kPage / 8), "a page has wrong contents");
    return us;
  };
  (void)once();
  while (rounds.next()) {
    const double plain = floor.touch_us(random_numbers(random, kTouches, memory.pages()));
    rounds.add(plain, once());
  }
}

}  // namespace

void add_fault_rows() {
  const char* floor = "poll, read, memcpy, UFFDIO_MOVE by hand, all on one CPU";
  add_row({"fault/random_pinned", "random 4 KiB CPU fault-back, p50, everything on one CPU", floor, "us", Goal::AtMost,
           1.3, 7},
          [](Rounds& rounds) { random_faults(rounds, true, 0); });
  add_row({"fault/random_unpinned", "the same, nothing pinned by the user", floor, "us", Goal::AtMost, 1.5, 7},
          [](Rounds& rounds) { random_faults(rounds, false, 0); });
  add_row({"fault/random_pinned/signal", "one CPU, each thread serves its own (UHMM_FAULTS=signal)", floor, "us",
           Goal::None, 0, 3},
          [](Rounds& rounds) { random_faults(rounds, true, 0, UHMM_FAULTS_SIGNAL); });
  add_row({"fault/random_unpinned/signal", "nothing pinned, each thread serves its own", floor, "us", Goal::None, 0, 3},
          [](Rounds& rounds) { random_faults(rounds, false, 0, UHMM_FAULTS_SIGNAL); });
  add_row({"fault/random_pinned/no_move", "one CPU, without UFFDIO_MOVE", floor, "us", Goal::None, 0, 3},
          [](Rounds& rounds) { random_faults(rounds, true, UHMM_CONFIG_NO_MOVE); });
  add_row({"fault/random_unpinned/no_move", "nothing pinned, without UFFDIO_MOVE", floor, "us", Goal::None, 0, 3},
          [](Rounds& rounds) { random_faults(rounds, false, UHMM_CONFIG_NO_MOVE); });
}

}  // namespace uhmm::bench
