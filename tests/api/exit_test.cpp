// SPDX-License-Identifier: Apache-2.0
// Programs that end with exit(): destructors and handlers run while the runtime is there, and in forked children, where
// it is not. What they find in managed memory is right, and nothing hangs.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/support/runtime.hpp"

// Sanitizers do at exit() what a program does not: they look for leaks in memory that is away, and take a child's
// threads for its parent's.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace uhmm::test {
namespace {

constexpr std::size_t kBytes = 64 * kPage;
std::byte* left_away = nullptr;  // what the handlers look at
bool close_runtime_at_exit = false;

// At exit: everything is there, whoever looks. Tells by the exit status, which _exit() may still change.
void look_at_exit() {
  if (first_wrong(left_away, kBytes, 1) != kBytes) _exit(41);
  fill(left_away, kBytes, 2);
  if (first_wrong(left_away, kBytes, 2) != kBytes) _exit(42);
  if (!close_runtime_at_exit) return;
  const uhmm_status ended = uhmm_shutdown();
  if (ended != UHMM_OK) _exit(43);
  if (first_wrong(left_away, kBytes, 2) != kBytes) _exit(44);
}

struct LooksWhenDestroyed {
  bool armed = false;
  ~LooksWhenDestroyed() {
    if (armed && first_wrong(left_away, kBytes, 2) != kBytes) _exit(45);
  }
};

// A program of its own: `body` in a child that starts a runtime and leaves memory on its device.
template <typename Body>
int program(uhmm_fault_rung rung, Body&& body, std::initializer_list<int> mine_no_more = {}) {
  const pid_t child = fork();
  if (child == 0) {
    // What a test program registered itself is not of this program.
    uhmm_config config = test_config();
    config.fault_rung = rung;
    if (uhmm_init(&config) != UHMM_OK) _exit(77);
    left_away =
        static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(left_away, kBytes, 1);
    if (uhmm_register(left_away, kBytes) != UHMM_OK) _exit(2);
    if (uhmm_migrate(left_away, kBytes, 1, nullptr) != UHMM_OK) _exit(3);
    // Destroyed after the handler has run: it was there before.
    static LooksWhenDestroyed looks;
    looks.armed = true;
    if (std::atexit(look_at_exit) != 0) _exit(4);
    body();
  }
  for (const int fd : mine_no_more) close(fd);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

class Exit : public testing::TestWithParam<uhmm_fault_rung> {
 protected:
  void expect_good(int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "this rung can't be had here";
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
};

TEST_P(Exit, WithTheRuntimeAlive) {
  expect_good(program(GetParam(), [] { std::exit(0); }));
}

TEST_P(Exit, WithTheRuntimeClosedByAHandler) {
  close_runtime_at_exit = true;
  const int status = program(GetParam(), [] { std::exit(0); });
  close_runtime_at_exit = false;
  expect_good(status);
}

TEST_P(Exit, WithKernelsAtWork) {
  expect_good(program(GetParam(), [] {
    auto* result = static_cast<std::atomic<std::uint64_t>*>(
        mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (uhmm_register(result, kPage) != UHMM_OK) _exit(5);
    uhmm_stream stream = 0;
    if (uhmm_stream_create(1, &stream) != UHMM_OK) _exit(6);
    // It never ends by itself.
    if (launch(stream, wait_kernel, SpanArgs{nullptr, 0, 0, result}) != UHMM_OK) _exit(7);
    std::exit(0);
  }));
}

// The handlers run in the child too, which has no runtime; and then in the parent, whose memory the child's writes are
// not.
TEST_P(Exit, InAForkedChildAndThenInItsParent) {
  expect_good(program(GetParam(), [] {
    const pid_t grandchild = fork();
    if (grandchild == 0) std::exit(0);
    int status = 0;
    if (waitpid(grandchild, &status, 0) != grandchild || status != 0) _exit(8);
    std::exit(0);
  }));
}

TEST_P(Exit, InAForkedChildThatOutlivesItsParent) {
  int answers[2];
  int alive[2];  // the program has the writing end, its child has not
  ASSERT_EQ(pipe(answers), 0);
  ASSERT_EQ(pipe(alive), 0);
  const int status = program(GetParam(),
                             [&] {
                               if (fork() == 0) {
                                 close(alive[1]);
                                 char byte = 0;
                                 const bool ended = read(alive[0], &byte, 1) == 0;
                                 const bool good = ended && first_wrong(left_away, kBytes, 1) == kBytes;
                                 (void)!write(answers[1], good ? "y" : "n", 1);
                               }
                               std::exit(0);
                             },
                             {alive[1]});
  close(alive[0]);
  close(answers[1]);
  char answer = 0;
  if (!(WIFEXITED(status) && WEXITSTATUS(status) == 77)) {
    EXPECT_EQ(read(answers[0], &answer, 1), 1);
    EXPECT_EQ(answer, 'y');
  }
  close(answers[0]);
  expect_good(status);
}

INSTANTIATE_TEST_SUITE_P(Rungs, Exit, testing::Values(UHMM_FAULTS_AUTO, UHMM_FAULTS_USER_MODE, UHMM_FAULTS_SIGNAL),
                         [](const auto& one) {
                           return std::string(one.param == UHMM_FAULTS_AUTO        ? "Auto"
                                              : one.param == UHMM_FAULTS_USER_MODE ? "UserMode"
                                                                                   : "Signal");
                         });

}  // namespace
}  // namespace uhmm::test

#endif
