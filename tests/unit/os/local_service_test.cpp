// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/local_service.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "runtime/os/process.hpp"

namespace uhmm::os {
namespace {

constexpr int kTimeoutMs = 60'000;

// Answers one caller.
template <typename Answer>
Result<int> ask_one_that(const LocalService& service, Answer&& answer) {
  std::thread server([&] {
    const int caller = service.accept();
    ASSERT_GE(caller, 0);
    answer(caller);
    close_descriptor(caller);
  });
  Result<int> got = ask_local_service(getpid(), kTimeoutMs);
  server.join();
  return got;
}

TEST(LocalService, HandsAFileToItsCaller) {
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  Result<int> file = ask_one_that(service, [](int caller) {
    const int made = make_empty_file("test");
    EXPECT_NE(fcntl(made, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(write_all(made, "told", 4), 0);
    EXPECT_EQ(send_message(caller, "", 1, made), 0);
    close_descriptor(made);
  });
  ASSERT_TRUE(file.ok());
  char told[8] = {};
  EXPECT_EQ(pread(*file, told, sizeof(told), 0), 4);
  EXPECT_STREQ(told, "told");
  close_descriptor(*file);
}

TEST(LocalService, ACallerThatIsHungUpOnIsToldSo) {
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  EXPECT_EQ(ask_one_that(service, [](int) {}).status().code(), UHMM_ERR_PERMISSION);
  EXPECT_EQ(ask_one_that(service, [](int caller) { (void)send_message(caller, "", 1, -1); }).status().code(),
            UHMM_ERR_PERMISSION);
}

TEST(LocalService, TheNameIsTakenOnceAndFreeAfterwards) {
  LocalService service;
  LocalService second;
  ASSERT_TRUE(service.open().ok());
  EXPECT_EQ(second.open().code(), UHMM_ERR_BUSY);
  service.close();
  EXPECT_EQ(ask_local_service(getpid(), kTimeoutMs).status().code(), UHMM_ERR_NOT_FOUND);
  EXPECT_TRUE(second.open().ok());
}

TEST(LocalService, StoppingEndsTheWaitForCallers) {
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  std::thread server([&] { EXPECT_EQ(service.accept(), -1); });
  service.stop();
  server.join();
  EXPECT_EQ(service.accept(), -1);
}

TEST(LocalService, WhoDoesNotAnswerTimesOut) {
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  EXPECT_EQ(ask_local_service(getpid(), 10).status().code(), UHMM_ERR_TIMEOUT);
}

TEST(WriteAll, TellsWhyNot) {
  EXPECT_EQ(write_all(-1, "x", 1), EBADF);
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  EXPECT_EQ(write_all(full, "x", 1), ENOSPC);
  EXPECT_EQ(write_all(full, "x", 0), 0);
  close_descriptor(full);
}

}  // namespace
}  // namespace uhmm::os
