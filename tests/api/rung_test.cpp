// SPDX-License-Identifier: Apache-2.0
// Every rung of the ladder by which CPU faults come, with and without privilege.
#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/os/machine.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

constexpr uid_t kNobody = 65534;

struct Case {
  const char* name;
  uhmm_fault_rung rung;
  bool privileged;
};
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for it
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

// What the runtime has to answer, given what the kernel grants this process.
uhmm_status expected_status(const os::Machine::Userfaultfd& rungs, uhmm_fault_rung rung) {
  const auto status = [](int error) {
    if (error == 0) return UHMM_OK;
    return error == EPERM || error == EACCES ? UHMM_ERR_PERMISSION : UHMM_ERR_NOT_SUPPORTED;
  };
  switch (rung) {
    case UHMM_FAULTS_SYSCALL: return status(rungs.system_call);
    case UHMM_FAULTS_DEVICE: return status(rungs.device);
    case UHMM_FAULTS_USER_MODE:
    case UHMM_FAULTS_SIGNAL: return status(rungs.user_mode);
    case UHMM_FAULTS_AUTO: break;
  }
  return rungs.any() ? UHMM_OK : status(rungs.user_mode);
}
uhmm_fault_rung expected_rung(const os::Machine::Userfaultfd& rungs, uhmm_fault_rung rung) {
  if (rung != UHMM_FAULTS_AUTO) return rung;
  if (rungs.system_call == 0) return UHMM_FAULTS_SYSCALL;
  return rungs.device == 0 ? UHMM_FAULTS_DEVICE : UHMM_FAULTS_USER_MODE;
}

// In a child: 0, or the number of the step that went wrong.
int use_rung(const Case& one) {
  if (!one.privileged) {
    if (setgroups(0, nullptr) != 0 || setresgid(kNobody, kNobody, kNobody) != 0 ||
        setresuid(kNobody, kNobody, kNobody) != 0)
      return 1;
    // Programs that are started without privilege own their files in /proc.
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0) return 2;
  }
  const os::Machine::Userfaultfd rungs = os::look_at_machine().userfaultfd;
  uhmm_config config = test_config();
  config.fault_rung = one.rung;
  const uhmm_status status = uhmm_init(&config);
  if (status != expected_status(rungs, one.rung)) return 3;
  if (status != UHMM_OK) return *uhmm_error_detail() != '\0' ? 0 : 4;
  uhmm_config used = UHMM_CONFIG_INIT;
  if (uhmm_get_config(&used) != UHMM_OK || used.fault_rung != expected_rung(rungs, one.rung)) return 5;

  Memory memory(8 * kPage, false);
  fill(memory.data(), memory.bytes(), 1);
  if (uhmm_register(memory.data(), memory.bytes()) != UHMM_OK) return 21;
  uhmm_stream stream = 0;
  if (uhmm_stream_create(1, &stream) != UHMM_OK) return 6;
  if (launch(stream, increment_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}, 2) != UHMM_OK) return 7;
  if (uhmm_stream_synchronize(stream) != UHMM_OK) return 8;
  if (stats().pages_on_devices == 0) return 9;
  // A plain load.
  if (memory.data()[0] != static_cast<std::byte>(std::to_integer<int>(pattern(1, 0)) + 1)) return 10;

  // A system call.
  int ends[2];
  if (pipe(ends) != 0) return 11;
  if (uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr) != UHMM_OK) return 12;
  const ssize_t written = write(ends[1], memory.page(3), 100);
  if (used.fault_rung == UHMM_FAULTS_USER_MODE || used.fault_rung == UHMM_FAULTS_SIGNAL) {
    if (written != -1 || errno != EFAULT) return 13;
    // The documented way: bring it back first.
    if (uhmm_migrate(memory.page(3), kPage, UHMM_CPU, nullptr) != UHMM_OK) return 14;
    if (write(ends[1], memory.page(3), 100) != 100) return 15;
  } else if (written != 100) {
    return 16;
  }
  std::byte back[100];
  if (read(ends[0], back, 100) != 100) return 17;
  for (std::size_t i = 0; i < 100; ++i)
    if (back[i] != static_cast<std::byte>(std::to_integer<int>(pattern(1, 3 * kPage + i)) + 1)) return 18;
  if (uhmm_unregister(memory.data()) != UHMM_OK) return 19;
  return uhmm_shutdown() == UHMM_OK ? 0 : 20;
}

