// SPDX-License-Identifier: Apache-2.0
#include "bench/support.hpp"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace uhmm::bench {

std::size_t large_bytes() {
  static const std::size_t bytes = [] {
    const char* text = std::getenv("UHMM_BENCH_BYTES");
    if (text == nullptr) return kGiB;
    char* end = nullptr;
    std::size_t number = std::strtoull(text, &end, 0);
    if (*end == 'K' || *end == 'k') number <<= 10;
    if (*end == 'M' || *end == 'm') number <<= 20;
    if (*end == 'G' || *end == 'g') number <<= 30;
    return std::max(number / kBlock, std::size_t{32}) * kBlock;
  }();
  return bytes;
}

double now_s() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

void check(uhmm_status status, const char* what) {
  if (status == UHMM_OK) return;
  throw std::runtime_error(std::string(what) + ": " + uhmm_status_name(status) + ": " + uhmm_error_detail());
}

void require(bool good, const char* what) {
  if (!good) throw std::runtime_error(what);
}

// ------------------------------------------------------------------------------------------------------------- rows

void Rounds::add(double floor, double value) {
  floors_.push_back(floor);
  values_.push_back(value);
  state_.SetIterationTime(1e-9);  // the counters are the result
}

void Rounds::finish() {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < floors_.size(); ++i)
    if (floors_[i] > 0) ratios.push_back(values_[i] / floors_[i]);
  counter("value", median(values_));
  if (ratios.empty()) return;
  const double ratio = median(ratios);
  counter("floor", median(floors_));
  counter("ratio", ratio);
  counter("ratio_low", *std::min_element(ratios.begin(), ratios.end()));
  counter("ratio_high", *std::max_element(ratios.begin(), ratios.end()));
  if (row_.goal == Goal::None) return;
  counter("target", row_.target);
  counter("at_least", row_.goal == Goal::AtLeast ? 1 : 0);
  counter("met", (row_.goal == Goal::AtLeast ? ratio >= row_.target : ratio <= row_.target) ? 1 : 0);
}

void add_row(const Row& row, Body body) {
  benchmark::RegisterBenchmark(row.name,
                               [row, body = std::move(body)](benchmark::State& state) {
                                 state.SetLabel(std::string(row.what) + "|" + row.floor + "|" + row.unit);
                                 try {
                                   Rounds rounds(state, row);
                                   body(rounds);
                                   rounds.finish();
                                 } catch (const std::exception& problem) {
                                   state.SkipWithError(problem.what());
                                 }
                               })
      ->Iterations(row.rounds)
      ->UseManualTime();
}

// ------------------------------------------------------------------------------------------------- runtime, memory

uhmm_config bench_config() {
  uhmm_config config = UHMM_CONFIG_INIT;
  config.device_memory = std::max(2 * large_bytes(), 2 * kGiB);
  return config;
}

Runtime::Runtime(const uhmm_config& config) {
  check(uhmm_init(&config), "uhmm_init");
  check(uhmm_stream_create(kDevice, &stream_), "uhmm_stream_create");
}

Runtime::~Runtime() { (void)uhmm_shutdown(); }

void Runtime::run(uhmm_kernel kernel, const void* args, std::size_t args_bytes, std::uint32_t cells) {
  uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
  desc.kernel = kernel;
  desc.args = args;
  desc.args_size = args_bytes;
  desc.grid[0] = cells;
  check(uhmm_launch(stream_, &desc), "uhmm_launch");
  check(uhmm_stream_synchronize(stream_), "uhmm_stream_synchronize");
}

std::uint32_t Runtime::workers() const {
  uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
  check(uhmm_device_get_info(kDevice, &info), "uhmm_device_get_info");
  return info.workers;
}

uhmm_stats Runtime::stats() const {
  uhmm_stats out = UHMM_STATS_INIT;
  check(uhmm_get_stats(&out), "uhmm_get_stats");
  return out;
}

