// SPDX-License-Identifier: Apache-2.0
// Forks of a program whose memory stays on devices: children are served from there, and keep what they saw. Not with
// ThreadSanitizer: it takes the thread that serves a child for one of its parent's, so everything comes home there.
#if !defined(__SANITIZE_THREAD__)
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/support/fork_snapshots.hpp"

namespace uhmm::test {
namespace {

TEST_F(ForkSnapshots, NothingComesHomeAndTheChildSeesEverything) {
  const pid_t child = child_that([&] {
    if (!holds(1)) return 1;
    fill(data(), bytes(), 2);
    return holds(2) ? 0 : 2;
  });
  expect_still_away();
  EXPECT_EQ(let_go(child), 0);
  expect_still_away();
  EXPECT_TRUE(holds(1)) << "the child's writes are its own";
}

TEST_F(ForkSnapshots, TheChildKeepsWhatKernelsChange) {
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  device_fill(data(), bytes(), 2);
  EXPECT_EQ(stats().pages_on_devices, kPages);
  EXPECT_EQ(let_go(child), 0);
  EXPECT_EQ(device_count_wrong(data(), bytes(), 2), 0u);
  EXPECT_TRUE(holds(2));
}

TEST_F(ForkSnapshots, WhileAKernelWrites) {
  Memory flag(kPage);
  auto* go_on = flag.as<std::atomic<std::uint64_t>>();
  UHMM_ASSERT_OK(launch(stream_, wait_kernel, SpanArgs{nullptr, 0, 0, go_on}));
  uhmm_stream other = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(1, &other));
  // The device is busy: entries lose their write permission at once.
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  UHMM_ASSERT_OK(launch(other, increment_kernel, SpanArgs{data(), bytes(), 0, nullptr}, 2));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(other));
  EXPECT_EQ(let_go(child), 0);
  go_on->store(1);
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  UHMM_ASSERT_OK(uhmm_stream_destroy(other));
  EXPECT_TRUE(holds(2));
}

TEST_F(ForkSnapshots, TheChildKeepsWhatTheParentChanges) {
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  fill(data(), bytes() / 2, 3);                                                     // comes home first
  UHMM_ASSERT_OK(uhmm_discard(page(kPages / 2 + 1), bytes() / 8));                  // ends
  UHMM_ASSERT_OK(uhmm_make_exclusive(page(kPages - 100), 50 * kPage, 1, nullptr));  // the device's own
  UHMM_ASSERT_OK(uhmm_migrate(page(kPages - 40), 40 * kPage, UHMM_CPU, nullptr));
  std::memset(page(kPages - 40), 9, 40 * kPage);
  EXPECT_EQ(let_go(child), 0);
}

TEST_F(ForkSnapshots, TheChildKeepsWhatTheParentGivesBack) {
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  UHMM_ASSERT_OK(uhmm_unregister(data()));
  std::memset(data(), 7, bytes());
  EXPECT_EQ(let_go(child), 0);
  UHMM_ASSERT_OK(uhmm_register(data(), bytes()));
}

TEST_F(ForkSnapshots, TheDeviceMayBeRestartedRemovedOrLost) {
  const pid_t restarted = child_that([&] { return holds(1) ? 0 : 1; });
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  EXPECT_EQ(let_go(restarted), 0);
  UHMM_ASSERT_OK(uhmm_migrate(data(), bytes(), 1, nullptr));
  const pid_t lost = child_that([&] { return holds(1) ? 0 : 1; });
  may_lose_data_ = true;
  ASSERT_EQ(kill(static_cast<pid_t>(device_info().process_id), SIGKILL), 0);
  while (stats().pages_lost != kPages) std::this_thread::yield();
  EXPECT_EQ(let_go(lost), 0) << "the child's copy was not the device's alone";
}

TEST_F(ForkSnapshots, TheParentMayShutDown) {
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  memory_.reset();
  stop();
  go_.give();
  EXPECT_EQ(exit_code_of(child), 0);
}

TEST_F(ForkSnapshots, TheParentMayBeKilled) {
  Signal ready;
  Signal right;
  stop();
  const pid_t parent = fork();
  if (parent == 0) {
    uhmm_config config = test_config();
    if (uhmm_init(&config) != UHMM_OK) _exit(1);
    if (uhmm_register(data(), bytes()) != UHMM_OK || uhmm_migrate(data(), bytes(), 1, nullptr) != UHMM_OK) _exit(2);
    if (fork() == 0) {
      ready.give();
      if (!go_.take()) _exit(3);
      if (holds(1)) right.give();
      _exit(0);
    }
    for (;;) pause();
  }
  ASSERT_TRUE(ready.take());
  ASSERT_EQ(kill(parent, SIGKILL), 0);
  EXPECT_EQ(exit_code_of(parent), 1000 + SIGKILL);
  go_.give();
  EXPECT_TRUE(right.take());
}

