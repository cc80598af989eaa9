// SPDX-License-Identifier: Apache-2.0
// What a fault costs when there is more of everything: threads, ranges, address space.
#include <sys/mman.h>

#include <atomic>
#include <thread>

#include "bench/support.hpp"

namespace uhmm::bench {
namespace {

// Faults a second that `threads` threads take together, each on a CPU and in a part of the memory of its own.
double fault_rate(Memory& memory, std::uint32_t threads, std::size_t touches, std::mt19937_64& random) {
  migrate(memory.data(), memory.bytes(), kDevice);
  const std::size_t part = memory.pages() / threads;
  std::vector<std::vector<std::uint32_t>> orders;
  for (std::uint32_t i = 0; i < threads; ++i) orders.push_back(random_numbers(random, touches, part));
  std::atomic<std::uint32_t> ready{0};
  std::vector<std::thread> running;
  std::vector<double> begin(threads);
  std::vector<double> end(threads);
  for (std::uint32_t i = 0; i < threads; ++i)
    running.emplace_back([&, i] {
      const PinnedHere here(last_cpu() - static_cast<int>(i));
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      begin[i] = now_s();
      (void)median_touch_us(memory.page(part * i), orders[i]);
      end[i] = now_s();
    });
  for (auto& thread : running) thread.join();
  const double seconds = *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
  return static_cast<double>(touches * threads) / seconds;
}

void two_threads(Rounds& rounds) {
  const Runtime runtime;
  Memory memory(128 * kMiB);
  memory.fill();
  const Registration registered(memory);
  std::mt19937_64 random(3);
  (void)fault_rate(memory, 2, 4096, random);
  while (rounds.next()) {
    const double one = fault_rate(memory, 1, 4096, random);
    rounds.add(one / 1000, fault_rate(memory, 2, 4096, random) / 1000);
  }
}

// 4096 random faults in `count` ranges that together have as many bytes, a page between each two.
double fault_in_ranges_us(std::size_t count, std::mt19937_64& random) {
  constexpr std::size_t kRangePages = 16000;
  const std::size_t pages = std::max(kRangePages / count, std::size_t{1});
  Memory memory(count * (pages + 1) * kPage);
  memory.fill();
  std::vector<Registration> registered;
  registered.reserve(count);
  const auto range = [&](std::size_t i) { return memory.page(i * (pages + 1)); };
  for (std::size_t i = 0; i < count; ++i) registered.emplace_back(range(i), pages * kPage);
  for (std::size_t i = 0; i < count; ++i) migrate(range(i), pages * kPage, kDevice);
  std::vector<std::uint32_t> order = random_numbers(random, 4096, count * pages);
  for (std::uint32_t& page : order) page = static_cast<std::uint32_t>(page / pages * (pages + 1) + page % pages);
  return median_touch_us(memory.data(), order);
}

void many_ranges(Rounds& rounds, std::size_t count) {
  const Runtime runtime;
  std::mt19937_64 random(4);
  while (rounds.next()) {
    const double one = fault_in_ranges_us(1, random);
    rounds.add(one, fault_in_ranges_us(count, random));
  }
}

// 4096 random faults in one range of `bytes`, touched evenly in as many places only.
class SparseRange {
 public:
  explicit SparseRange(std::size_t bytes) : memory_(bytes), registered_((prepare(), memory_)) {}
  double fault_us(std::mt19937_64& random) {
    auto order = random_numbers(random, kPlaces, kPlaces);
    for (std::uint32_t& place : order) place = static_cast<std::uint32_t>(place * stride() / kPage);
    for (const std::uint32_t page : order) migrate(memory_.page(page), kPage, kDevice);
    return median_touch_us(memory_.data(), order);
  }

 private:
  static constexpr std::size_t kPlaces = 4096;
  std::size_t stride() const { return memory_.bytes() / kPlaces; }
  void prepare() {
    madvise(memory_.data(), memory_.bytes(), MADV_NOHUGEPAGE);
    for (std::size_t i = 0; i < kPlaces; ++i) memory_.data()[i * stride()] = std::byte{1};
  }
  Memory memory_;
  Registration registered_;
};

void sparse_range(Rounds& rounds, std::size_t bytes) {
  const Runtime runtime;
  std::mt19937_64 random(5);
  SparseRange small(kGiB);
  SparseRange large(bytes);
  (void)small.fault_us(random);
  (void)large.fault_us(random);
  while (rounds.next()) {
    const double one = small.fault_us(random);
    rounds.add(one, large.fault_us(random));
  }
}

}  // namespace

void add_scaling_rows() {
  add_row(
      {"scale/two_threads", "faults of 2 CPU threads on different blocks", "1 thread", "1000/s", Goal::AtLeast, 1.6, 9},
      two_threads);
  add_row({"scale/100_ranges", "a fault with 100 ranges, p50", "1 range", "us", Goal::AtMost, 1.3, 5},
          [](Rounds& rounds) { many_ranges(rounds, 100); });
  add_row({"scale/10000_ranges", "a fault with 10,000 ranges, p50", "1 range", "us", Goal::AtMost, 1.3, 3},
          [](Rounds& rounds) { many_ranges(rounds, 10000); });
  add_row({"scale/sparse_8G", "a fault in 8 GiB of sparse range, p50", "1 GiB", "us", Goal::AtMost, 1.3, 5},
          [](Rounds& rounds) { sparse_range(rounds, 8 * kGiB); });
  add_row({"scale/sparse_64G", "a fault in 64 GiB of sparse range, p50", "1 GiB", "us", Goal::AtMost, 1.3, 5},
          [](Rounds& rounds) { sparse_range(rounds, 64 * kGiB); });
}

}  // namespace uhmm::bench
