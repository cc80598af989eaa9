// SPDX-License-Identifier: Apache-2.0
// The soft device: the conformance suite, and what only a device that is a process can do wrong.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "backends/soft/soft_device.hpp"
#include "runtime/base/inject.hpp"
#include "tests/conformance/device_conformance.hpp"

namespace uhmm::test {
namespace {

using backend::MapAccess;

backend::Device* create_soft(std::uint64_t latency_ns = 0, std::uint64_t bytes_per_sec = 0, bool use_poison = true) {
  soft::Options options;
  std::snprintf(options.name, sizeof(options.name), "soft0");
  options.workers = 3;
  options.link_latency_ns = latency_ns;
  options.link_bytes_per_sec = bytes_per_sec;
  options.use_poison = use_poison;
  return soft::create(options);
}

std::string status_field(std::int64_t pid, const std::string& field) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);)
    if (line.rfind(field + ":", 0) == 0) return line.substr(line.find_first_not_of(" \t", field.size() + 1));
  return "";
}

// Neither there nor a zombie that init has not reaped yet.
bool process_gone(std::int64_t pid) {
  const std::string state = status_field(pid, "State");
  return state.empty() || state[0] == 'Z' || state[0] == 'X';
}

bool gone_within(std::int64_t pid, int seconds) {
  for (int i = 0; i < seconds * 100; ++i) {
    if (process_gone(pid)) return true;
    usleep(10000);
  }
  return false;
}

std::vector<std::string> open_files(std::int64_t pid) {
  std::vector<std::string> files;
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  DIR* dir = opendir(folder.c_str());
  if (dir == nullptr) return files;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    char target[256] = {};
    if (readlink((folder + "/" + entry->d_name).c_str(), target, sizeof(target) - 1) > 0) files.emplace_back(target);
  }
  closedir(dir);
  return files;
}

std::string test_name(const testing::TestParamInfo<DeviceFactory>& factory) { return factory.param.name; }

class SoftDevice : public DeviceConformance {
 protected:
  std::int64_t pid() const { return device_->capabilities().process_id; }
};

#if defined(__SANITIZE_ADDRESS__)
// UndefinedBehaviorSanitizer would see it first, and tells nobody how it ends.
__attribute__((no_sanitize("undefined"))) void read_past_end(const uhmm_kernel_item*, void* raw) {
  auto* args = static_cast<KernelArgs*>(raw);
  volatile char few[4] = {};
  args->value = static_cast<std::uint64_t>(few[args->words]);
}

TEST_P(SoftDevice, WhatASanitizerEndsIsAKernelFailure) {
  EXPECT_EQ(run(read_past_end, {nullptr, 4, 0}).code(), UHMM_ERR_KERNEL_FAILED);
  const std::string reason = death();
  EXPECT_NE(reason.find("sanitizer"), std::string::npos) << reason;
  EXPECT_NE(reason.find("read_past_end"), std::string::npos) << reason;
}
#endif

TEST_P(SoftDevice, ProcessHasNoPrivilegeAndNoDescriptorItDoesNotNeed) {
  const int secret = open("/etc/passwd", O_RDONLY);
  const int low = fcntl(secret, F_DUPFD, 100);
  device_->close();
  ASSERT_TRUE(device_->open().ok()) << last_detail();
  for (const char* field : {"CapInh", "CapPrm", "CapEff", "CapAmb"})
    EXPECT_EQ(status_field(pid(), field), "0000000000000000") << field;
  EXPECT_EQ(status_field(pid(), "NoNewPrivs"), "1");
  // Its userfaultfd goes when it has been sent: only the program serves faults.
  auto files = open_files(pid());
  const auto has = [&](const char* text) {
    return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.find(text) != file.npos; });
  };
  for (int i = 0; i < 500 && has("userfaultfd"); ++i, files = open_files(pid())) usleep(10000);
  EXPECT_FALSE(has("userfaultfd"));
  EXPECT_FALSE(has("passwd"));
  EXPECT_LE(files.size(), 7u);
  close(secret);
  close(low);
  window_.host = nullptr;  // close() ended it
}

TEST_P(SoftDevice, ProcessIsInvisibleToWait) {
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  const pid_t child = fork();
  if (child == 0) _exit(3);
  int status = 0;
  int reaped = 0;
  while (wait(&status) > 0) ++reaped;  // must not hang on the device
  EXPECT_EQ(reaped, 1);
}

