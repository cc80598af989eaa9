// SPDX-License-Identifier: Apache-2.0
// What the demo prints: a progress bar while a step takes long, one line per step, and pages by cause at the end.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <uhmm/uhmm.hpp>

namespace demo {

using Clock = std::chrono::steady_clock;

// Appears on a terminal's stderr after a second, and is gone when the step is done.
class ProgressBar {
 public:
  ProgressBar(std::string title, std::uint64_t total)
      : title_(std::move(title)), total_(std::max<std::uint64_t>(total, 1)) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void update(std::uint64_t done) {
    const Clock::time_point now = Clock::now();
    if (!terminal_ || now < next_) return;
    next_ = now + std::chrono::milliseconds(100);
    shown_ = true;
    std::fprintf(stderr, "\r%-34s ", title_.c_str());
    if (done > total_) {
      // Memory that doesn't fit travels more than once: there is no telling how much of it is still to come.
      std::fprintf(stderr, "%.0f MiB moved so far\033[K", static_cast<double>(done) / (1 << 20));
    } else {
      constexpr std::size_t kWidth = 40;
      const double share = static_cast<double>(done) / static_cast<double>(total_);
      const auto filled = static_cast<std::size_t>(share * kWidth);
      std::fprintf(stderr, "[%s%s] %3.0f %%", std::string(filled, '#').c_str(),
                   std::string(kWidth - filled, '.').c_str(), share * 100);
    }
    std::fflush(stderr);
  }

 private:
  std::string title_;
  std::uint64_t total_;
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  Clock::time_point next_ = Clock::now() + std::chrono::seconds(1);
};

inline double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// Prints one line per step, as soon as it is done: what it took and what moved meanwhile.
class StepTable {
 public:
  static void print_head() {
    std::printf("%-36s %9s %9s %11s %11s %8s %8s\n", "", "time", "speed", "to device", "to system", "CPU", "device");
    std::printf("%-36s %9s %9s %11s %11s %8s %8s\n", "step", "ms", "MB/s", "MiB", "MiB", "faults", "faults");
  }
  // `work` gets the progress bar; `bytes` is what it works on, 0 where a speed would mean nothing.
  template <typename Work>
  static void run(const std::string& title, std::uint64_t bytes, Work work) {
    const uhmm_stats before = uhmm::stats();
    const Clock::time_point start = Clock::now();
    {
      ProgressBar bar(title, bytes);
      work(bar);
    }
    const std::chrono::duration<double> took = Clock::now() - start;
    const uhmm_stats after = uhmm::stats();
    char speed[32] = "-";
    if (bytes > 0) std::snprintf(speed, sizeof speed, "%.0f", static_cast<double>(bytes) / 1e6 / took.count());
    std::printf("%-36s %9.1f %9s %11.1f %11.1f %8llu %8llu\n", title.c_str(), took.count() * 1e3, speed,
                mib(after.bytes_to_device - before.bytes_to_device),
                mib(after.bytes_to_system - before.bytes_to_system),
                static_cast<unsigned long long>(after.cpu_faults - before.cpu_faults),
                static_cast<unsigned long long>(after.device_faults - before.device_faults));
    std::fflush(stdout);
  }
};

inline void print_causes(const uhmm_stats& stats, std::uint64_t page_bytes) {
  const auto cell = [page_bytes](std::uint64_t pages) {
    char text[40] = "-";
    if (pages > 0) {
      std::snprintf(text, sizeof text, "%llu  %7.1f MiB", static_cast<unsigned long long>(pages),
                    mib(pages * page_bytes));
    }
    return std::string(text);
  };
  std::printf("\n%-36s %26s %26s\n", "pages moved, and why", "to device", "to system");
  std::uint64_t to_device = 0;
  std::uint64_t to_system = 0;
  for (int cause = 0; cause < UHMM_CAUSE_COUNT; ++cause) {
    const std::uint64_t out = stats.pages_to_device[cause];
    const std::uint64_t in = stats.pages_to_system[cause];
    if (out == 0 && in == 0) continue;
    to_device += out;
    to_system += in;
    std::printf("%-36s %26s %26s\n", uhmm_cause_text(static_cast<uhmm_cause>(cause)), cell(out).c_str(),
                cell(in).c_str());
  }
  std::printf("%-36s %26s %26s\n", "in all", cell(to_device).c_str(), cell(to_system).c_str());
}

}  // namespace demo
