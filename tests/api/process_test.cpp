// SPDX-License-Identifier: Apache-2.0
// fork(), and programs that end without saying so.
#include <dirent.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

// The child's body returns the exit code.
template <typename Body>
int exit_code_of_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

class Fork : public RuntimeTest {};

// With every way in which pages leave the program.
class ForkInMode : public RuntimeTest, public testing::WithParamInterface<std::uint32_t> {
 protected:
  bool starts_itself() const override { return false; }
  void SetUp() override {
    uhmm_config config = test_config();
    config.flags |= GetParam();
    start(config);
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, ForkInMode, testing::Values(0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_COHERENT));

TEST_P(ForkInMode, ChildSeesASnapshotWhereverThePagesAre) {
  Memory memory(600 * kPage);
  Memory shared(8 * kPage, true, MAP_SHARED | MAP_ANONYMOUS);
  fill(memory.data(), 500 * kPage, 1);  // the rest was never touched
  fill(shared.data(), shared.bytes(), 2);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 200 * kPage, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_migrate(shared.data(), shared.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_acquire(memory.page(200), 100 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(memory.page(200), 100 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_migrate(memory.page(520), 10 * kPage, 1, nullptr));  // zeros, made there
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int code = exit_code_of_child([&] {
    if (first_wrong(memory.data(), 500 * kPage, 1) != 500 * kPage) return 1;
    for (std::size_t i = 500 * kPage; i < memory.bytes(); ++i)
      if (memory.data()[i] != std::byte{0}) return 2;
    if (first_wrong(shared.data(), shared.bytes(), 2) != shared.bytes()) return 3;
    fill(memory.data(), memory.bytes(), 7);
    if (first_wrong(memory.data(), memory.bytes(), 7) != memory.bytes()) return 4;
    shared.data()[0] = std::byte{99};  // shared memory stays shared
    return 0;
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(shared.data()[0], std::byte{99});
  EXPECT_EQ(first_wrong(memory.data(), 500 * kPage, 1), 500 * kPage) << "the child's writes are its own";
  // The parent goes on using the device.
  device_increment(memory.data(), memory.bytes());
  for (std::size_t i = 0; i < 500 * kPage; ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
  EXPECT_EQ(memory.page(525)[0], std::byte{1});
  EXPECT_EQ(stats().pages_lost, 0u);
}

TEST_P(ForkInMode, BothSidesWriteAndTheDeviceStaysTheParents) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  int to_child[2], to_parent[2];
  ASSERT_EQ(pipe(to_child), 0);
  ASSERT_EQ(pipe(to_parent), 0);
  const pid_t child = fork();
  if (child == 0) {
    char word = 0;
    if (read(to_child[0], &word, 1) != 1) _exit(1);  // the parent has changed everything by now
    if (first_wrong(memory.data(), memory.bytes(), 1) != memory.bytes()) _exit(2);
    fill(memory.data(), memory.bytes(), 3);
    if (write(to_parent[1], &word, 1) != 1) _exit(3);
    if (read(to_child[0], &word, 1) != 1) _exit(4);
    _exit(first_wrong(memory.data(), memory.bytes(), 3) == memory.bytes() ? 0 : 5);
  }
  // While the child shares every page copy-on-write.
  device_fill(memory.data(), memory.bytes(), 2);
  ASSERT_EQ(write(to_child[1], "x", 1), 1);
  char word = 0;
  ASSERT_EQ(read(to_parent[0], &word, 1), 1);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  device_fill(memory.data(), memory.bytes(), 4);
  ASSERT_EQ(write(to_child[1], "x", 1), 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 4), memory.bytes());
}

// Adds one to a word of each page, `seed` times.
void many_increments_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const auto [begin, end] = slice(item, args->bytes);
  for (std::uint64_t round = 0; round < args->seed; ++round)
    for (std::size_t i = begin; i < end; i += kPage) {
      auto* word = reinterpret_cast<volatile std::uint64_t*>(args->data + i);
      *word = *word + 1;
    }
}

TEST_F(Fork, WhileAKernelRuns) {
  Memory memory(16 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  constexpr std::uint64_t kRounds = 200'000;
  UHMM_ASSERT_OK(launch(stream_, many_increments_kernel, SpanArgs{memory.data(), memory.bytes(), kRounds, nullptr}, 2));
  for (int i = 0; i < 10; ++i) {
    // What the child sees is some moment of the kernel, in each word.
    EXPECT_EQ(exit_code_of_child([&] {
                for (std::size_t page = 0; page < 16; ++page)
                  if (*reinterpret_cast<std::uint64_t*>(memory.page(page)) > kRounds) return 1;
                return 0;
              }),
              0);
  }
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  for (std::size_t page = 0; page < 16; ++page)
    EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(memory.page(page)), kRounds) << page;
}

TEST_F(Fork, WhileOtherThreadsMigrate) {
  Memory memory(256 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  std::atomic<bool> stop{false};
  std::thread mover([&] {
    while (!stop) {
      (void)uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr);
      (void)uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr);
    }
  });
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(
        exit_code_of_child([&] { return first_wrong(memory.data(), memory.bytes(), 1) == memory.bytes() ? 0 : 1; }), 0);
  stop = true;
  mover.join();
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Fork, ChildrenOfChildrenAndVfork) {
  Memory memory(32 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  EXPECT_EQ(exit_code_of_child([&] {
              return exit_code_of_child(
                  [&] { return first_wrong(memory.data(), memory.bytes(), 1) == memory.bytes() ? 0 : 1; });
            }),
            0);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  EXPECT_EQ(system("exit 7"), 7 << 8);  // posix_spawn or vfork inside
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

// Several threads fork at once, while others fault on what kernels take away again: each child has a whole snapshot.
TEST_F(Fork, StormFromSeveralThreadsWhileOthersFault) {
  constexpr std::size_t kThreads = 3;
  constexpr int kForks = 8;
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  std::atomic<std::size_t> forking{kThreads};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < kForks; ++round)
        wrong += exit_code_of_child([&] {
          if (first_wrong(memory.data(), memory.bytes(), 1) != memory.bytes()) return 1;
          fill(memory.data(), memory.bytes(), 2);  // its own copy
          return first_wrong(memory.data(), memory.bytes(), 2) == memory.bytes() ? 0 : 1;
        });
      --forking;
    });
  for (std::size_t i = 0; i < 2; ++i)
    threads.emplace_back([&] {
      while (forking != 0) wrong += first_wrong(memory.data(), memory.bytes(), 1) != memory.bytes() ? 1 : 0;
    });
  while (forking != 0) {
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
    UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

// The words of a new program's command line, its environment and its name are on a device.
TEST_F(Fork, SpawnsAndExecsFromMemoryOnADevice) {
  Memory memory(6 * kPage);
  char* const words[] = {reinterpret_cast<char*>(memory.page(0)) + kPage - 4,  // over the edge of a page
                         reinterpret_cast<char*>(memory.page(2)), reinterpret_cast<char*>(memory.page(3))};
  std::strcpy(words[0], "/bin/sh");
  std::strcpy(words[1], "-c");
  std::strcpy(words[2], "exit $UHMM_TEST_CODE");
  auto** const arguments = reinterpret_cast<char**>(memory.page(4));
  std::copy(std::begin(words), std::end(words), arguments);
  auto** const variables = reinterpret_cast<char**>(memory.page(5));
  char* const variable = reinterpret_cast<char*>(memory.page(5)) + 100;
  std::strcpy(variable, "UHMM_TEST_CODE=7");
  variables[0] = variable;
  const auto code_of = [](pid_t child) {
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  pid_t child = -1;
  ASSERT_EQ(posix_spawn(&child, words[0], nullptr, nullptr, arguments, variables), 0);
  EXPECT_EQ(code_of(child), 7);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  child = vfork();
  if (child == 0) {
    execve(words[0], arguments, variables);
    _exit(1);
  }
  EXPECT_EQ(code_of(child), 7);
  EXPECT_EQ(pages_in_state(memory.page(1), kPage, UHMM_PAGE_LOST), 0u);
  EXPECT_STREQ(words[2], "exit $UHMM_TEST_CODE");
}

TEST_F(Fork, AChildGetsNoMoreThanTheAdviceGivesIt) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  ASSERT_EQ(madvise(memory.page(0), 2 * kPage, MADV_DONTFORK), 0);
  ASSERT_EQ(madvise(memory.page(2), 2 * kPage, MADV_WIPEONFORK), 0);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  EXPECT_EQ(exit_code_of_child([&] {
              // Something else may be there by now (what a sanitizer maps), but not the contents.
              if (raised_by_read(memory.page(0)).signal != SIGSEGV && memory.data()[100] == pattern(1, 100)) return 1;
              for (std::size_t i = 2 * kPage; i < 4 * kPage; ++i)
                if (memory.data()[i] != std::byte{0}) return 2;
              for (std::size_t i = 4 * kPage; i < memory.bytes(); ++i)
                if (memory.data()[i] != pattern(1, i)) return 3;
              return 0;
            }),
            0);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
}

// ------------------------------------------------------------------------------------------------- sudden ends

std::set<std::string> entries_of(const char* folder) {
  std::set<std::string> names;
  DIR* dir = opendir(folder);
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir)) names.insert(entry->d_name);
  closedir(dir);
  return names;
}

bool ends_soon(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return poll(&entry, 1, 20'000) == 1;
}

class SuddenEnd : public RuntimeTest {
 protected:
  bool starts_itself() const override { return false; }

  // A program that has data on two devices, tells their process ids, and then does `end`.
  void expect_nothing_left(const std::function<void(pid_t self)>& end, int signal_from_outside) {
    const auto before = entries_of("/dev/shm");
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t program = fork();
    if (program == 0) {
      uhmm_config config = test_config();
      config.soft_devices = 2;
      if (uhmm_init(&config) != UHMM_OK) _exit(1);
      static std::byte data[64 * kPage];
      std::memset(data, 1, sizeof(data));
      if (uhmm_register(data, sizeof(data)) != UHMM_OK) _exit(2);
      if (uhmm_migrate(data, sizeof(data) / 2, 1, nullptr) != UHMM_OK) _exit(3);
      if (uhmm_migrate(data + sizeof(data) / 2, sizeof(data) / 2, 2, nullptr) != UHMM_OK) _exit(4);
      const std::int64_t ids[2] = {device_info(1).process_id, device_info(2).process_id};
      if (write(ends[1], ids, sizeof(ids)) != sizeof(ids)) _exit(5);
      end(getpid());
      for (;;) pause();
    }
    close(ends[1]);
    std::int64_t ids[2] = {};
    ASSERT_EQ(read(ends[0], ids, sizeof(ids)), static_cast<ssize_t>(sizeof(ids)));
    close(ends[0]);
    int pidfds[2];
    for (int i = 0; i < 2; ++i) pidfds[i] = static_cast<int>(syscall(SYS_pidfd_open, ids[i], 0));
    if (signal_from_outside != 0) {
      EXPECT_GE(pidfds[0], 0) << "it runs while its program does";
      kill(program, signal_from_outside);
    }
    int status = 0;
    ASSERT_EQ(waitpid(program, &status, 0), program);
    for (const int pidfd : pidfds) {
      if (pidfd < 0) continue;  // gone already
      EXPECT_TRUE(ends_soon(pidfd)) << "a device process outlives its program";
      close(pidfd);
    }
    // What it had was in its memory and in files without a name. Other tests, which run at the same time, have some.
    for (const std::string& name : entries_of("/dev/shm"))
      EXPECT_TRUE(before.contains(name) || name.starts_with("uhmm-test-")) << name;
  }
};

TEST_F(SuddenEnd, ByKillLeavesNothing) {
  expect_nothing_left([](pid_t) {}, SIGKILL);
}
TEST_F(SuddenEnd, ByTerminationLeavesNothing) {
  expect_nothing_left([](pid_t) {}, SIGTERM);
}
TEST_F(SuddenEnd, ByExitLeavesNothing) {
  expect_nothing_left([](pid_t) { _exit(0); }, 0);
}
TEST_F(SuddenEnd, ByAbortLeavesNothing) {
  expect_nothing_left([](pid_t) { abort(); }, 0);
}
TEST_F(SuddenEnd, ByExecLeavesNothing) {
  expect_nothing_left([](pid_t) { execl("/bin/true", "true", static_cast<char*>(nullptr)); }, 0);
}

TEST_F(SuddenEnd, ShutdownEndsDeviceProcesses) {
  start(test_config());
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, device_info(1).process_id, 0));
  ASSERT_GE(pidfd, 0);
  stop();
  EXPECT_TRUE(ends_soon(pidfd));
  close(pidfd);
}

}  // namespace
}  // namespace uhmm::test