TEST_P(SoftDevice, CloseEndsTheProcess) {
  const auto process = pid();
  EXPECT_FALSE(process_gone(process));
  device_->close();
  EXPECT_TRUE(gone_within(process, 10));
  window_.host = nullptr;
}

TEST_P(SoftDevice, KilledProcessIsALossAndSaysSo) {
  ASSERT_EQ(kill(static_cast<pid_t>(pid()), SIGKILL), 0);
  EXPECT_NE(death().find("device process"), std::string::npos);
}

TEST_P(SoftDevice, RequestsToADeadProcessFailInsteadOfHanging) {
  ASSERT_EQ(kill(static_cast<pid_t>(pid()), SIGKILL), 0);
  // Nobody calls handle_death.
  EXPECT_EQ(device_->unmap(std::array{pages(0, 1)}).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_TRUE(device_->lost());
}

TEST_P(SoftDevice, LibraryLoadedLaterIsUnknownUntilRestart) {
  void* library = dlopen("libthread_db.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << dlerror();
  const auto kernel = reinterpret_cast<uhmm_kernel>(dlsym(library, "td_init"));
  ASSERT_NE(kernel, nullptr);
  const Status status = device_->check_kernel(kernel);
  if (!status.ok()) {  // it may be loaded already, by an earlier repetition of this test
    EXPECT_EQ(status.code(), UHMM_ERR_UNKNOWN_KERNEL);
    EXPECT_NE(std::string(last_detail()).find("libthread_db"), std::string::npos) << last_detail();
    EXPECT_NE(std::string(last_detail()).find("uhmm_device_restart"), std::string::npos) << last_detail();
  }
  device_->close();
  window_.host = nullptr;
  ASSERT_TRUE(device_->open().ok()) << last_detail();
  EXPECT_TRUE(device_->check_kernel(kernel).ok()) << last_detail();
  EXPECT_EQ(device_->check_kernel(reinterpret_cast<uhmm_kernel>(memory_)).code(), UHMM_ERR_UNKNOWN_KERNEL);
  dlclose(library);
}

TEST_P(SoftDevice, AttachIsAllOrNothing) {
  for (int n = 1; n <= 2; ++n) {
    void* more = mmap(nullptr, 4 * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    backend::Window window{{VirtAddr{more}, VirtAddr{more} + 4 * kPageBytes}, nullptr};
    inject::arm(n == 1 ? inject::Point::DeviceAttach : inject::Point::DeviceReserve, 1);
    EXPECT_FALSE(device_->attach({&window, 1}).ok());
    EXPECT_EQ(window.host, nullptr);
    inject::disarm_all();
    EXPECT_TRUE(device_->attach({&window, 1}).ok());
    device_->detach(window, window.range);
    munmap(more, 4 * kPageBytes);
  }
}

void write_line(const uhmm_kernel_item*, void*) { std::printf("a kernel prints\n"); }

TEST_P(SoftDevice, OutputOfKernelsAppearsAndOutputOfTheProgramAppearsOnce) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  std::fflush(stdout);
  const int saved = dup(1);
  dup2(pipe_ends[1], 1);
  std::printf("pending");  // in the buffer while the device starts
  device_->close();
  window_.host = nullptr;
  const Status opened = device_->open();
  const Status ran = opened.ok() ? run(write_line, {}) : opened;
  std::fflush(stdout);
  dup2(saved, 1);
  close(saved);
  device_->close();
  close(pipe_ends[1]);
  ASSERT_TRUE(ran.ok()) << last_detail();
  std::string text(200, '\0');
  std::size_t length = 0;
  for (ssize_t got; (got = read(pipe_ends[0], text.data() + length, text.size() - length)) > 0;)
    length += static_cast<std::size_t>(got);
  close(pipe_ends[0]);
  text.resize(length);
  EXPECT_NE(text.find("a kernel prints\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("pending"), text.rfind("pending")) << text;
}

const auto kSoft = testing::Values(DeviceFactory{"soft", [] { return create_soft(); }, soft::destroy});
INSTANTIATE_TEST_SUITE_P(Soft, DeviceConformance, kSoft, test_name);
INSTANTIATE_TEST_SUITE_P(Soft, FaultingDeviceConformance, kSoft, test_name);
INSTANTIATE_TEST_SUITE_P(Soft, SoftDevice, kSoft, test_name);

// Kernels before 6.6, where a page can't be poisoned: its mapping goes.
const auto kOld = testing::Values(DeviceFactory{"old_kernel", [] { return create_soft(0, 0, false); }, soft::destroy});
class OldKernel : public SoftDevice {};
void read_word(const uhmm_kernel_item*, void* raw) {
  (void)*static_cast<volatile std::uint64_t*>(static_cast<const KernelArgs*>(raw)->data);
}
INSTANTIATE_TEST_SUITE_P(Soft, OldKernel, kOld, test_name);

TEST_P(OldKernel, PoisonEndsAKernelThatSleepsInAFaultThere) {
  auto sleeper = launch(read_word, {words(4), 0, 0});
  ASSERT_TRUE(sleeper.ok()) << last_detail();
  pollfd faults{device_->fault_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&faults, 1, -1), 1);
  ASSERT_TRUE(device_->poison(pages(4, 1)).ok()) << last_detail();
  EXPECT_EQ(device_->wait(*sleeper).code(), UHMM_ERR_KERNEL_FAILED);
  const std::string reason = death();
  EXPECT_NE(reason.find("SIGSEGV"), std::string::npos) << reason;

  // Started anew it has the page again.
  device_->close();
  ASSERT_TRUE(device_->open().ok()) << last_detail();
  attach();
  fill(4, 1, 3, MapAccess::ReadWrite);
  EXPECT_TRUE(run(read_word, {words(4), 0, 0}).ok()) << last_detail();
}

// Runs `helper` in a forked process that owns a device, and returns that device's process id.
template <typename Helper>
std::int64_t device_of_helper(pid_t* helper_pid, Helper&& helper) {
  int ends[2];
  if (pipe(ends) != 0) return -1;
  *helper_pid = fork();
  if (*helper_pid == 0) {
    close(ends[0]);
    backend::Device* device = create_soft();
    std::int64_t process = -1;
    if (device->open().ok()) process = device->capabilities().process_id;
    if (write(ends[1], &process, sizeof(process)) != sizeof(process)) _exit(1);
    helper(device);
    for (;;) pause();
  }
  close(ends[1]);
  std::int64_t process = -1;
  if (read(ends[0], &process, sizeof(process)) != sizeof(process)) process = -1;
  close(ends[0]);
  return process;
}

TEST(SoftDeviceProcess, EndsWhenTheProgramIsKilled) {
  pid_t helper = -1;
  const auto process = device_of_helper(&helper, [](backend::Device*) {});
  ASSERT_GT(process, 0);
  EXPECT_FALSE(process_gone(process));
  kill(helper, SIGKILL);
  waitpid(helper, nullptr, 0);
  EXPECT_TRUE(gone_within(process, 10));
}

TEST(SoftDeviceProcess, EndsWhenTheProgramBecomesAnotherOne) {
  pid_t helper = -1;
  const auto process = device_of_helper(
      &helper, [](backend::Device*) { execl("/bin/sleep", "sleep", "60", static_cast<char*>(nullptr)); });
  ASSERT_GT(process, 0);
  EXPECT_TRUE(gone_within(process, 10));
  kill(helper, SIGKILL);
  waitpid(helper, nullptr, 0);
}

TEST(SoftDeviceProcess, SurvivesAForkedChildThatForgetsTheDevice) {
  backend::Device* device = create_soft();
  ASSERT_TRUE(device->open().ok()) << last_detail();
  const pid_t child = fork();
  if (child == 0) {
    device->abandon_after_fork();
    device->close();
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  usleep(20000);
  EXPECT_FALSE(process_gone(device->capabilities().process_id));
  EXPECT_TRUE(device->check_kernel(write_line).ok()) << last_detail();
  soft::destroy(device);
}

void use_heap(const uhmm_kernel_item*, void* raw) {
  // What kernels must not do in a real program; here it shows that the process was copied in a consistent state.
  for (std::size_t bytes = 16; bytes < 200000; bytes *= 3) {
    auto* memory = static_cast<volatile char*>(std::malloc(bytes));
    memory[0] = 1;
    std::free(const_cast<char*>(memory));
  }
  std::snprintf(static_cast<char*>(raw), 16, "%s", "done");
}

// A copy of the process that waits for ever, as one does whose allocator was in use at that moment.
std::atomic<int> copies_that_hang{0};
bool this_copy_hangs = false;
const int kForkHandlers = pthread_atfork([] { this_copy_hangs = copies_that_hang.fetch_sub(1) > 0; }, nullptr,
                                         [] {
                                           while (this_copy_hangs) pause();
                                         });

TEST(SoftDeviceProcess, ACopyThatHangsIsFollowedByAnother) {
  ASSERT_EQ(kForkHandlers, 0);
  copies_that_hang = 1;
  backend::Device* device = create_soft();
  EXPECT_TRUE(device->open().ok()) << last_detail();
  EXPECT_LT(copies_that_hang, 0) << "more than one was made";
  soft::destroy(device);
}

TEST(SoftDeviceProcess, StartsWhileOtherThreadsUseTheHeap) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "GCC 12's AddressSanitizer does not lock its allocator around fork()";
#endif
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      while (!stop) {
        std::vector<std::string> strings;
        for (int n = 0; n < 50; ++n) strings.emplace_back(static_cast<std::size_t>(n * 37 + 1), 'x');
      }
    });
  for (int round = 0; round < 10; ++round) {
    backend::Device* device = create_soft();
    ASSERT_TRUE(device->open().ok()) << last_detail();
    char args[16] = {};
    backend::Launch launch;
    launch.kernel = use_heap;
    launch.args = args;
    launch.args_bytes = sizeof(args);
    auto ticket = device->launch(launch);
    ASSERT_TRUE(ticket.ok()) << last_detail();
    EXPECT_TRUE(device->wait(*ticket).ok()) << last_detail();
    soft::destroy(device);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
}

TEST(SoftDeviceProcess, LimitOnFileSizeIsAClearError) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    backend::Device* device = create_soft();
    const Status status = device->open();
    _exit(status.code() == UHMM_ERR_NOT_SUPPORTED && std::strstr(last_detail(), "ulimit") != nullptr ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(SoftDeviceProcess, TwoDevicesDoNotSeeEachOthersMemory) {
  backend::Device* first = create_soft();
  backend::Device* second = create_soft();
  ASSERT_TRUE(first->open().ok() && second->open().ok()) << last_detail();
  const auto second_files = open_files(second->capabilities().process_id);
  EXPECT_EQ(std::count_if(second_files.begin(), second_files.end(),
                          [](const auto& file) { return file.find("memfd") != std::string::npos; }),
            1);
  std::ifstream maps("/proc/" + std::to_string(second->capabilities().process_id) + "/maps");
  std::stringstream text;
  text << maps.rdbuf();
  EXPECT_EQ(text.str().find("memfd:uhmm"), std::string::npos);
  soft::destroy(first);
  soft::destroy(second);
}

TEST(SoftDeviceLink, CopiesTakeAtLeastWhatTheModelSays) {
  backend::Device* device = create_soft(20'000'000, 100'000'000);
  ASSERT_TRUE(device->open().ok()) << last_detail();
  void* memory = mmap(nullptr, kBlockBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  backend::Window window{{VirtAddr{memory}, VirtAddr{memory} + kBlockBytes}, nullptr};
  ASSERT_TRUE(device->attach({&window, 1}).ok()) << last_detail();
  std::vector<std::byte> data(kBlockBytes);
  const auto timed = [](auto&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  };
  const ByteRange page{window.range.begin, window.range.begin + kPageBytes};
  EXPECT_GE(timed([&] { EXPECT_TRUE(device->copy_in(window, page, data.data()).ok()); }), 20.0);
  EXPECT_GE(timed([&] { EXPECT_TRUE(device->copy_out(window, page, data.data()).ok()); }), 20.0);
  EXPECT_GE(timed([&] { EXPECT_TRUE(device->copy_in(window, window.range, data.data()).ok()); }), 40.0);
  EXPECT_GE(timed([&] { device->charge_link(kBlockBytes); }), 40.0);
  device->detach(window, window.range);
  soft::destroy(device);
  munmap(memory, kBlockBytes);
}

}  // namespace
}  // namespace uhmm::test
