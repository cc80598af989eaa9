// SPDX-License-Identifier: Apache-2.0
// Children that use devices themselves. Not with ThreadSanitizer: it takes the threads that a child starts for those of
// its parent ("dup thread with used id"), and ends it.
#if !defined(__SANITIZE_THREAD__)
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

// A whole use of the runtime, in a child: 0, or the number of the step that went wrong.
int use_devices(std::byte* data, std::size_t bytes, std::uint64_t content) {
  uhmm_config config = test_config();
  if (uhmm_init(&config) != UHMM_OK) return 1;
  if (uhmm_init(&config) != UHMM_ERR_ALREADY) return 2;
  if (stats().ranges != 0) return 3;
  if (uhmm_register(data, bytes) != UHMM_OK) return 4;
  if (uhmm_migrate(data, bytes / 2, 1, nullptr) != UHMM_OK) return 5;
  uhmm_stream stream = 0;
  if (uhmm_stream_create(1, &stream) != UHMM_OK) return 6;
  if (launch(stream, increment_kernel, SpanArgs{data, bytes, 0, nullptr}, 2) != UHMM_OK) return 7;
  if (uhmm_stream_synchronize(stream) != UHMM_OK) return 8;
  if (stats().pages_on_devices == 0) return 9;
  for (std::size_t i = 0; i < bytes; ++i)
    if (data[i] != static_cast<std::byte>(std::to_integer<int>(pattern(content, i)) + 1)) return 10;
  auto* block = static_cast<char*>(uhmm_malloc(5000));
  if (block == nullptr) return 11;
  block[4999] = 1;
  if (uhmm_migrate(block, 5000, 1, nullptr) != UHMM_OK || block[4999] != 1) return 12;
  uhmm_free(block);
  if (uhmm_unregister(data) != UHMM_OK) return 13;
  fill(data, bytes, content);
  return 0;
}

template <typename Body>
pid_t child_that(Body&& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  return child;
}

class ForkedRuntime : public RuntimeTest {
 protected:
  static constexpr std::size_t kPages = 80;
};

TEST_F(ForkedRuntime, ChildUsesDevicesOnTheSameAddressesAsItsParent) {
  Memory memory(kPages * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  const pid_t child = child_that([&]() -> int {
    if (uhmm_register(memory.data(), kPage) != UHMM_ERR_FORKED) return 20;
    if (const int wrong = use_devices(memory.data(), memory.bytes(), 1); wrong != 0) return wrong;
    if (uhmm_shutdown() != UHMM_OK) return 21;
    // And again.
    return use_devices(memory.data(), memory.bytes(), 1);
  });
  // Both at once.
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(exit_code_of(child), 0);
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
}

TEST_F(ForkedRuntime, ChildrenOfChildrenToo) {
  Memory memory(kPages * kPage);
  fill(memory.data(), memory.bytes(), 2);
  EXPECT_EQ(exit_code_of(child_that([&]() -> int {
              if (const int wrong = use_devices(memory.data(), memory.bytes(), 2); wrong != 0) return wrong;
              if (uhmm_register(memory.data(), memory.bytes()) != UHMM_OK) return 20;
              if (uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr) != UHMM_OK) return 21;
              const int inner =
                  exit_code_of(child_that([&]() -> int { return use_devices(memory.data(), memory.bytes(), 2); }));
              if (inner != 0) return 100 + inner;
              return first_wrong(memory.data(), memory.bytes(), 2) == memory.bytes() ? 0 : 22;
            })),
            0);
}

