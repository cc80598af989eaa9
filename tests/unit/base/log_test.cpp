// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/log.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace uhmm::log {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

template <typename Body>
std::string logged(Level level, Body body) {
  testing::internal::CaptureStderr();
  start(level);
  body();
  stop();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, format_and_level) {
  EXPECT_EQ(logged(Level::Warning,
                   [] {
                     write(Level::Info, "not this");
                     write(Level::Warning, "page %d {} %s", 5, "x");
                     write(Level::Error, "bad");
                   }),
            "uhmm [warning] page 5 {} x\nuhmm [error] bad\n");
  EXPECT_EQ(logged(Level::Off, [] { write(Level::Error, "silence"); }), "");
}

TEST(Log, long_lines_are_cut) {
  const std::string text(1000, 'y');
  const std::string out = logged(Level::Debug, [&] { write(Level::Debug, "%s", text.c_str()); });
  EXPECT_GT(out.size(), 200u);
  EXPECT_LT(out.size(), 300u);
}

TEST(Log, records_from_before_the_start_are_kept) {
  logged(Level::Debug, [] {});
  write(Level::Warning, "early");
  EXPECT_EQ(logged(Level::Warning, [] {}), "uhmm [warning] early\n");
}

TEST(Log, a_full_ring_drops_and_counts) {
  logged(Level::Debug, [] {});
  for (int i = 0; i < 1000; ++i) write(Level::Warning, "%d", i);
  const auto lines = lines_of(logged(Level::Warning, [] {}));
  ASSERT_EQ(lines.size(), 257u);
  EXPECT_EQ(lines[0], "uhmm [warning] 0");
  EXPECT_EQ(lines[255], "uhmm [warning] 255");
  EXPECT_EQ(lines[256], "uhmm [warning] 744 messages dropped");
}

TEST(Log, a_sleeping_logger_is_woken) {
  testing::internal::CaptureStderr();
  start(Level::Warning);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  write(Level::Warning, "wake");
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  std::fflush(stderr);
  const std::string out = testing::internal::GetCapturedStderr();
  stop();
  EXPECT_EQ(out, "uhmm [warning] wake\n");
}

std::string payload(unsigned thread, int i) {
  return std::string(static_cast<std::size_t>(i % 150), static_cast<char>('a' + thread));
}

TEST(Log, many_writers_lose_nothing_uncounted_and_tear_nothing) {
  constexpr unsigned kThreads = 4;
  constexpr int kEach = 3000;
  const std::string out = logged(Level::Warning, [] {
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kEach; ++i) write(Level::Warning, "t%u i%d %s", t, i, payload(t, i).c_str());
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  int total = 0;
  std::vector<int> last(kThreads, -1);
  for (const std::string& line : lines_of(out)) {
    unsigned thread = 0;
    int i = 0;
    int text = 0;
    if (std::sscanf(line.c_str(), "uhmm [warning] t%u i%d %n", &thread, &i, &text) == 2) {
      ASSERT_LT(thread, unsigned{kThreads}) << line;
      EXPECT_GT(i, last[thread]) << "a thread's records stay in order";
      last[thread] = i;
      EXPECT_EQ(line.substr(static_cast<std::size_t>(text)), payload(thread, i));
      ++total;
    } else {
      int dropped = 0;
      ASSERT_EQ(std::sscanf(line.c_str(), "uhmm [warning] %d messages dropped", &dropped), 1) << line;
      total += dropped;
    }
  }
  EXPECT_EQ(total, static_cast<int>(kThreads) * kEach);
}

}  // namespace
}  // namespace uhmm::log
