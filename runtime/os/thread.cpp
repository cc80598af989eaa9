// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/thread.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace uhmm::os {

int usable_cpu(std::uint32_t n) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set) && n-- == 0) return cpu;
  return -1;
}

std::uint32_t usable_cpu_count() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<std::uint32_t>(CPU_COUNT(&set));
}

void pin_thread(int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

namespace {
thread_local std::uint32_t own_id = 0;
}  // namespace

std::uint32_t thread_id() {
  if (own_id == 0) own_id = static_cast<std::uint32_t>(syscall(SYS_gettid));
  return own_id;
}

void forget_thread_id() { own_id = 0; }

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

void futex_wait_for(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns) {
  // The standard library's waiting threads and this one sleep differently, so nobody is sure to wake it: it looks again
  // every millisecond at the latest.
  constexpr std::uint64_t kLook = 1'000'000;
  const std::uint64_t sleep_ns = timeout_ns < kLook ? timeout_ns : kLook;
  const timespec time{static_cast<time_t>(sleep_ns / 1'000'000'000), static_cast<long>(sleep_ns % 1'000'000'000)};
  (void)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, &time, nullptr, 0);
}

}  // namespace uhmm::os
