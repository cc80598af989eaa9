// SPDX-License-Identifier: Apache-2.0
// Messages with descriptors, sealed memory files, and processes that are nobody's child.
#include "runtime/os/process.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

namespace uhmm::os {
namespace {

class Channel : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(make_channel(ends_), 0); }
  void TearDown() override {
    for (const int end : ends_)
      if (end >= 0) ::close(end);
  }
  int ends_[2] = {-1, -1};
};

TEST_F(Channel, AMessageBringsItsDescriptorAndItsSender) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(send_message(ends_[1], "hello", 5, ends[1]), 0);
  char text[16] = {};
  Message message;
  ASSERT_EQ(receive_message(ends_[0], text, sizeof(text), 1000, &message), 0);
  EXPECT_STREQ(text, "hello");
  EXPECT_EQ(message.size, 5u);
  EXPECT_EQ(message.sender, getpid());
  EXPECT_EQ(message.user, getuid());
  ASSERT_GT(message.fd, 2);
  EXPECT_NE(fcntl(message.fd, F_GETFD) & FD_CLOEXEC, 0);
  // It is the same pipe.
  ASSERT_EQ(write(message.fd, "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
  for (const int fd : {ends[0], ends[1], message.fd}) ::close(fd);
}

TEST_F(Channel, NothingComesAndNobodyIsThere) {
  Message message;
  char byte = 0;
  EXPECT_EQ(receive_message(ends_[0], &byte, 1, 1, &message), ETIMEDOUT);
  ::close(ends_[1]);
  ends_[1] = -1;
  EXPECT_EQ(receive_message(ends_[0], &byte, 1, -1, &message), EPIPE);
  EXPECT_EQ(send_message(ends_[0], "x", 1, -1), EPIPE);
}

TEST(MemoryFile, NobodyCanResizeItAndFreedPagesAreZeroAgain) {
  constexpr std::uint64_t kBytes = std::uint64_t{1} << 40;  // sparse
  const int file = make_memory_file("uhmm-unit-test", kBytes);
  ASSERT_GT(file, 2);
  EXPECT_NE(ftruncate(file, 4096), 0);
  EXPECT_NE(ftruncate(file, static_cast<off_t>(2 * kBytes)), 0);
  EXPECT_NE(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE), 0) << "the seals are sealed";

  const ByteRange far{VirtAddr{kBytes - 4 * kPageBytes}, VirtAddr{kBytes}};
  ASSERT_EQ(allocate_file(file, far), 0);
  struct stat now {};
  ASSERT_EQ(fstat(file, &now), 0);
  EXPECT_EQ(now.st_blocks, static_cast<blkcnt_t>(4 * kPageBytes / 512));
  void* view =
      mmap(nullptr, far.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(far.begin.value));
  ASSERT_NE(view, MAP_FAILED);
  std::memset(view, 1, far.bytes());
  ASSERT_EQ(punch_file(file, {far.begin, far.begin + kPageBytes}), 0);
  EXPECT_EQ(*static_cast<char*>(view), 0);
  EXPECT_EQ(static_cast<char*>(view)[kPageBytes], 1);
  munmap(view, far.bytes());
  ::close(file);
}

struct Shared {
  std::atomic<std::uint32_t> word;
  std::atomic<std::uint32_t> in_device_process;
  std::atomic<std::uint32_t> threads;
};
// The other side of the next test.
void child_main(void* argument) {
  auto& shared = *static_cast<Shared*>(argument);
  shared.in_device_process.store(in_device_process() ? 1 : 0);
  while (shared.word.load() == 0) futex_wait_shared(shared.word, 0);
  shared.word.store(2);
  futex_wake_shared(shared.word, 1);
  exit_now(5);
}

TEST(SpawnedProcess, IsNobodysChildAndItsDescriptorTellsOfItsEnd) {
  void* memory = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* shared = new (memory) Shared{};
  constexpr std::size_t kStack = std::size_t{256} << 10;
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(stack, MAP_FAILED);
  SpawnedProcess process;
  ASSERT_EQ(spawn_process(child_main, shared, static_cast<std::byte*>(stack) + kStack, &process), 0);
  EXPECT_FALSE(spawning_in_this_thread());
  EXPECT_FALSE(in_device_process());
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  EXPECT_FALSE(process_ended(process.pidfd, 0));
  shared->word.store(1);
  futex_wake_shared(shared->word, 1);
  while (shared->word.load() == 1) futex_wait_shared(shared->word, 1);
  EXPECT_EQ(shared->in_device_process.load(), 1u);
  EXPECT_TRUE(process_ended(process.pidfd, -1));
  ::close(process.pidfd);
  munmap(stack, kStack);
  munmap(memory, kPageBytes);
}

TEST(SpawnedProcess, CanBeKilled) {
  void* memory = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* shared = new (memory) Shared{};
  constexpr std::size_t kStack = std::size_t{256} << 10;
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SpawnedProcess process;
  ASSERT_EQ(spawn_process(child_main, shared, static_cast<std::byte*>(stack) + kStack, &process), 0);
  kill_process(process.pidfd);
  EXPECT_TRUE(process_ended(process.pidfd, -1));
  ::close(process.pidfd);
  munmap(stack, kStack);
  munmap(memory, kPageBytes);
}

TEST(Cpus, TheAllowedOnesAreAscending) {
  std::array<std::uint32_t, 1024> cpus{};
  const std::size_t count = allowed_cpus(cpus);
  ASSERT_GE(count, 1u);
  for (std::size_t i = 1; i < count; ++i) EXPECT_LT(cpus[i - 1], cpus[i]);
  std::uint32_t first = ~0u;
  EXPECT_EQ(allowed_cpus({&first, 1}), 1u);
  EXPECT_EQ(first, cpus[0]);
}

}  // namespace
}  // namespace uhmm::os
