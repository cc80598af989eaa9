// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/lock.hpp"

#include <gtest/gtest.h>

#include <mutex>
#include <shared_mutex>
#include <thread>

#include "runtime/base/check.hpp"

namespace uhmm {
namespace {

TEST(Lock, list_is_sorted_and_named) {
  int last = 0;
#define UHMM_X(name, rank, protects, across) \
  EXPECT_LT(last, rank) << #name;            \
  last = rank;                               \
  EXPECT_STREQ(lock_name(LockRank::name), #name);
  UHMM_LOCK_LIST(UHMM_X)
#undef UHMM_X
  EXPECT_STREQ(lock_name(static_cast<LockRank>(1)), "?");
}

TEST(Lock, ascending_ranks_are_fine_and_may_end_in_any_order) {
  RankedSharedMutex<LockRank::VaSpace> space;
  RankedMutex<LockRank::Block> block;
  RankedMutex<LockRank::Staging> staging;
  for (int round = 0; round < 40; ++round) {  // more rounds than the stack of ranks is deep
    std::shared_lock a(space);
    std::unique_lock b(block);
    std::unique_lock c(staging);
    a.unlock();
    c.unlock();
    std::scoped_lock d(staging);
  }
  EXPECT_TRUE(lock_order::none_held());
}

TEST(Lock, ranks_are_per_thread) {
  RankedMutex<LockRank::Staging> staging;
  RankedMutex<LockRank::Block> block;
  std::scoped_lock lock(staging);
  std::thread([&] {
    EXPECT_TRUE(lock_order::none_held());
    std::scoped_lock inner(block);
  }).join();
}

TEST(Lock, try_lock_of_a_taken_lock_holds_nothing) {
  RankedMutex<LockRank::Block> block;
  std::scoped_lock lock(block);
  std::thread([&] {
    EXPECT_FALSE(block.try_lock());
    EXPECT_TRUE(lock_order::none_held());
  }).join();
}

class LockDeathTest : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

TEST_F(LockDeathTest, panic_says_where_and_why) {
  EXPECT_DEATH(UHMM_REQUIRE(1 + 1 == 3, "sums are right"), "lock_test.cpp:[0-9]+: sums are right.*1 \\+ 1 == 3");
}

#ifdef UHMM_CHECKS
TEST_F(LockDeathTest, descending_ranks_abort) {
  RankedMutex<LockRank::Block> block;
  RankedMutex<LockRank::Staging> staging;
  std::scoped_lock lock(staging);
  EXPECT_DEATH(block.lock(), "lock Block .50. taken while Staging .90. is held");
  EXPECT_DEATH(static_cast<void>(block.try_lock()), "lock Block .50. taken while Staging");
}

TEST_F(LockDeathTest, equal_ranks_abort) {
  RankedMutex<LockRank::Block> a;
  RankedMutex<LockRank::Block> b;
  std::scoped_lock lock(a);
  EXPECT_DEATH(b.lock(), "lock Block .50. taken while Block");
}

TEST_F(LockDeathTest, shared_locks_have_ranks_too) {
  RankedSharedMutex<LockRank::VaSpace> space;
  RankedMutex<LockRank::Block> block;
  {
    std::shared_lock lock(space);
    EXPECT_DEATH(space.lock_shared(), "lock VaSpace .30. taken while VaSpace");
  }
  std::scoped_lock lock(block);
  EXPECT_DEATH(space.lock_shared(), "lock VaSpace .30. taken while Block");
}

TEST_F(LockDeathTest, releasing_what_is_not_held_aborts) {
  EXPECT_DEATH(lock_order::release(LockRank::Arm), "Arm: check failed: the rank is held");
}
#endif

}  // namespace
}  // namespace uhmm
