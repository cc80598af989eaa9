// SPDX-License-Identifier: Apache-2.0
// Copies of the process made past the C library, without the privilege to hear of them: they may not have everything,
// but what they have is right. It is never zeros.
#include <grp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

#if !defined(__SANITIZE_THREAD__)  // which wants to be told of forks

namespace uhmm::test {
namespace {

constexpr std::size_t kPages = 300;
constexpr std::size_t kBytes = kPages * kPage;

struct Case {
  const char* name;
  uhmm_fault_rung rung;
  std::uint32_t flags;
  int sharing;
};
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for it
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

// What a copy ends with that touches memory which it has not.
constexpr int kSegv = 201;

int watched_for_signals(const std::function<int()>& body) {
  struct sigaction action {};
  action.sa_handler = [](int number) { _exit(number == SIGSEGV ? kSegv : kSegv + 1); };
  for (const int number : {SIGSEGV, SIGBUS}) sigaction(number, &action, nullptr);
  return body();
}
pid_t raw_copy(const std::function<int()>& body) {
  const auto child = static_cast<pid_t>(syscall(SYS_fork));
  if (child == 0) syscall(SYS_exit_group, watched_for_signals(body));
  return child;
}
pid_t copy(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(watched_for_signals(body));
  return child;
}
int first_byte(const std::byte* at) { return std::to_integer<int>(*static_cast<const volatile std::byte*>(at)); }

constexpr int kNothingToSee = 77;

// In a process of its own: 0, or the number of the step that went wrong.
int steps_of(const Case& one) {
  constexpr uid_t kNobody = 65534;
  if (setgroups(0, nullptr) != 0 || setresgid(kNobody, kNobody, kNobody) != 0 ||
      setresuid(kNobody, kNobody, kNobody) != 0)
    return kNothingToSee;
  (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  uhmm_config config = test_config();
  config.fault_rung = one.rung;
  config.flags |= one.flags;
  const uhmm_status started = uhmm_init(&config);
  if (started == UHMM_ERR_PERMISSION || started == UHMM_ERR_NOT_SUPPORTED) return kNothingToSee;
  if (started != UHMM_OK) return 17;
  Memory memory(kBytes, false, one.sharing | MAP_ANONYMOUS);
  // The program itself keeps some of it from its children.
  std::byte* const kept = memory.page(kPages - 20);
  if (madvise(kept, 10 * kPage, MADV_DONTFORK) != 0) return 1;
  std::memset(memory.data(), 7, kBytes);
  if (uhmm_register(memory.data(), kBytes) != UHMM_OK) return 2;
  const auto child_sees = [&](const std::byte* at) { return exit_code_of(raw_copy([=] { return first_byte(at); })); };
  const auto forked_child_sees = [&](const std::byte* at) {
    return exit_code_of(copy([=] { return first_byte(at); }));
  };
  if (child_sees(memory.data()) != 7 || child_sees(kept) != kSegv) return 3;
  for (int round = 0; round < 2; ++round) {
    if (uhmm_migrate(memory.data(), kBytes, 1, nullptr) != UHMM_OK) return 4;
    if (child_sees(memory.data()) != kSegv || child_sees(memory.page(kPages - 1)) != kSegv) return 5;
    // A part of it comes home: the rest is still away.
    if (first_byte(memory.data()) != 7) return 6;
    if (child_sees(memory.page(kPages - 1)) != kSegv) return 7;
    if (uhmm_migrate(memory.data(), kBytes, UHMM_CPU, nullptr) != UHMM_OK) return 8;
    if (child_sees(memory.data()) != 7 || child_sees(memory.page(kPages - 1)) != 7) return 9;
    if (child_sees(kept) != kSegv || child_sees(kept + 9 * kPage) != kSegv) return 10;
    // The library hears of this one.
    if (uhmm_migrate(memory.data(), kBytes, 1, nullptr) != UHMM_OK) return 11;
    if (forked_child_sees(memory.data()) != 7 || forked_child_sees(kept) != kSegv) return 12;
    std::memset(memory.data(), 7, kBytes);
  }
  if (uhmm_migrate(memory.data(), kBytes, 1, nullptr) != UHMM_OK) return 13;
  if (uhmm_unregister(memory.data()) != UHMM_OK) return 14;
  if (child_sees(memory.data()) != 7 || child_sees(kept) != kSegv) return 15;
  return uhmm_shutdown() == UHMM_OK ? 0 : 16;
}

class RawCopies : public testing::TestWithParam<Case> {};

TEST_P(RawCopies, NeverReadZeros) {
  const pid_t program = fork();
  if (program == 0) _exit(steps_of(GetParam()));
  const int result = exit_code_of(program);
  if (result == kNothingToSee) GTEST_SKIP() << "no such process, or no such rung without privilege here";
  EXPECT_EQ(result, 0);
}

INSTANTIATE_TEST_SUITE_P(Without, RawCopies,
                         testing::Values(Case{"Privilege", UHMM_FAULTS_AUTO, 0, MAP_PRIVATE},
                                         Case{"PrivilegeCopied", UHMM_FAULTS_AUTO, UHMM_CONFIG_NO_MOVE, MAP_PRIVATE},
                                         Case{"PrivilegeShared", UHMM_FAULTS_AUTO, 0, MAP_SHARED},
                                         Case{"PrivilegeCoherent", UHMM_FAULTS_AUTO, UHMM_CONFIG_COHERENT, MAP_PRIVATE},
                                         Case{"KernelFaults", UHMM_FAULTS_USER_MODE, 0, MAP_PRIVATE},
                                         Case{"Messages", UHMM_FAULTS_SIGNAL, 0, MAP_PRIVATE}),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace uhmm::test
#endif
