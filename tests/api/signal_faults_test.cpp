// SPDX-License-Identifier: Apache-2.0
// The rung on which a thread serves its own faults, in a handler of SIGBUS.
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class SignalFaults : public RuntimeTest {
 protected:
  bool starts_itself() const override { return false; }
  void SetUp() override { start_signalled(0); }
  void start_signalled(std::uint32_t flags) {
    start_with([&](uhmm_config& config) {
      config.fault_rung = UHMM_FAULTS_SIGNAL;
      config.flags |= flags;
    });
  }
};

TEST_F(SignalFaults, EveryAccessSeesTheCurrentBytes) {
  for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_COHERENT}) {
    for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
      SCOPED_TRACE(std::to_string(flags) + (sharing == MAP_SHARED ? ", shared" : ""));
      start_signalled(flags);
      Memory memory(600 * kPage, true, sharing | MAP_ANONYMOUS);
      fill(memory.data(), memory.bytes(), 1);
      device_increment(memory.data(), memory.bytes());
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes()) << "absent pages";
      EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 2), 0u);
      fill(memory.data(), memory.bytes(), 3);  // protected pages
      EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 3), 0u);
      if ((flags & UHMM_CONFIG_COHERENT) == 0) {
        EXPECT_GT(range_stats(memory.data()).cpu_faults, 0u);
      }
      Memory untouched(20 * kPage, true, sharing | MAP_ANONYMOUS);
      UHMM_ASSERT_OK(uhmm_migrate(untouched.data(), kPage, 1, nullptr));
      for (std::size_t i = 0; i < untouched.bytes(); ++i) ASSERT_EQ(untouched.data()[i], std::byte{0});
    }
  }
}

TEST_F(SignalFaults, ManyThreadsOnTheSamePages) {
  Memory memory(64 * kPage);
  auto* counters = memory.as<std::atomic<std::uint64_t>>();
  constexpr std::size_t kStep = kPage / sizeof(std::uint64_t);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> rounds{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      while (!stop) {
        for (std::size_t page = 0; page < 64; ++page) counters[page * kStep].fetch_add(1);
        ++rounds;
      }
    });
  for (int i = 0; i < 40; ++i) UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (std::size_t page = 0; page < 64; ++page) EXPECT_EQ(counters[page * kStep].load(), rounds.load()) << page;
}

TEST_F(SignalFaults, LeaveErrnoAndTheLastCallsTextAlone) {
  Memory memory(2 * kPage);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  UHMM_EXPECT_STATUS(UHMM_ERR_NO_DEVICE, uhmm_migrate(memory.data(), kPage, 77, nullptr));
  const std::string text = uhmm_error_detail();
  errno = 1234;
  memory.data()[0] = std::byte{1};
  EXPECT_EQ(errno, 1234);
  EXPECT_EQ(text, uhmm_error_detail());
}

#if !defined(__SANITIZE_THREAD__)  // it runs handlers with every signal blocked
Memory* seen_by_handler = nullptr;
void read_in_handler(int) { seen_by_handler->data()[kPage] = seen_by_handler->data()[0]; }

TEST_F(SignalFaults, InAHandlerOnASmallStack) {
  Memory memory(2 * kPage);
  seen_by_handler = &memory;
  memory.data()[0] = std::byte{7};
#if defined(__SANITIZE_ADDRESS__)
  constexpr std::size_t kOthers = 256 << 10;  // what the sanitizers' own wrappers need
#else
  constexpr std::size_t kOthers = 8192;
#endif
  std::vector<std::byte> stack(static_cast<std::size_t>(MINSIGSTKSZ) + kOthers);
  const stack_t alternate{stack.data(), 0, stack.size()};
  ASSERT_EQ(sigaltstack(&alternate, nullptr), 0);
  struct sigaction action {};
  action.sa_handler = read_in_handler;
  action.sa_flags = SA_ONSTACK;
  ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  for (int i = 0; i < 10; ++i) {
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
    ASSERT_EQ(raise(SIGUSR1), 0);
    EXPECT_EQ(memory.data()[kPage], std::byte{7});
  }
  const stack_t none{nullptr, SS_DISABLE, 0};
  (void)sigaltstack(&none, nullptr);
  (void)signal(SIGUSR1, SIG_DFL);
}

#endif

