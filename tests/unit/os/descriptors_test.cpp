// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/descriptors.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <set>

namespace uhmm::os {
namespace {

std::set<int> noted;

bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

class Descriptors : public testing::Test {
 protected:
  static constexpr int kFloor = 200;
  void SetUp() override { noted.clear(); }
  void TearDown() override { set_descriptor_guard(0, nullptr); }
  static void guard(int floor) {
    set_descriptor_guard(floor, [](int fd, bool ours) {
      if (ours) {
        EXPECT_TRUE(is_open(fd) && noted.insert(fd).second) << fd;
      } else {
        // Still open: nobody else can have the number yet.
        EXPECT_TRUE(is_open(fd) && noted.erase(fd) == 1) << fd;
      }
    });
  }
  static int make() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
};

TEST_F(Descriptors, StayWhereTheyAreWhenNobodyGuardsThem) {
  const int made = make();
  EXPECT_EQ(keep_descriptor(made), made);
  close_kept(made);
  EXPECT_FALSE(is_open(made));
}

TEST_F(Descriptors, AreMovedOutOfTheWayAndToldOf) {
  guard(kFloor);
  const int made = make();
  const int kept = keep_descriptor(made);
  EXPECT_GE(kept, kFloor);
  EXPECT_FALSE(is_open(made));
  EXPECT_EQ(fcntl(kept, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(noted, std::set<int>{kept});
  close_kept(kept);
  EXPECT_FALSE(is_open(kept));
  EXPECT_TRUE(noted.empty());
}

TEST_F(Descriptors, KeepTheirNumberWhereThereIsNoRoom) {
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  guard(static_cast<int>(limit.rlim_cur));
  const int made = make();
  EXPECT_EQ(keep_descriptor(made), made);
  EXPECT_EQ(noted, std::set<int>{made});
  close_kept(made);
  EXPECT_TRUE(noted.empty());
}

TEST_F(Descriptors, NoneIsNone) {
  guard(kFloor);
  EXPECT_EQ(keep_descriptor(-1), -1);
  close_kept(-1);
  EXPECT_TRUE(noted.empty());
}

}  // namespace
}  // namespace uhmm::os
