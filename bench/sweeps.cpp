// SPDX-License-Identifier: Apache-2.0
// Kernels that come to memory which is not there yet, and what travels on a second visit.
#include <algorithm>
#include <cstring>

#include "bench/support.hpp"

namespace uhmm::bench {
namespace {

struct SweepArgs {
  std::uint64_t* words;
  std::size_t count;
  std::uint64_t* sums;  // one per cell, in managed memory
};

// This cell's part, whole pages.
std::pair<std::size_t, std::size_t> part_of(const uhmm_kernel_item* item, std::size_t words) {
  constexpr std::size_t kPageWords = kPage / sizeof(std::uint64_t);
  const std::size_t pages = words / kPageWords;
  const std::size_t cells = item->grid[0];
  return {pages * item->index[0] / cells * kPageWords, pages * (item->index[0] + 1) / cells * kPageWords};
}

void read_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto& args = *static_cast<const SweepArgs*>(raw);
  const auto [begin, end] = part_of(item, args.count);
  std::uint64_t sum = 0;
  for (std::size_t i = begin; i < end; ++i) sum += args.words[i];
  args.sums[item->index[0]] = sum;
}

void increment_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto& args = *static_cast<const SweepArgs*>(raw);
  const auto [begin, end] = part_of(item, args.count);
  for (std::size_t i = begin; i < end; ++i) ++args.words[i];
}

void empty_kernel(const uhmm_kernel_item*, void*) {}

// A range, the cells' sums in a range of their own, and a runtime that sweeps them.
struct Sweeper {
  explicit Sweeper(std::size_t bytes) : memory(bytes), sums(kPage) {
    memory.fill();
    std::memset(sums.data(), 0, sums.bytes());
  }
  double sweep(uhmm_kernel kernel) {
    const SweepArgs args{memory.words(), memory.word_count(), sums.words()};
    const double before = now_s();
    runtime.run(kernel, &args, sizeof(args), runtime.workers());
    return now_s() - before;
  }
  std::uint64_t sum() const {
    std::uint64_t all = 0;
    for (std::uint32_t i = 0; i < runtime.workers(); ++i) all += sums.words()[i];
    return all;
  }

  Runtime runtime;
  Memory memory;
  Memory sums;
  Registration registered{memory};
  Registration sums_registered{sums};
};

void kernel_sweep(Rounds& rounds, bool write) {
  Sweeper sweeper(large_bytes());
  MemcpyFloor floor(large_bytes());
  std::uint64_t added = 0;
  const auto once = [&] {
    const double seconds = sweeper.sweep(write ? increment_kernel : read_kernel);
    const std::uint64_t words = sweeper.memory.word_count();
    if (write)
      ++added;
    else
      require(sweeper.sum() == words / 2 * (words - 1), "the device's sum is wrong");
    migrate(sweeper.memory.data(), sweeper.memory.bytes(), UHMM_CPU);
    return static_cast<double>(sweeper.memory.bytes()) / 1e9 / seconds;
  };
  (void)once();
  const std::uint64_t faults_before = sweeper.runtime.stats().device_faults;
  while (rounds.next()) {
    const double plain = floor.gb_per_s();
    rounds.add(plain, once());
  }
  rounds.counter("device_faults",
                 static_cast<double>(sweeper.runtime.stats().device_faults - faults_before) / rounds.index());
  for (std::size_t i = 0; i < sweeper.memory.word_count(); i += 509)
    require(sweeper.memory.words()[i] == i + added, "a word is wrong after the sweeps");
}

// A kernel visits, the CPU writes one word of 1 % of the pages, the kernel reads everything again.
void second_visit(Rounds& rounds, bool kernel_writes) {
  constexpr std::size_t kBytes = 256 * kMiB;
  Sweeper sweeper(kBytes);
  std::mt19937_64 random(2);
  double home = 0;
  while (rounds.next()) {
    (void)sweeper.sweep(kernel_writes ? increment_kernel : read_kernel);
    const auto pages = random_numbers(random, sweeper.memory.pages() / 100, sweeper.memory.pages());
    const uhmm_stats before = sweeper.runtime.stats();
    for (const std::uint32_t page : pages) *reinterpret_cast<volatile std::uint64_t*>(sweeper.memory.page(page)) = 7;
    (void)sweeper.sweep(read_kernel);
    const uhmm_stats after = sweeper.runtime.stats();
    const auto written = static_cast<double>(pages.size() * kPage);
    rounds.add(written / 1e6, static_cast<double>(after.bytes_to_device - before.bytes_to_device) / 1e6);
    home = static_cast<double>(after.bytes_to_system - before.bytes_to_system) / written;
    const std::uint64_t seen = sweeper.sum();
    std::uint64_t expected = 0;
    for (std::size_t i = 0; i < sweeper.memory.word_count(); ++i) expected += sweeper.memory.words()[i];
    require(seen == expected, "the device read something else than the CPU");
    migrate(sweeper.memory.data(), sweeper.memory.bytes(), UHMM_CPU);
  }
  rounds.counter("home_per_written", home);
}

void launch_round_trip(Rounds& rounds) {
  Runtime runtime;
  while (rounds.next()) {
    std::vector<double> times;
    for (int i = 0; i < 200; ++i) {
      const double before = now_s();
      runtime.run(empty_kernel, nullptr, 0, 1);
      times.push_back(now_s() - before);
    }
    rounds.add(0, median(times) * 1e6);
  }
}

}  // namespace

void add_sweep_rows() {
  const char* floor = "memcpy, one thread, warm";
  add_row({"sweep/read", "kernel reads system-resident memory, device faults included", floor, "GB/s", Goal::AtLeast,
           0.4, 4},
          [](Rounds& rounds) { kernel_sweep(rounds, false); });
  add_row({"sweep/read_modify_write", "kernel increments every word, device faults included", floor, "GB/s",
           Goal::AtLeast, 0.4, 4},
          [](Rounds& rounds) { kernel_sweep(rounds, true); });
  add_row({"revisit/after_kernel_read", "second visit after the CPU wrote 1 % of the pages (kernel had read)",
           "bytes written", "MB", Goal::AtMost, 1.1, 3},
          [](Rounds& rounds) { second_visit(rounds, false); });
  add_row({"revisit/after_kernel_write", "second visit after the CPU wrote 1 % of the pages (kernel had written)",
           "bytes written", "MB", Goal::AtMost, 1.1, 3},
          [](Rounds& rounds) { second_visit(rounds, true); });
  add_row({"launch/empty_kernel", "launch and synchronize an empty kernel", "", "us", Goal::None, 0, 5},
          launch_round_trip);
}

}  // namespace uhmm::bench
