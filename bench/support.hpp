// SPDX-License-Identifier: Apache-2.0
// What the benchmarks share: rows of the published table, a runtime and memory for one benchmark, floors.
//
// A figure alone says little: it depends on the machine and on what else runs. So every row measures a floor (the
// hand-written or plain way to do the same) and the subject in turn, in the same process, and reports their ratio.
#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "uhmm/uhmm.h"

namespace uhmm::bench {

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kMiB = std::size_t{1} << 20;
inline constexpr std::size_t kGiB = std::size_t{1} << 30;
inline constexpr std::size_t kBlock = 2 * kMiB;

// What the large rows work on: UHMM_BENCH_BYTES (a number of bytes, or with K, M, G), default 1 GiB. They need about
// four times as much memory.
std::size_t large_bytes();

double now_s();
double median(std::vector<double> values);
// Throws std::runtime_error with the runtime's own words; run_row() turns that into a failed row.
void check(uhmm_status status, const char* what);
void require(bool good, const char* what);

// ------------------------------------------------------------------------------------------------------------- rows

enum class Goal : std::uint8_t { AtMost, AtLeast, None };  // None: worth knowing, no target

struct Row {
  const char* name;
  const char* what;
  const char* floor;  // what the floor is; "" for none
  const char* unit;   // of floor and value
  Goal goal = Goal::None;
  double target = 0;
  int rounds = 5;
};

// The figures of one run of a row. Counters: floor, value (medians), ratio (median of the rounds' value / floor),
// ratio_low, ratio_high (extremes), target, met (1, 0; absent without a target).
class Rounds {
 public:
  Rounds(benchmark::State& state, const Row& row) : state_(state), row_(row) {}
  bool next() { return state_.KeepRunning(); }
  int index() const { return static_cast<int>(floors_.size()); }
  // Ends a round.
  void add(double floor, double value);
  void counter(const char* name, double value) { state_.counters[name] = value; }
  void finish();

 private:
  benchmark::State& state_;
  const Row& row_;
  std::vector<double> floors_;
  std::vector<double> values_;
};

using Body = std::function<void(Rounds&)>;
void add_row(const Row& row, Body body);

void add_fault_rows();
void add_copy_rows();
void add_sweep_rows();
void add_scaling_rows();
void add_cost_rows();
void add_fork_rows();

// ------------------------------------------------------------------------------------------------- runtime, memory

inline constexpr uhmm_processor kDevice = 1;

// Default configuration, with room for twice the large rows' memory on the device.
uhmm_config bench_config();

// Comes first in a row: starting it forks, and what was touched before is copied once more when it is written again.
class Runtime {
 public:
  explicit Runtime(const uhmm_config& config = bench_config());
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  ~Runtime();
  // One kernel to its end.
  void run(uhmm_kernel kernel, const void* args, std::size_t args_bytes, std::uint32_t cells);
  std::uint32_t workers() const;
  uhmm_stats stats() const;

 private:
  uhmm_stream stream_ = 0;
};

void migrate(void* address, std::size_t bytes, uhmm_processor to);

// Private anonymous memory.
class Memory {
 public:
  explicit Memory(std::size_t bytes);
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory();
  std::byte* data() const { return data_; }
  std::byte* page(std::size_t i) const { return data_ + i * kPage; }
  std::uint64_t* words() const { return reinterpret_cast<std::uint64_t*>(data_); }
  std::size_t bytes() const { return bytes_; }
  std::size_t pages() const { return bytes_ / kPage; }
  std::size_t word_count() const { return bytes_ / sizeof(std::uint64_t); }
  void fill();  // word i becomes i

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Registration {
 public:
  Registration(void* address, std::size_t bytes);
  explicit Registration(const Memory& memory) : Registration(memory.data(), memory.bytes()) {}
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  Registration(Registration&& other) noexcept : address_(std::exchange(other.address_, nullptr)) {}
  Registration& operator=(Registration&&) = delete;
  ~Registration();

 private:
  void* address_ = nullptr;
};

// -------------------------------------------------------------------------------------------------- CPUs and passes

// The calling thread, and every thread it starts meanwhile, runs on one CPU only.
class PinnedHere {
 public:
  explicit PinnedHere(int cpu);
  PinnedHere(const PinnedHere&) = delete;
  PinnedHere& operator=(const PinnedHere&) = delete;
  ~PinnedHere();

 private:
  std::vector<std::byte> before_;
};
int last_cpu();  // of those this process may use

// `count` different numbers below `limit`, in random order.
std::vector<std::uint32_t> random_numbers(std::mt19937_64& random, std::size_t count, std::size_t limit);
// Reads a word of each page in this order; the median time of one, in microseconds.
double median_touch_us(std::byte* data, std::span<const std::uint32_t> pages);
// The sum of one word of each page, or of all words, of memory that fill() filled, checked. Returns seconds.
double read_page_words(const Memory& memory);
double read_all_words(const Memory& memory);

// memcpy, one thread, between two pieces of memory that were touched before.
class MemcpyFloor {
 public:
  explicit MemcpyFloor(std::size_t bytes);
  double gb_per_s();

 private:
  Memory from_;
  Memory to_;
};

}  // namespace uhmm::bench
