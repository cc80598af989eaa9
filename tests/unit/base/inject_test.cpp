// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/inject.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace uhmm::inject {
namespace {

class Inject : public testing::Test {
 protected:
  void TearDown() override { disarm_all(); }
};

TEST_F(Inject, nothing_fails_unarmed) {
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(should_fail(Point::MoveIn));
  EXPECT_FALSE(fired(Point::MoveIn));
}

TEST_F(Inject, exactly_the_nth_call_fails) {
  arm(Point::MoveIn, 3);
  EXPECT_FALSE(should_fail(Point::MoveIn));
  EXPECT_FALSE(should_fail(Point::MoveIn));
  EXPECT_FALSE(should_fail(Point::MoveOut)) << "points are counted apart";
  EXPECT_FALSE(fired(Point::MoveIn));
  EXPECT_TRUE(should_fail(Point::MoveIn));
  EXPECT_TRUE(fired(Point::MoveIn));
  EXPECT_FALSE(should_fail(Point::MoveIn)) << "it disarmed itself";
  arm(Point::MoveIn, 1);
  EXPECT_FALSE(fired(Point::MoveIn)) << "arming forgets the last time";
  EXPECT_TRUE(should_fail(Point::MoveIn));
}

TEST_F(Inject, several_points_and_disarming) {
  arm(Point::Arm, 1);
  arm(Point::DeviceMap, 1);
  EXPECT_TRUE(should_fail(Point::Arm));
  arm(Point::DeviceMap, 0);
  EXPECT_FALSE(should_fail(Point::DeviceMap));
  arm(Point::DeviceMap, 1);
  disarm_all();
  EXPECT_FALSE(should_fail(Point::DeviceMap));
}

TEST_F(Inject, one_thread_of_many_sees_it) {
  arm(Point::DeviceCopyIn, 500);
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < 1000; ++call) failures += should_fail(Point::DeviceCopyIn) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 1);
}

TEST_F(Inject, names_are_distinct) {
  std::set<std::string> names;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(Point::kCount); ++i) names.insert(name(Point{i}));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(Point::kCount));
  EXPECT_STREQ(name(Point::StagingAcquire), "StagingAcquire");
  EXPECT_STREQ(name(Point::kCount), "?");
}

TEST_F(Inject, shaking_fails_nothing_and_counts_as_before) {
  shake(7);
  for (int i = 0; i < 200; ++i) ASSERT_FALSE(should_fail(Point::MoveIn));
  arm(Point::MoveIn, 2);
  EXPECT_FALSE(should_fail(Point::MoveIn));
  EXPECT_TRUE(should_fail(Point::MoveIn));
  stop_shaking();
  EXPECT_FALSE(should_fail(Point::MoveIn));
}

}  // namespace
}  // namespace uhmm::inject
