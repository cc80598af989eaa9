// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_gate.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace uhmm::engine {
namespace {

TEST(ForkGate, WhoIsTurnedAwayIsRemembered) {
  ForkGate gate;
  EXPECT_TRUE(gate.try_enter());
  gate.leave();
  gate.close();
  EXPECT_TRUE(gate.closed());
  EXPECT_FALSE(gate.try_enter());
  EXPECT_FALSE(gate.try_enter());
  EXPECT_TRUE(gate.open()) << "somebody has to be told";
  EXPECT_TRUE(gate.try_enter());
  gate.leave();
  gate.close();
  EXPECT_FALSE(gate.open()) << "once";
}

TEST(ForkGate, ClosingWaitsForWhoIsInside) {
  ForkGate gate;
  ASSERT_TRUE(gate.try_enter());
  ASSERT_TRUE(gate.try_enter());
  std::atomic<bool> closed{false};
  std::thread closer([&] {
    gate.close();
    closed.store(true);
  });
  while (!gate.closed()) std::this_thread::yield();
  gate.leave();
  EXPECT_FALSE(closed.load());
  gate.leave();
  closer.join();
  EXPECT_TRUE(closed.load());
  (void)gate.open();
}

// While it is closed nobody is inside, and everybody gets through in the end.
TEST(ForkGate, NobodyIsInsideWhileItIsClosed) {
  constexpr int kRounds = 500;
  ForkGate gate;
  std::atomic<int> inside{0};
  std::atomic<int> entered{0};
  std::atomic<bool> good{true};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        gate.enter();
        inside.fetch_add(1);
        entered.fetch_add(1);
        inside.fetch_sub(1);
        gate.leave();
      }
    });
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        gate.close();
        if (inside.load() != 0) good.store(false);
        (void)gate.open();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(good.load());
  EXPECT_EQ(entered.load(), 2 * kRounds);
}

}  // namespace
}  // namespace uhmm::engine