class RungTest : public testing::TestWithParam<Case> {};

TEST_P(RungTest, ServesOrSaysWhyNot) {
  if (!GetParam().privileged && geteuid() != 0) GTEST_SKIP() << "has no privilege to give up";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(use_rung(GetParam()));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// What a start on this rung writes to standard error, in a child. Exit status 1: it can't be had here.
std::string said_at_start(uhmm_fault_rung rung, bool* started) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    (void)dup2(ends[1], STDERR_FILENO);
    (void)setenv("UHMM_LOG", "info", 1);
    (void)unsetenv("UHMM_FAULTS");
    uhmm_config config = test_config();
    config.flags = 0;
    config.fault_rung = rung;
    if (uhmm_init(&config) != UHMM_OK) _exit(1);
    _exit(uhmm_shutdown() == UHMM_OK ? 0 : 2);
  }
  close(ends[1]);
  std::string text;
  char some[512];
  for (ssize_t got; (got = read(ends[0], some, sizeof(some))) > 0;) text.append(some, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(status == 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 1)) << status << ": " << text;
  *started = status == 0;
  return text;
}
std::size_t count_in(const std::string& text, const std::string& words) {
  std::size_t count = 0;
  for (std::size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++count;
  return count;
}

TEST(Rungs, AreAnnouncedOnceAtStart) {
  struct Said {
    uhmm_fault_rung rung;
    const char* way;
    std::size_t warnings;  // that system calls fail
  };
  std::size_t seen = 0;
  for (const Said& one : {Said{UHMM_FAULTS_SYSCALL, "CPU faults come by userfaultfd(2)\n", 0},
                          Said{UHMM_FAULTS_DEVICE, "CPU faults come by /dev/userfaultfd\n", 0},
                          Said{UHMM_FAULTS_USER_MODE, "CPU faults come by userfaultfd(2), user mode only\n", 1},
                          Said{UHMM_FAULTS_SIGNAL, "CPU faults come by SIGBUS\n", 1}}) {
    bool started = false;
    const std::string text = said_at_start(one.rung, &started);
    if (!started) continue;
    ++seen;
    EXPECT_EQ(count_in(text, one.way), 1u) << text;
    EXPECT_EQ(count_in(text, "CPU faults come by"), 1u) << text;
    EXPECT_EQ(count_in(text, "fail with EFAULT"), one.warnings) << text;
  }
  if (seen == 0) GTEST_SKIP() << "no rung can be had here";
}

INSTANTIATE_TEST_SUITE_P(
    Ladder, RungTest,
    testing::Values(Case{"Auto", UHMM_FAULTS_AUTO, true}, Case{"Syscall", UHMM_FAULTS_SYSCALL, true},
                    Case{"Device", UHMM_FAULTS_DEVICE, true}, Case{"UserMode", UHMM_FAULTS_USER_MODE, true},
                    Case{"Signal", UHMM_FAULTS_SIGNAL, true}, Case{"SignalWithoutPrivilege", UHMM_FAULTS_SIGNAL, false},
                    Case{"AutoWithoutPrivilege", UHMM_FAULTS_AUTO, false},
                    Case{"SyscallWithoutPrivilege", UHMM_FAULTS_SYSCALL, false},
                    Case{"DeviceWithoutPrivilege", UHMM_FAULTS_DEVICE, false},
                    Case{"UserModeWithoutPrivilege", UHMM_FAULTS_USER_MODE, false}),
    [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace uhmm::test
