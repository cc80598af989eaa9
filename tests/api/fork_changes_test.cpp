// SPDX-License-Identifier: Apache-2.0
// Memory that changes while a process is being forked, and right after that in the child.
#if !defined(__SANITIZE_THREAD__)
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/api/runtime.hpp"
#include "runtime/engine/fork_heir.hpp"
#include "tests/support/fork_snapshots.hpp"

namespace uhmm::test {
namespace {

// Called by forks after the runtime's own handler, as those of a program are that has used fork handlers first.
std::function<void()> last_before_copy;
const int kHandlerStatus = pthread_atfork(
    [] {
      if (last_before_copy) last_before_copy();
    },
    nullptr, nullptr);

// A thread changes the memory when the runtime has written down what the child is owed, and the copy is still to come.
TEST_F(ForkSnapshots, WhatChangesBeforeTheCopyIsInIt) {
  ASSERT_EQ(kHandlerStatus, 0);
  Memory fresh(64 * kPage);
  std::vector<std::byte> as_filled(bytes());
  fill(as_filled.data(), bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(fresh.data(), fresh.bytes(), 1, nullptr));
  last_before_copy = [&] {
    std::thread([&] {
      UHMM_ASSERT_OK(uhmm_discard(page(0), 600 * kPage));
      std::memset(page(100), 8, 100 * kPage);
      EXPECT_EQ(page(700)[0], pattern(1, 700 * kPage));  // comes home
      ASSERT_EQ(madvise(page(700), kPage, MADV_DONTNEED), 0);
      std::memset(page(800), 9, kPage);
      UHMM_ASSERT_OK(uhmm_discard(page(800), kPage));
      UHMM_ASSERT_OK(uhmm_unregister(fresh.data()));
      std::memset(fresh.data(), 6, fresh.bytes());
      UHMM_ASSERT_OK(uhmm_register(fresh.data(), fresh.bytes()));
    }).join();
  };
  const pid_t child = child_that([&] {
    const auto all = [&](std::size_t from, std::size_t pages, int value) {
      return std::all_of(page(from), page(from + pages), [&](std::byte byte) { return byte == std::byte(value); });
    };
    if (!all(0, 100, 0) || !all(200, 400, 0)) return 1;
    if (!all(100, 100, 8)) return 2;
    if (!all(700, 1, 0)) return 3;
    if (!all(800, 1, 0)) return 4;
    if (std::any_of(fresh.data(), fresh.data() + fresh.bytes(), [](std::byte byte) { return byte != std::byte{6}; }))
      return 5;
    for (std::size_t i = 600; i < kPages; ++i)
      if (i != 700 && i != 800 && !std::equal(page(i), page(i + 1), as_filled.begin() + i * kPage)) return 6;
    return 0;
  });
  last_before_copy = nullptr;
  EXPECT_EQ(let_go(child), 0);
}

// The runtime is kept from following what a thread does to the memory map until the process has been copied.
TEST_F(ForkSnapshots, WhatIsNotFollowedYetFollowsInTheChild) {
  uhmm_status why = UHMM_OK;
  engine::Context& context = api::running(&why)->context;
  constexpr std::size_t kFrom = 100, kCount = 300, kGone = 600;
  const auto place = [] {
    void* memory = mmap(nullptr, kCount * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return static_cast<std::byte*>(memory);
  };
  std::byte* const first = place();
  std::byte* const last = place();
  std::atomic<bool> changed{false};
  std::atomic<bool> copied{false};
  std::thread changer;
  last_before_copy = [&] {
    changer = std::thread([&] {
      const engine::Operation operation(context);
      constexpr int kMove = MREMAP_MAYMOVE | MREMAP_FIXED;
      EXPECT_EQ(mremap(page(kFrom), kCount * kPage, kCount * kPage, kMove, first), first);
      EXPECT_EQ(mremap(first, kCount * kPage, kCount * kPage, kMove, last), last);
      EXPECT_EQ(munmap(page(kGone), kPage), 0);
      changed.store(true);
      changed.notify_all();
      copied.wait(false);
    });
    changed.wait(false);
  };
  const pid_t child = child_that([&] {
    for (std::size_t i = 0; i < kCount * kPage; ++i)
      if (last[i] != pattern(1, kFrom * kPage + i)) return 1;
    for (std::size_t i = kFrom + kCount; i < kPages; ++i)
      if (i != kGone && page(i)[7] != pattern(1, i * kPage + 7)) return 2;
    return raised_by_read(page(kGone)).signal == SIGSEGV ? 0 : 3;
  });
  last_before_copy = nullptr;
  copied.store(true);
  copied.notify_all();
  changer.join();
  EXPECT_EQ(let_go(child), 0);
  for (std::size_t i = 0; i < kCount * kPage; ++i) ASSERT_EQ(last[i], pattern(1, kFrom * kPage + i)) << i;
  munmap(last, kCount * kPage);
}

TEST_F(ForkSnapshots, TheChildDropsWhatItHasJustMoved) {
  const pid_t child = child_that([&] {
    auto* place =
        static_cast<std::byte*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (std::size_t i = 0; i < kPages; ++i) {
      if (mremap(page(i), kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) return 1;
      const VirtAddr begin{place};
      engine::give_up_inheritance({begin, begin + kPage});
      if (madvise(place, kPage, MADV_DONTNEED) != 0) return 2;
      if (std::any_of(place, place + kPage, [](std::byte byte) { return byte != std::byte{0}; })) return 3;
    }
    return 0;
  });
  EXPECT_EQ(let_go(child), 0);
}

TEST_F(ForkSnapshots, ACopyOfTheChildGivesUpNothingOfTheChilds) {
  const pid_t child = child_that([&] {
    const auto copy = static_cast<pid_t>(syscall(SYS_fork));
    if (copy == 0) {
      engine::give_up_inheritance({VirtAddr{data()}, VirtAddr{data()} + bytes()});
      syscall(SYS_exit_group, 5);
    }
    if (exit_code_of(copy) != 5) return 1;
    return holds(1) ? 0 : 2;
  });
  EXPECT_EQ(let_go(child), 0);
}

}  // namespace
}  // namespace uhmm::test
#endif