// System calls, protections and moves of what has not come yet.
TEST_F(ForkSnapshots, TheChildsMemoryIsOrdinary) {
  EXPECT_EQ(let_go(child_that([&] {
              int ends[2];
              std::byte copy[3000];
              if (pipe(ends) != 0 || write(ends[1], page(10) + 100, sizeof(copy)) != sizeof(copy)) return 1;
              if (read(ends[0], copy, sizeof(copy)) != sizeof(copy)) return 2;
              for (std::size_t i = 0; i < sizeof(copy); ++i)
                if (copy[i] != pattern(1, 10 * kPage + 100 + i)) return 3;
              if (mprotect(page(20), 4 * kPage, PROT_READ) != 0) return 4;
              if (page(21)[5] != pattern(1, 21 * kPage + 5)) return 5;
              if (raised_by([&] { *const_cast<volatile std::byte*>(page(20)) = std::byte{1}; }).signal != SIGSEGV)
                return 6;
              if (mprotect(page(20), 4 * kPage, PROT_READ | PROT_WRITE) != 0) return 7;
              if (munmap(page(100), 10 * kPage) != 0) return 8;
              if (raised_by_read(page(105)).signal != SIGSEGV) return 9;
              void* again =
                  mmap(page(100), 10 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
              if (again != page(100)) return 10;
              for (std::size_t i = 0; i < 10 * kPage; ++i)
                if (page(100)[i] != std::byte{0}) return 11;
              void* place = mmap(nullptr, 600 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
              void* moved = mremap(page(200), 600 * kPage, 600 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, place);
              if (moved == MAP_FAILED) return 12;
              for (std::size_t i = 0; i < 600 * kPage; ++i)
                if (static_cast<std::byte*>(moved)[i] != pattern(1, 200 * kPage + i)) return 13;
              for (std::size_t i = 800 * kPage; i < bytes(); ++i)
                if (data()[i] != pattern(1, i)) return 14;
              return 0;
            })),
            0);
}

TEST_F(ForkSnapshots, TheChildMayCloseEveryDescriptor) {
  EXPECT_EQ(let_go(child_that([&] {
              for (int fd = 3; fd < 4096; ++fd) close(fd);
              return holds(1) ? 0 : 1;
            })),
            0);
}

TEST_F(ForkSnapshots, TheChildHoldsNoDescriptorOfItsParents) {
  Signal pipe_of_parent;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  // The child ends its writing end; the thread that serves it may not keep it open.
  const pid_t closing = fork();
  if (closing == 0) {
    close(ends[1]);
    for (;;) pause();
  }
  close(ends[1]);
  EXPECT_EQ(let_go(child), 0);
  char word = 0;
  EXPECT_EQ(read(ends[0], &word, 1), 0);
  kill(closing, SIGKILL);
  EXPECT_EQ(exit_code_of(closing), 1000 + SIGKILL);
  close(ends[0]);
}

TEST_F(ForkSnapshots, ChildrenOfChildren) {
  EXPECT_EQ(let_go(child_that([&] {
              const int inner = exit_code_of([&] {
                const pid_t child = fork();
                if (child == 0) _exit(holds(1) ? 0 : 1);
                return child;
              }());
              if (inner != 0) return 10 + inner;
              return holds(1) ? 0 : 1;
            })),
            0);
}

TEST_F(ForkSnapshots, TheChildUsesDevicesItself) {
  const pid_t child = child_that([&] {
    uhmm_config config = test_config();
    if (uhmm_init(&config) != UHMM_OK) return 1;
    if (uhmm_register(data(), bytes()) != UHMM_OK) return 2;
    if (uhmm_migrate(data(), bytes(), 1, nullptr) != UHMM_OK) return 3;
    uhmm_stream stream = 0;
    if (uhmm_stream_create(1, &stream) != UHMM_OK) return 4;
    if (launch(stream, increment_kernel, SpanArgs{data(), bytes(), 0, nullptr}, 2) != UHMM_OK) return 5;
    if (uhmm_stream_synchronize(stream) != UHMM_OK) return 6;
    if (!holds(2)) return 7;
    // Its own children are served in the same way.
    if (uhmm_migrate(data(), bytes(), 1, nullptr) != UHMM_OK) return 8;
    const pid_t inner = fork();
    if (inner == 0) _exit(holds(2) ? 0 : 1);
    if (stats().pages_on_devices != kPages) return 9;
    return exit_code_of(inner) == 0 ? 0 : 10;
  });
  device_fill(data(), bytes(), 5);
  EXPECT_EQ(let_go(child), 0);
  EXPECT_TRUE(holds(5));
}

TEST_F(ForkSnapshots, PagesOnBothSidesAreTheChildsOwn) {
  UHMM_ASSERT_OK(uhmm_migrate(data(), 400 * kPage, UHMM_CPU, nullptr));
  UHMM_ASSERT_OK(uhmm_acquire(data(), 200 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_release(data(), 200 * kPage, 1, UHMM_ACCESS_READ));
  ASSERT_EQ(pages_in_state(data(), bytes(), UHMM_PAGE_SHARED), 200u);
  const pid_t child = child_that([&] {
    if (!holds(1)) return 1;
    fill(data(), bytes(), 4);
    return holds(4) ? 0 : 2;
  });
  EXPECT_EQ(let_go(child), 0);
  EXPECT_EQ(device_count_wrong(data(), bytes(), 1), 0u);
  EXPECT_TRUE(holds(1));
}

TEST_F(ForkSnapshots, AdviceForChildrenHolds) {
  ASSERT_EQ(madvise(page(0), 100 * kPage, MADV_DONTFORK), 0);
  ASSERT_EQ(madvise(page(100), 100 * kPage, MADV_WIPEONFORK), 0);
  const pid_t child = child_that([&] {
    if (raised_by_read(page(50)).signal != SIGSEGV && page(50)[100] == pattern(1, 50 * kPage + 100)) return 1;
    for (std::size_t i = 100 * kPage; i < 200 * kPage; ++i)
      if (data()[i] != std::byte{0}) return 2;
    for (std::size_t i = 200 * kPage; i < bytes(); ++i)
      if (data()[i] != pattern(1, i)) return 3;
    return 0;
  });
  expect_still_away();
  EXPECT_EQ(let_go(child), 0);
  EXPECT_TRUE(holds(1));
}

TEST_F(ForkSnapshots, SeveralAtATimeFromSeveralThreads) {
  constexpr int kThreads = 3;
  constexpr int kForks = 6;
  std::atomic<int> wrong{0};
  std::atomic<int> forking{kThreads};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int number = 0; number < kThreads; ++number)
    threads.emplace_back([&] {
      for (int round = 0; round < kForks; ++round) {
        const pid_t child = fork();
        if (child == 0) {
          // One value in the whole of a page, whichever kernel had run by then.
          for (std::size_t at = 0; at < kPages; ++at)
            for (std::size_t i = 1; i < kPage; ++i)
              if (std::to_integer<int>(page(at)[i] ^ page(at)[0]) !=
                      std::to_integer<int>(pattern(1, at * kPage + i) ^ pattern(1, at * kPage)) &&
                  page(at)[i] != page(at)[0])
                _exit(1);
          _exit(0);
        }
        wrong += exit_code_of(child) == 0 ? 0 : 1;
      }
      --forking;
    });
  while (forking != 0) {
    UHMM_EXPECT_OK(uhmm_migrate(data(), bytes(), 1, nullptr));
    volatile std::byte sink = page(static_cast<std::size_t>(forking) * 100)[3];
    (void)sink;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(holds(1));
}

// A thread whose stack is on the device when it forks. Returns what is wrong with what the child finds in it.
struct StackOnDevice {
  Memory* stack = nullptr;
  int wrong = -1;

  static void* fork_there(void* self) {
    auto& its = *static_cast<StackOnDevice*>(self);
    volatile unsigned char local[300 * 1024];
    for (std::size_t i = 0; i < sizeof(local); ++i) local[i] = static_cast<unsigned char>(i * 7);
    if (uhmm_migrate(its.stack->data(), its.stack->bytes(), 1, nullptr) != UHMM_OK) return nullptr;
    const pid_t child = fork();
    if (child == 0) {
      for (std::size_t i = 0; i < sizeof(local); ++i)
        if (local[i] != static_cast<unsigned char>(i * 7)) _exit(1);
      _exit(0);
    }
    its.wrong = exit_code_of(child);
    return nullptr;
  }
};

TEST_F(ForkSnapshots, TheForkingThreadsStackMayBeThere) {
  Memory stack(1024 * kPage);
  fill(stack.data(), stack.bytes(), 1);
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstack(&attributes, stack.data(), stack.bytes()), 0);
  StackOnDevice there{&stack};
  pthread_t thread{};
  ASSERT_EQ(pthread_create(&thread, &attributes, StackOnDevice::fork_there, &there), 0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  (void)pthread_attr_destroy(&attributes);
  EXPECT_EQ(there.wrong, 0);
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

TEST_F(ForkSnapshots, ChildrenThatEndLeaveNothingBehind) {
  const std::size_t before = open_descriptors();
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      if (i % 2 == 0) execl("/bin/true", "true", nullptr);
      _exit(data()[i * 1000] == pattern(1, static_cast<std::size_t>(i) * 1000) ? 0 : 1);
    }
    EXPECT_EQ(exit_code_of(child), 0);
  }
  while (open_descriptors() > before) std::this_thread::yield();
  // And nothing is kept for them.
  device_fill(data(), bytes(), 2);
  EXPECT_EQ(open_descriptors(), before);
}

// ------------------------------------------------------------------------------------------- what may go wrong

TEST_F(ForkSnapshots, APageThatCantBeKeptRaisesSigbus) {
  const pid_t child = child_that([&] {
    if (raised_by_read(page(0)).signal != SIGBUS) return 1;
    for (std::size_t i = kPagesPerBlock * kPage; i < bytes(); ++i)
      if (data()[i] != pattern(1, i)) return 2;
    return 0;
  });
  inject::arm(inject::Point::SnapshotKeep, 1);
  std::memset(page(0), 5, 1);
  EXPECT_TRUE(inject::fired(inject::Point::SnapshotKeep));
  EXPECT_EQ(let_go(child), 0);
  EXPECT_EQ(page(0)[0], std::byte{5});
}

TEST_F(ForkSnapshots, WithoutAThreadTheChildGetsEverythingAtOnce) {
  inject::arm(inject::Point::SnapshotTakeOver, 1);
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  expect_still_away();
  device_fill(data(), bytes(), 2);
  EXPECT_EQ(let_go(child), 0);
}

TEST_F(ForkSnapshots, WhereItCantBeMadeEverythingComesHome) {
  inject::arm(inject::Point::SnapshotMake, 1);
  const pid_t child = child_that([&] { return holds(1) ? 0 : 1; });
  EXPECT_EQ(stats().pages_on_devices, 0u);
  EXPECT_EQ(let_go(child), 0);
}

TEST_F(ForkSnapshots, WithoutPrivilegeEverythingComesHome) {
  memory_.reset();
  stop();
  const pid_t program = fork();
  if (program == 0) {
    // Root without capabilities.
    for (int capability = 0; capability < 64; ++capability) (void)prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    if (syscall(SYS_setresuid, 65534, 65534, 65534) != 0) _exit(1);
    uhmm_config config = test_config();
    if (uhmm_init(&config) != UHMM_OK) _exit(0);  // not even faults without privilege: nothing to see
    Memory memory(kPages * kPage);
    fill(memory.data(), memory.bytes(), 1);
    if (uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr) != UHMM_OK) _exit(3);
    const pid_t child = fork();
    if (child == 0) _exit(first_wrong(memory.data(), memory.bytes(), 1) == memory.bytes() ? 0 : 1);
    if (stats().pages_on_devices != 0) _exit(4);
    _exit(exit_code_of(child));
  }
  EXPECT_EQ(exit_code_of(program), 0);
}

// Past the C library nobody is told ahead: what is away is not there, but it is never zeros.
TEST_F(ForkSnapshots, ACopyMadePastTheCLibraryGetsSigbus) {
  const auto child = static_cast<pid_t>(syscall(SYS_fork));
  if (child == 0) {
    static int found = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { _exit(found); };
    sigaction(SIGBUS, &action, nullptr);
    found = 7;
    const std::byte first = *static_cast<const volatile std::byte*>(page(300));
    _exit(first == std::byte{0} ? 1 : 2);
  }
  EXPECT_EQ(exit_code_of(child), 7);
  expect_still_away();
  EXPECT_TRUE(holds(1));
}

TEST_F(ForkSnapshots, CopiesOfBothKindsAtATime) {
  std::atomic<bool> stop_now{false};
  std::thread raw([&] {
    while (!stop_now) {
      const auto child = static_cast<pid_t>(syscall(SYS_fork));
      if (child == 0) syscall(SYS_exit_group, 0);
      EXPECT_EQ(exit_code_of(child), 0);
    }
  });
  for (int i = 0; i < 12; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(holds(1) ? 0 : 1);
    EXPECT_EQ(exit_code_of(child), 0);
  }
  stop_now = true;
  raw.join();
  EXPECT_TRUE(holds(1));
}

}  // namespace
}  // namespace uhmm::test
#endif
