// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "runtime/trace/trace.hpp"

namespace uhmm::trace {
namespace {

TEST(Counters, each_has_its_field) {
  Counters counters;
  std::uint64_t value = 1;
#define UHMM_X(name, field) counters.add(Counter::name, value++);
  UHMM_COUNTER_LIST(UHMM_X)
#undef UHMM_X
#define UHMM_X(name, field) \
  for (unsigned i = 0; i < UHMM_CAUSE_COUNT; ++i) counters.add(CauseCounter::name, static_cast<uhmm_cause>(i), value++);
  UHMM_CAUSE_COUNTER_LIST(UHMM_X)
#undef UHMM_X

  uhmm_stats stats{};
  stats.size = sizeof stats;
  stats.ranges = 77;
  stats.staging_bytes = 78;
  counters.snapshot(stats);
  value = 1;
#define UHMM_X(name, field) EXPECT_EQ(stats.field, value++) << #name;
  UHMM_COUNTER_LIST(UHMM_X)
#undef UHMM_X
#define UHMM_X(name, field) \
  for (std::uint64_t n : stats.field) EXPECT_EQ(n, value++) << #name;
  UHMM_CAUSE_COUNTER_LIST(UHMM_X)
#undef UHMM_X
  EXPECT_EQ(stats.size, sizeof stats);
  EXPECT_EQ(stats.ranges, 77u) << "not a counter: left alone";
  EXPECT_EQ(stats.staging_bytes, 78u);
}

TEST(Counters, gauges_go_down) {
  Counters counters;
  counters.add(Counter::PagesOnDevices, 10);
  counters.sub(Counter::PagesOnDevices, 4);
  EXPECT_EQ(counters.get(Counter::PagesOnDevices), 6u);
}

TEST(Counters, nothing_is_lost_between_threads) {
  Counters counters;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50'000; ++i) {
        counters.add(Counter::CpuFaults, 1);
        counters.add(CauseCounter::PagesFreed, UHMM_CAUSE_EVICTION, 2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uhmm_stats stats{};
  stats.size = sizeof stats;
  counters.snapshot(stats);
  EXPECT_EQ(stats.cpu_faults, 200'000u);
  EXPECT_EQ(stats.pages_freed[UHMM_CAUSE_EVICTION], 400'000u);
}

}  // namespace
}  // namespace uhmm::trace
