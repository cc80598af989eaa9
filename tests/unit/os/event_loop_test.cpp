// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/event_loop.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

namespace uhmm::os {
namespace {

class EventLoopTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(loop_.open().ok()) << last_detail();
    ASSERT_EQ(pipe(ends_), 0);
  }
  void TearDown() override {
    loop_.close();
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  bool wait_for(std::uint32_t token) {
    std::array<std::uint32_t, 8> tokens{};
    const std::size_t count = loop_.wait(tokens);
    return std::count(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count), token) != 0;
  }
  EventLoop loop_;
  int ends_[2] = {-1, -1};
};

TEST_F(EventLoopTest, ADescriptorThatIsReadableBringsItsToken) {
  ASSERT_TRUE(loop_.watch(ends_[0], 42).ok());
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(write(ends_[1], "x", 1), 1);
    while (!wait_for(42)) {
    }
    char byte = 0;
    ASSERT_EQ(read(ends_[0], &byte, 1), 1);
  }
}

TEST_F(EventLoopTest, NotifyWakesFromAnotherThreadWithoutAToken) {
  std::thread other([&] { loop_.notify(); });
  std::array<std::uint32_t, 8> tokens{};
  EXPECT_EQ(loop_.wait(tokens), 0u);
  other.join();
}

TEST_F(EventLoopTest, WhatIsNotWatchedAnyMoreBringsNothing) {
  ASSERT_TRUE(loop_.watch(ends_[0], 42).ok());
  loop_.unwatch(42);
  ASSERT_EQ(write(ends_[1], "x", 1), 1);
  loop_.notify();
  EXPECT_FALSE(wait_for(42));
}

TEST_F(EventLoopTest, TooManyDescriptorsAreRefused) {
  std::size_t watched = 0;
  while (watched <= EventLoop::kMostDescriptors &&
         loop_.watch(ends_[0], 100 + static_cast<std::uint32_t>(watched)).ok())
    ++watched;
  EXPECT_LT(watched, EventLoop::kMostDescriptors);
  EXPECT_GE(watched, 16u);  // eight devices, two descriptors each
}

}  // namespace
}  // namespace uhmm::os