TEST_F(SignalFaults, OwnersOfPoolsAreAskedElsewhere) {
  static std::atomic<pid_t> asked_on{0};
  uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
  ops.page_fault = [](void*, const uhmm_fault_info*) {
    asked_on = static_cast<pid_t>(syscall(SYS_gettid));
    return UHMM_FAULT_MIGRATE;
  };
  uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
  desc.bytes = kBlock;
  desc.ops = &ops;
  uhmm_pool pool = 0;
  UHMM_ASSERT_OK(uhmm_pool_create(&desc, &pool));
  {
    Memory memory(kPage);
    UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), pool));
    memory.data()[0] = std::byte{5};
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kPage, 1, nullptr));
    EXPECT_EQ(memory.data()[0], std::byte{5});
    EXPECT_NE(asked_on, 0);
    EXPECT_NE(asked_on, static_cast<pid_t>(syscall(SYS_gettid)));
  }
  UHMM_EXPECT_OK(uhmm_pool_destroy(pool));
}

// --------------------------------------------------------------------- what is not ours goes to whoever had it before

void trap_kernel(const uhmm_kernel_item*, void*) { __builtin_trap(); }

// A view of a file that has become shorter.
struct Truncated {
  Truncated() {
    const int file = memfd_create("uhmm-test", MFD_CLOEXEC);
    EXPECT_EQ(ftruncate(file, kPage), 0);
    data = static_cast<std::byte*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    EXPECT_EQ(ftruncate(file, 0), 0);
    close(file);
  }
  ~Truncated() { munmap(data, kPage); }
  std::byte* data = nullptr;
};

TEST_F(SignalFaults, OthersSignalsGoToTheHandlerFromBefore) {
  may_lose_data_ = true;
  stop();
  const Truncated foreign;
  const Raised raised = raised_by([&] {
    // The handler is there first, the runtime second.
    uhmm_config config = test_config();
    config.fault_rung = UHMM_FAULTS_SIGNAL;
    start(config);
    (void)*static_cast<const volatile std::byte*>(foreign.data);
  });
  EXPECT_EQ(raised.signal, SIGBUS);
  EXPECT_EQ(raised.address, foreign.data);
  stop();
  std::optional<Memory> memory;
  const Raised lost = raised_by([&] {
    uhmm_config config = test_config();
    config.fault_rung = UHMM_FAULTS_SIGNAL;
    start(config);
    memory.emplace(4 * kPage);
    memory->data()[0] = std::byte{1};
    UHMM_ASSERT_OK(uhmm_migrate(memory->data(), memory->bytes(), 1, nullptr));
    EXPECT_NE(run(trap_kernel, SpanArgs{}), UHMM_OK);
    (void)*static_cast<const volatile std::byte*>(memory->data());
  });
  EXPECT_EQ(lost.signal, SIGBUS);
  EXPECT_EQ(lost.address, memory->data());
}

TEST_F(SignalFaults, TheHandlerGoesWithTheRuntime) {
  struct sigaction now {};
  ASSERT_EQ(sigaction(SIGBUS, nullptr, &now), 0);
  const auto ours = now.sa_sigaction;
  stop();
  ASSERT_EQ(sigaction(SIGBUS, nullptr, &now), 0);
  EXPECT_NE(now.sa_sigaction, ours);
}

// A program without a handler ends as it would have without us.
TEST_F(SignalFaults, OthersSignalsEndAProgramThatDoesNotHandleThem) {
  stop();
  const Truncated foreign;
  for (const bool sent : {false, true}) {
    const pid_t child = fork();
    if (child == 0) {
      (void)signal(SIGBUS, SIG_DFL);
      uhmm_config config = test_config();
      config.fault_rung = UHMM_FAULTS_SIGNAL;
      if (uhmm_init(&config) != UHMM_OK) _exit(1);
      if (sent)
        raise(SIGBUS);
      else
        (void)*static_cast<const volatile std::byte*>(foreign.data);
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
  }
}

TEST_F(SignalFaults, AChildHasPlainCopies) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  const pid_t child = fork();
  if (child == 0) _exit(first_wrong(memory.data(), memory.bytes(), 1) == memory.bytes() ? 0 : 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(SignalFaults, MovedMemoryKeepsItsContents) {
  std::byte* memory =
      static_cast<std::byte*>(mmap(nullptr, 40 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  fill(memory, 40 * kPage, 1);
  UHMM_ASSERT_OK(uhmm_register(memory, 40 * kPage));
  UHMM_ASSERT_OK(uhmm_migrate(memory, 40 * kPage, 1, nullptr));
  void* moved = mremap(memory, 40 * kPage, 80 * kPage, MREMAP_MAYMOVE);
  ASSERT_NE(moved, MAP_FAILED);
  EXPECT_EQ(first_wrong(static_cast<std::byte*>(moved), 40 * kPage, 1), 40 * kPage);
  while (moved != memory && stats().ranges != 0) usleep(100);
  if (moved == memory) UHMM_EXPECT_OK(uhmm_unregister(memory));
  munmap(moved, 80 * kPage);
}

}  // namespace
}  // namespace uhmm::test
