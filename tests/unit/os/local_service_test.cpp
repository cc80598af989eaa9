// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/local_service.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
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
    // Whoever hangs up on a request that was not read takes the answer back.
    EXPECT_EQ(LocalService::request_of(caller), 'q');
    answer(caller);
    close_descriptor(caller);
  });
  Result<int> got = ask_local_service(getpid(), 'q', kTimeoutMs);
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
  EXPECT_EQ(ask_local_service(getpid(), 'q', kTimeoutMs).status().code(), UHMM_ERR_NOT_FOUND);
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

// What a program that closes every descriptor does: by then the number may be that of a socket of its own.
TEST(LocalService, AProgramsSocketIsNotMistakenForOurs) {
  const int next = dup(STDOUT_FILENO);
  close(next);
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  const int ours = dup(next);  // the kernel's socket lives on
  const int theirs = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un name{AF_UNIX, {}};
  ASSERT_EQ(bind(theirs, reinterpret_cast<sockaddr*>(&name), sizeof(sa_family_t)), 0);  // any abstract name
  ASSERT_EQ(listen(theirs, 1), 0);
  ASSERT_EQ(dup2(theirs, next), next);
  socklen_t size = sizeof(name);
  ASSERT_EQ(getsockname(theirs, reinterpret_cast<sockaddr*>(&name), &size), 0);
  const int caller = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  ASSERT_EQ(connect(caller, reinterpret_cast<sockaddr*>(&name), size), 0);
  EXPECT_EQ(service.accept(), -1);
  service.close();
  EXPECT_GE(fcntl(next, F_GETFD), 0) << "not ours to close";
  const int accepted = accept4(next, nullptr, nullptr, SOCK_CLOEXEC);
  EXPECT_GE(accepted, 0) << "the caller is still there";
  for (const int fd : {next, ours, theirs, caller, accepted}) close(fd);
}

TEST(LocalService, StoppingAlsoWhenItsDescriptorIsGone) {
  const int next = dup(STDOUT_FILENO);
  close(next);
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  std::atomic<bool> waiting{false};
  std::thread server([&] {
    waiting.store(true);
    for (int caller = service.accept(); caller >= 0; caller = service.accept()) close_descriptor(caller);
  });
  while (!waiting.load()) std::this_thread::yield();
  // The program does this to us without any agreement, so a race is what is meant: not calls that TSan watches. The
  // number means something else at once, so that no later descriptor, which TSan does watch, can get it.
  const int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(syscall(SYS_dup2, other, next), next);
  close(other);
  service.stop();
  server.join();
  service.close();
  EXPECT_EQ(syscall(SYS_close, next), 0) << "the program's, not the service's to close";
}

TEST(LocalService, WhoDoesNotAnswerTimesOut) {
  LocalService service;
  ASSERT_TRUE(service.open().ok());
  EXPECT_EQ(ask_local_service(getpid(), 'q', 10).status().code(), UHMM_ERR_TIMEOUT);
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