void migrate(void* address, std::size_t bytes, uhmm_processor to) {
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  check(uhmm_migrate(address, bytes, to, &result), "uhmm_migrate");
  require(result.pages_skipped == 0, "uhmm_migrate skipped pages");
}

Memory::Memory(std::size_t bytes) : bytes_(bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
  data_ = static_cast<std::byte*>(memory);
}

Memory::~Memory() { munmap(data_, bytes_); }

void Memory::fill() { std::iota(words(), words() + word_count(), std::uint64_t{0}); }

Registration::Registration(void* address, std::size_t bytes) {
  check(uhmm_register(address, bytes), "uhmm_register");
  address_ = address;
}

Registration::~Registration() {
  if (address_ != nullptr) (void)uhmm_unregister(address_);
}

// -------------------------------------------------------------------------------------------------- CPUs and passes

PinnedHere::PinnedHere(int cpu) : before_(sizeof(cpu_set_t)) {
  auto* before = reinterpret_cast<cpu_set_t*>(before_.data());
  require(sched_getaffinity(0, sizeof(*before), before) == 0, "sched_getaffinity");
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  require(sched_setaffinity(0, sizeof(one), &one) == 0, "sched_setaffinity");
}

PinnedHere::~PinnedHere() {
  (void)sched_setaffinity(0, sizeof(cpu_set_t), reinterpret_cast<const cpu_set_t*>(before_.data()));
}

int last_cpu() {
  cpu_set_t set;
  CPU_ZERO(&set);
  require(sched_getaffinity(0, sizeof(set), &set) == 0, "sched_getaffinity");
  int last = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) last = cpu;
  return last;
}

std::vector<std::uint32_t> random_numbers(std::mt19937_64& random, std::size_t count, std::size_t limit) {
  std::vector<std::uint32_t> numbers(limit);
  std::iota(numbers.begin(), numbers.end(), 0u);
  std::shuffle(numbers.begin(), numbers.end(), random);
  numbers.resize(std::min(count, limit));
  return numbers;
}

double median_touch_us(std::byte* data, std::span<const std::uint32_t> pages) {
  std::vector<double> times;
  times.reserve(pages.size());
  for (const std::uint32_t page : pages) {
    const double before = now_s();
    (void)*reinterpret_cast<const volatile std::uint64_t*>(data + std::size_t{page} * kPage);
    times.push_back(now_s() - before);
  }
  return median(std::move(times)) * 1e6;
}

double read_page_words(const Memory& memory) {
  const double before = now_s();
  std::uint64_t sum = 0;
  for (std::size_t page = 0; page < memory.pages(); ++page)
    sum += *reinterpret_cast<const volatile std::uint64_t*>(memory.page(page));
  const double seconds = now_s() - before;
  const std::uint64_t pages = memory.pages();
  require(sum == pages * (pages - 1) / 2 * (kPage / sizeof(std::uint64_t)), "a page's first word is wrong");
  return seconds;
}

double read_all_words(const Memory& memory) {
  const double before = now_s();
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < memory.word_count(); ++i) sum += memory.words()[i];
  benchmark::DoNotOptimize(sum);
  const double seconds = now_s() - before;
  const std::uint64_t words = memory.word_count();
  require(sum == words / 2 * (words - 1), "the sum of the words is wrong");
  return seconds;
}

MemcpyFloor::MemcpyFloor(std::size_t bytes) : from_(bytes), to_(bytes) {
  std::memset(from_.data(), 1, bytes);
  std::memset(to_.data(), 2, bytes);
  (void)gb_per_s();
}

double MemcpyFloor::gb_per_s() {
  const double before = now_s();
  std::memcpy(to_.data(), from_.data(), from_.bytes());
  benchmark::ClobberMemory();
  return static_cast<double>(from_.bytes()) / 1e9 / (now_s() - before);
}

}  // namespace uhmm::bench
