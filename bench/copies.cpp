// SPDX-License-Identifier: Apache-2.0
// How fast memory comes and goes in bulk: by the CPU's own walk, and by request.
#include <sys/mman.h>

#include "bench/support.hpp"

namespace uhmm::bench {
namespace {

double gb_per_s(std::size_t bytes, double seconds) { return static_cast<double>(bytes) / 1e9 / seconds; }

void cpu_pass(Rounds& rounds, double (*pass)(const Memory&), std::uint32_t flags, std::uint64_t staging) {
  uhmm_config config = bench_config();
  config.flags |= flags;
  config.staging_memory = staging;
  const Runtime runtime(config);
  MemcpyFloor floor(large_bytes());
  Memory memory(large_bytes());
  memory.fill();
  const Registration registered(memory);
  const auto once = [&] {
    migrate(memory.data(), memory.bytes(), kDevice);
    return gb_per_s(memory.bytes(), pass(memory));
  };
  (void)once();
  while (rounds.next()) {
    const double plain = floor.gb_per_s();
    rounds.add(plain, once());
  }
  rounds.counter("cpu_faults", static_cast<double>(runtime.stats().cpu_faults) / (rounds.index() + 1));
}

// There and back again, all in ranges of 64 MiB.
void migrate_ranges(Rounds& rounds, std::size_t bytes, bool back, std::uint32_t flags) {
  uhmm_config config = bench_config();
  config.flags |= flags;
  const Runtime runtime(config);
  MemcpyFloor floor(bytes);
  Memory memory(bytes);
  memory.fill();
  const Registration registered(memory);
  const auto timed = [&](uhmm_processor to) {
    const double before = now_s();
    migrate(memory.data(), memory.bytes(), to);
    return gb_per_s(memory.bytes(), now_s() - before);
  };
  const auto once = [&] {
    const double there = timed(kDevice);
    const double home = timed(UHMM_CPU);
    return back ? home : there;
  };
  (void)once();
  while (rounds.next()) {
    const double plain = floor.gb_per_s();
    rounds.add(plain, once());
  }
  (void)read_all_words(memory);  // right?
}

// Huge pages against single ones, there and back again.
void migrate_huge(Rounds& rounds, bool back) {
  const Runtime runtime;
  Memory single(64 * kMiB);
  Memory huge(64 * kMiB + kBlock);
  (void)madvise(single.data(), single.bytes(), MADV_NOHUGEPAGE);
  (void)madvise(huge.data(), huge.bytes(), MADV_HUGEPAGE);
  const Registration registered_single(single);
  const Registration registered_huge(huge);
  single.fill();
  huge.fill();
  const auto once = [&](const Memory& memory) {
    double speed[2] = {};
    for (const bool home : {false, true}) {
      const double before = now_s();
      migrate(memory.data(), memory.bytes(), home ? UHMM_CPU : kDevice);
      speed[home ? 1 : 0] = gb_per_s(memory.bytes(), now_s() - before);
    }
    return speed[back ? 1 : 0];
  };
  (void)once(single);
  (void)once(huge);
  while (rounds.next()) {
    const double plain = once(single);
    rounds.add(plain, once(huge));
  }
}

}  // namespace

void add_copy_rows() {
  const char* floor = "memcpy, one thread, warm";
  add_row({"pass/one_load_per_page", "sequential CPU pass over device memory, one load per page", floor, "GB/s",
           Goal::AtLeast, 0.75, 5},
          [](Rounds& rounds) { cpu_pass(rounds, read_page_words, 0, 0); });
  add_row({"pass/every_word", "the same, every word summed", floor, "GB/s", Goal::AtLeast, 0.5, 5},
          [](Rounds& rounds) { cpu_pass(rounds, read_all_words, 0, 0); });
  add_row({"pass/one_load_per_page/staging", "one load per page, staging as large as the data", floor, "GB/s",
           Goal::None, 0, 5},
          [](Rounds& rounds) { cpu_pass(rounds, read_page_words, 0, large_bytes() + 64 * kMiB); });
  add_row({"pass/every_word/staging", "every word, staging as large as the data", floor, "GB/s", Goal::None, 0, 5},
          [](Rounds& rounds) { cpu_pass(rounds, read_all_words, 0, large_bytes() + 64 * kMiB); });
  add_row({"pass/one_load_per_page/no_move", "one load per page, without UFFDIO_MOVE", floor, "GB/s", Goal::None, 0, 3},
          [](Rounds& rounds) { cpu_pass(rounds, read_page_words, UHMM_CONFIG_NO_MOVE, 0); });
  add_row({"migrate/to_device", "uhmm_migrate to a device, 64 MiB", floor, "GB/s", Goal::AtLeast, 0.85, 15},
          [](Rounds& rounds) { migrate_ranges(rounds, 64 * kMiB, false, 0); });
  add_row({"migrate/to_system", "uhmm_migrate back, 64 MiB", floor, "GB/s", Goal::AtLeast, 0.85, 15},
          [](Rounds& rounds) { migrate_ranges(rounds, 64 * kMiB, true, 0); });
  add_row({"huge/to_device", "uhmm_migrate of huge pages to a device, 64 MiB", "the same of 4 KiB pages", "GB/s",
           Goal::AtLeast, 1.0, 15},
          [](Rounds& rounds) { migrate_huge(rounds, false); });
  add_row({"huge/to_system", "uhmm_migrate of huge pages back, 64 MiB", "the same of 4 KiB pages", "GB/s",
           Goal::AtLeast, 1.0, 15},
          [](Rounds& rounds) { migrate_huge(rounds, true); });
  add_row({"migrate/to_device/large", "uhmm_migrate to a device, all of it", floor, "GB/s", Goal::None, 0, 4},
          [](Rounds& rounds) { migrate_ranges(rounds, large_bytes(), false, 0); });
  add_row({"migrate/to_system/large", "uhmm_migrate back, all of it", floor, "GB/s", Goal::None, 0, 4},
          [](Rounds& rounds) { migrate_ranges(rounds, large_bytes(), true, 0); });
  add_row({"migrate/to_device/no_move", "to a device, 64 MiB, without UFFDIO_MOVE", floor, "GB/s", Goal::None, 0, 8},
          [](Rounds& rounds) { migrate_ranges(rounds, 64 * kMiB, false, UHMM_CONFIG_NO_MOVE); });
  add_row({"migrate/to_system/no_move", "back, 64 MiB, without UFFDIO_MOVE", floor, "GB/s", Goal::None, 0, 8},
          [](Rounds& rounds) { migrate_ranges(rounds, 64 * kMiB, true, UHMM_CONFIG_NO_MOVE); });
}

}  // namespace uhmm::bench
