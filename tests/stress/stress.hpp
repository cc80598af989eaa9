// SPDX-License-Identifier: Apache-2.0
// What stress tests share: the seed, the length, and a limit for tests that hang.
#pragma once

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>

#include "tests/support/seed.hpp"

namespace uhmm::test {

// UHMM_STRESS_SEED, or UHMM_TEST_SEED as everywhere, or a new one; printed once.
inline std::uint64_t stress_seed() {
  if (const char* given = std::getenv("UHMM_STRESS_SEED"); given != nullptr) {
    static const std::uint64_t value = [given] {
      const std::uint64_t chosen = std::strtoull(given, nullptr, 0);
      std::printf("UHMM_STRESS_SEED=%llu\n", static_cast<unsigned long long>(chosen));
      return chosen;
    }();
    return value;
  }
  return seed();
}

// UHMM_STRESS_SECONDS bounds how long each stress test goes on; the default is for CI.
inline std::chrono::steady_clock::time_point stress_end(int default_seconds) {
  const char* given = std::getenv("UHMM_STRESS_SECONDS");
  const int seconds = given != nullptr ? std::atoi(given) : default_seconds;
  return std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
}
// Is somebody asking for more than CI does? Then work counts do not end a test, only time does.
inline bool stress_is_long() { return std::getenv("UHMM_STRESS_SECONDS") != nullptr; }

// What each thread of a test is doing, for whoever finds it hanging. Written by its thread, read by the signal handler.
class Activity {
 public:
  static constexpr std::size_t kMost = 16;
  static void say(std::size_t thread, const char* what) {
    table()[thread % kMost].what.store(what, std::memory_order_relaxed);
    progress().fetch_add(1, std::memory_order_relaxed);
  }
  static void clear() {
    for (auto& entry : table()) entry.what.store(nullptr, std::memory_order_relaxed);
  }
  static std::atomic<std::uint64_t>& progress() {
    static std::atomic<std::uint64_t> count{0};
    return count;
  }
  // In a signal handler: write(2) only.
  static void print() {
    for (std::size_t i = 0; i < kMost; ++i) {
      const char* what = table()[i].what.load(std::memory_order_relaxed);
      if (what == nullptr) continue;
      char number[4] = {static_cast<char>('0' + i / 10), static_cast<char>('0' + i % 10), ':', ' '};
      (void)!::write(2, "  thread ", 9);
      (void)!::write(2, number, sizeof(number));
      (void)!::write(2, what, std::strlen(what));
      (void)!::write(2, "\n", 1);
    }
  }

 private:
  struct Entry {
    std::atomic<const char*> what{nullptr};
  };
  static std::array<Entry, kMost>& table() {
    static std::array<Entry, kMost> entries;
    return entries;
  }
};

// While it lives: when nothing has progressed between two looks, 60 s apart, somebody hangs. Says who does what and ends
// the program, so that a deadlock is a failure with a reason instead of a timeout. No measure of speed: only standstill
// counts, and a test that says nothing about its progress has the whole time for all of it.
class Deadline {
 public:
  static constexpr int kSeconds = 60;
  explicit Deadline(const char* name) {
    test_name() = name;
    Activity::clear();
    seen() = ~std::uint64_t{0};
    struct sigaction action {};
    action.sa_handler = look;
    action.sa_flags = SA_RESTART;
    (void)sigaction(SIGALRM, &action, &before_);
    (void)look_again();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  ~Deadline() {
    (void)alarm(0);
    (void)sigaction(SIGALRM, &before_, nullptr);
  }

 private:
  static unsigned look_again() { return alarm(kSeconds); }
  static const char*& test_name() {
    static const char* name = "";
    return name;
  }
  static std::uint64_t& seen() {
    static std::uint64_t count = 0;
    return count;
  }
  static void look(int) {
    const std::uint64_t now = Activity::progress().load(std::memory_order_relaxed);
    const bool hangs = now == seen() || now == 0;
    seen() = now;
    if (!hangs) {
      (void)look_again();
      return;
    }
    (void)!::write(2, "no progress for a minute in ", 28);
    (void)!::write(2, test_name(), std::strlen(test_name()));
    (void)!::write(2, "\n", 1);
    Activity::print();
    std::abort();
  }
  struct sigaction before_ {};
};

}  // namespace uhmm::test