// The runtime that served the parent's memory is gone while the child computes.
TEST_F(ForkedRuntime, ChildOutlivesItsParent) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = child_that([&]() -> int {
    uhmm_config config = test_config();
    if (uhmm_init(&config) != UHMM_OK) return 1;
    Memory memory(kPages * kPage);
    fill(memory.data(), memory.bytes(), 3);
    if (uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr) != UHMM_OK) return 2;
    const pid_t self = getpid();
    const pid_t child = fork();
    if (child != 0) _exit(child > 0 ? 0 : 3);
    while (getppid() == self) usleep(1000);  // until it is an orphan
    int wrong = first_wrong(memory.data(), memory.bytes(), 3) == memory.bytes() ? 0 : 30;
    if (wrong == 0) wrong = use_devices(memory.data(), memory.bytes(), 3);
    if (write(ends[1], &wrong, sizeof(wrong)) != sizeof(wrong)) return 4;
    return 0;
  });
  EXPECT_EQ(exit_code_of(parent), 0);
  int wrong = -1;
  ASSERT_EQ(read(ends[0], &wrong, sizeof(wrong)), static_cast<ssize_t>(sizeof(wrong)));
  EXPECT_EQ(wrong, 0);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ForkedRuntime, DescriptorsOfTheParentsRuntimeAreClosed) {
  const auto count = [] {
    int open_ones = 0;
    for (int fd = 3; fd < 1024; ++fd) open_ones += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
    return open_ones;
  };
  const int before = count();
  const pid_t child = child_that([&] { return count(); });
  const int in_child = exit_code_of(child);
  EXPECT_GE(before, 10) << "userfaultfd, io_uring, /proc files, a device";
  // What the test itself has open stays.
  UHMM_ASSERT_OK(uhmm_stream_destroy(stream_));
  stream_ = 0;
  stop();
  EXPECT_EQ(in_child, count());
}

TEST_F(ForkedRuntime, BesideTheEndOfTheParents) {
  stop();
  for (int round = 0; round < 40; ++round) {
    start(test_config());
    std::atomic<int> begun{0};
    std::thread forker([&] {
      for (int i = 0; i < 4; ++i) {
        ++begun;
        EXPECT_EQ(exit_code_of(child_that([] { return 0; })), 0);
      }
    });
    while (begun == 0) std::this_thread::yield();
    if (round % 2 != 0) usleep(static_cast<useconds_t>(round * 50));
    // The end of ranges that meet inside a page closes the same gate as a fork.
    Memory memory(kPage, false);
    UHMM_EXPECT_OK(uhmm_register(memory.data(), 100));
    UHMM_EXPECT_OK(uhmm_register(memory.data() + 200, 100));
    stop();
    forker.join();
  }
}

// Whatever another thread holds when the process is copied, the child can start a runtime. AddressSanitizer of GCC 12
// is not prepared for that itself.
#if !defined(__SANITIZE_ADDRESS__)
TEST_F(ForkedRuntime, WhileOtherThreadsAreInAllKindsOfCalls) {
  Memory memory(kPages * kPage, false);
  fill(memory.data(), memory.bytes(), 4);
  std::atomic<bool> stop_now{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    Memory mine(64 * kPage);
    while (!stop_now) {
      UHMM_EXPECT_OK(uhmm_migrate(mine.data(), mine.bytes(), 1, nullptr));
      fill(mine.data(), mine.bytes(), 5);
    }
  });
  threads.emplace_back([&] {
    while (!stop_now) {
      void* block = uhmm_malloc(3000);
      ASSERT_NE(block, nullptr);
      std::memset(block, 1, 3000);
      uhmm_free(block);
      Memory mine(3 * kPage);
      UHMM_EXPECT_OK(uhmm_discard(mine.data(), mine.bytes()));
    }
  });
  threads.emplace_back([&] {
    Memory mine(8 * kPage);
    uhmm_stream stream = 0;
    UHMM_ASSERT_OK(uhmm_stream_create(1, &stream));
    while (!stop_now) {
      UHMM_EXPECT_OK(launch(stream, increment_kernel, SpanArgs{mine.data(), mine.bytes(), 0, nullptr}, 2));
      UHMM_EXPECT_OK(uhmm_stream_synchronize(stream));
    }
    UHMM_EXPECT_OK(uhmm_stream_destroy(stream));
  });
  for (int round = 0; round < 8; ++round) {
    std::vector<pid_t> children;
    for (int i = 0; i < 3; ++i)
      children.push_back(child_that([&]() -> int { return use_devices(memory.data(), memory.bytes(), 4); }));
    for (const pid_t child : children) EXPECT_EQ(exit_code_of(child), 0);
  }
  stop_now = true;
  for (std::thread& thread : threads) thread.join();
}
#endif

}  // namespace
}  // namespace uhmm::test
#endif
