// SPDX-License-Identifier: Apache-2.0
// Memory that other processes may see: devices work on the program's own pages, so that everybody sees the same bytes.
#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "runtime/base/inject.hpp"
#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

// A file of `pages` pages that ends with this; in a file system, or shared memory without a name.
class File {
 public:
  enum class Kind { Ordinary, Named, Nameless };
  explicit File(Kind kind, std::size_t pages = 8) {
    if (kind == Kind::Nameless) {
      fd_ = memfd_create("uhmm-test", MFD_CLOEXEC);
    } else {
      // Not /tmp, which may be a tmpfs.
      path_ = kind == Kind::Named ? "/dev/shm/uhmm-test-XXXXXX" : "/var/tmp/uhmm-test-XXXXXX";
      fd_ = mkstemp(path_.data());
    }
    EXPECT_GE(fd_, 0) << path_;
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(pages * kPage)), 0);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    close(fd_);
    if (!path_.empty()) unlink(path_.c_str());
  }
  int fd() const { return fd_; }
  // What it holds, however it is mapped.
  bool holds(std::uint64_t seed, std::size_t bytes) const {
    std::vector<std::byte> all(bytes);
    return pread(fd_, all.data(), bytes, 0) == static_cast<ssize_t>(bytes) &&
           first_wrong(all.data(), bytes, seed) == bytes;
  }
  void fill_with(std::uint64_t seed, std::size_t bytes) const {
    std::vector<std::byte> all(bytes);
    fill(all.data(), bytes, seed);
    EXPECT_EQ(pwrite(fd_, all.data(), bytes, 0), static_cast<ssize_t>(bytes));
  }

 private:
  std::string path_;
  int fd_ = -1;
};

// Two processes that go step by step, by a word in memory that nobody manages.
class Steps {
 public:
  Steps() : memory_(kPage, false, MAP_SHARED | MAP_ANONYMOUS) {}
  void reach(std::uint32_t step) { word().store(step); }
  void await(std::uint32_t step) {
    while (word().load() < step) std::this_thread::yield();
  }

 private:
  std::atomic<std::uint32_t>& word() { return *memory_.as<std::atomic<std::uint32_t>>(); }
  Memory memory_;
};

// Every byte as a device reads it, without the CPU's help.
bool device_holds(const void* memory, std::size_t bytes, std::uint64_t seed) {
  std::vector<std::byte> all(bytes);
  UHMM_EXPECT_OK(uhmm_device_read(1, memory, all.data(), bytes, nullptr));
  return first_wrong(all.data(), bytes, seed) == bytes;
}

// Bytes that device memory really takes.
std::int64_t allocated_by_devices() {
  std::int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    struct stat facts {};
    if (target.find("memfd:uhmm-soft") != std::string::npos && stat(entry.path().c_str(), &facts) == 0)
      bytes += facts.st_blocks * 512;
  }
  return bytes;
}

class MirroredMemory : public RuntimeTest, public testing::WithParamInterface<Mode> {
 protected:
  static constexpr std::size_t kPages = 8;
  static constexpr std::size_t kBytes = kPages * kPage;

  bool starts_itself() const override { return false; }
  void SetUp() override {
    start_with([](uhmm_config& config) { config.flags |= GetParam().flags; });
  }
  void TearDown() override {
    inject::disarm_all();
    stop();
  }

  // Both processes write, one of them by its device, and see each other's bytes at once.
  void expect_one_memory_for_two(std::byte* data) {
    Steps steps;
    const pid_t child = fork();
    if (child == 0) {
      steps.await(1);
      if (first_wrong(data, kBytes, 2) != kBytes) _exit(1);
      fill(data, kBytes, 3);
      steps.reach(2);
      steps.await(3);
      _exit(first_wrong(data, kBytes, 4) == kBytes ? 0 : 2);
    }
    device_fill(data, kBytes, 2);
    steps.reach(1);
    steps.await(2);
    EXPECT_TRUE(device_holds(data, kBytes, 3)) << "what the child wrote";
    EXPECT_EQ(first_wrong(data, kBytes, 3), kBytes);
    device_fill(data, kBytes, 4);
    steps.reach(3);
    EXPECT_EQ(exit_code_of(child), 0);
    EXPECT_EQ(first_wrong(data, kBytes, 4), kBytes);
  }
};

TEST_P(MirroredMemory, AChildSeesSharedMemoryThatDevicesWrite) {
  Memory memory(kBytes, true, MAP_SHARED | MAP_ANONYMOUS);
  fill(memory.data(), kBytes, 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBytes, 1, nullptr));
  EXPECT_EQ(pages_in_state(memory.data(), kBytes, UHMM_PAGE_DEVICE), kPages) << "until there is a child it migrates";
  expect_one_memory_for_two(memory.data());
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_migrate(memory.data(), kBytes, 1, nullptr));
  EXPECT_EQ(stats().pages_on_devices, 0u);
  expect_one_memory_for_two(memory.data());
}

TEST_P(MirroredMemory, AChildSeesAMemoryFileThatDevicesWrite) {
  const File file(File::Kind::Nameless);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  device_fill(memory.data(), kBytes, 1);
  expect_one_memory_for_two(memory.data());
  EXPECT_TRUE(file.holds(4, kBytes));
}

TEST_P(MirroredMemory, AKernelGoesOnWhileTheProgramForks) {
  Memory memory(kBytes, true, MAP_SHARED | MAP_ANONYMOUS);
  auto* flag = memory.as<std::atomic<std::uint64_t>>();
  UHMM_ASSERT_OK(launch(stream_, wait_kernel, SpanArgs{nullptr, 0, 0, flag}));
  const pid_t child = fork();
  if (child == 0) {
    // The kernel of the parent's device waits for this.
    flag->store(1);
    _exit(0);
  }
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  EXPECT_EQ(exit_code_of(child), 0);
}

TEST_P(MirroredMemory, DeviceMemoryOfItIsFreeAgain) {
  Memory memory(kBytes, true, MAP_SHARED | MAP_ANONYMOUS);
  device_fill(memory.data(), kBytes, 1);
  EXPECT_GE(allocated_by_devices(), static_cast<std::int64_t>(kBytes));
  const pid_t child = fork();
  if (child == 0) _exit(0);
  EXPECT_EQ(exit_code_of(child), 0);
  EXPECT_EQ(allocated_by_devices(), 0);
  EXPECT_EQ(first_wrong(memory.data(), kBytes, 1), kBytes);
}

// Whoever may open the memory is not known: it is mirrored from the start.
TEST_P(MirroredMemory, NamedSharedMemoryNeverMigrates) {
  const File file(File::Kind::Named);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  Memory other(kBytes, false, MAP_SHARED, file.fd());
  fill(memory.data(), kBytes, 1);
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_migrate(memory.data(), kBytes, 1, nullptr));
  device_fill(memory.data(), kBytes, 2);
  EXPECT_EQ(first_wrong(other.data(), kBytes, 2), kBytes);
  fill(other.data(), kBytes, 3);
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 3));
  for (const uhmm_page_info& page : snapshot(memory.data(), kBytes)) {
    EXPECT_EQ(page.state, UHMM_PAGE_SYSTEM);
    EXPECT_EQ(page.devices, 0u);
    EXPECT_EQ(page.mapped, 1u);
  }
}

TEST_P(MirroredMemory, AnOrdinaryFile) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  EXPECT_EQ(device_count_wrong(memory.data(), kBytes, 1), 0u);
  device_fill(memory.data(), kBytes, 2);
  EXPECT_TRUE(file.holds(2, kBytes));
  file.fill_with(3, kBytes);
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 3));
  EXPECT_EQ(first_wrong(memory.data(), kBytes, 3), kBytes);
  expect_one_memory_for_two(memory.data());
  UHMM_EXPECT_OK(uhmm_unregister(memory.data()));
  EXPECT_TRUE(file.holds(4, kBytes));
}

TEST_P(MirroredMemory, AFileThatMayOnlyBeRead) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  void* view = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file.fd(), 0);
  ASSERT_NE(view, MAP_FAILED);
  UHMM_ASSERT_OK(uhmm_register(view, kBytes));
  EXPECT_TRUE(device_holds(view, kBytes, 1));
  for (const uhmm_page_info& page : snapshot(view, kBytes)) {
    EXPECT_EQ(page.mapped, 1u);
    EXPECT_EQ(page.device_write, 0u);
  }
  const char word = 0;
  EXPECT_NE(uhmm_device_write(1, view, &word, 1, nullptr), UHMM_OK);
  EXPECT_TRUE(file.holds(1, kBytes));
  UHMM_EXPECT_OK(uhmm_unregister(view));
  munmap(view, kBytes);
}

TEST_P(MirroredMemory, APartOfAFileFromTheMiddle) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  void* view = mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd(), 2 * kPage);
  ASSERT_NE(view, MAP_FAILED);
  auto* data = static_cast<std::byte*>(view);
  UHMM_ASSERT_OK(uhmm_register(data + kPage + 100, kPage));
  std::vector<std::byte> read(kPage);
  UHMM_ASSERT_OK(uhmm_device_read(1, data + kPage + 100, read.data(), kPage, nullptr));
  for (std::size_t i = 0; i < kPage; ++i) ASSERT_EQ(read[i], pattern(1, 3 * kPage + 100 + i)) << i;
  UHMM_EXPECT_OK(uhmm_unregister(data + kPage + 100));
  munmap(view, 4 * kPage);
}

// The program changes its map without telling anybody: devices follow before they work again.
TEST_P(MirroredMemory, AnotherFileInItsPlace) {
  const File file(File::Kind::Ordinary);
  const File other(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  other.fill_with(2, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  ASSERT_EQ(mmap(memory.data(), kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, other.fd(), 0), memory.data());
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 2));
  device_fill(memory.data(), kBytes, 5);
  EXPECT_TRUE(other.holds(5, kBytes));
  EXPECT_TRUE(file.holds(1, kBytes));
}

TEST_P(MirroredMemory, NothingInItsPlace) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  ASSERT_EQ(munmap(memory.page(2), 2 * kPage), 0);
  char word = 0;
  EXPECT_NE(uhmm_device_read(1, memory.page(2), &word, 1, nullptr), UHMM_OK);
  EXPECT_NE(uhmm_device_write(1, memory.page(3), &word, 1, nullptr), UHMM_OK);
  UHMM_EXPECT_OK(uhmm_device_read(1, memory.page(4), &word, 1, nullptr));
  EXPECT_EQ(static_cast<std::byte>(word), pattern(1, 4 * kPage));
  EXPECT_TRUE(file.holds(1, kBytes));
}

TEST_P(MirroredMemory, ProtectionIsFollowed) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  ASSERT_EQ(mprotect(memory.page(1), kPage, PROT_READ), 0);
  UHMM_ASSERT_OK(uhmm_revoke(memory.page(1), kPage));
  const char word = 0;
  EXPECT_NE(uhmm_device_write(1, memory.page(1), &word, 1, nullptr), UHMM_OK);
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  ASSERT_EQ(mprotect(memory.page(1), kPage, PROT_NONE), 0);
  char read = 0;
  EXPECT_NE(uhmm_device_read(1, memory.page(1), &read, 1, nullptr), UHMM_OK);
  ASSERT_EQ(mprotect(memory.page(1), kPage, PROT_READ | PROT_WRITE), 0);
  UHMM_EXPECT_OK(uhmm_device_write(1, memory.page(1), &word, 1, nullptr));
  EXPECT_EQ(memory.page(1)[0], std::byte{0});
}

TEST_P(MirroredMemory, WhatOneMayNotDoWithIt) {
  const File file(File::Kind::Named);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  std::uint64_t pages = 0;
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_make_exclusive(memory.data(), kBytes, 1, &pages));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_discard(memory.data(), kBytes));
  EXPECT_TRUE(file.holds(1, kBytes));
  // Within a device's reach it is all the time.
  for (const uhmm_access access : {UHMM_ACCESS_READ, UHMM_ACCESS_WRITE, UHMM_ACCESS_READ_WRITE}) {
    UHMM_EXPECT_OK(uhmm_acquire(memory.data(), kBytes, 1, access));
    UHMM_EXPECT_OK(uhmm_release(memory.data(), kBytes, 1, access));
  }
  EXPECT_TRUE(file.holds(1, kBytes));
}

TEST_P(MirroredMemory, PartsOfARangeEnd) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  UHMM_ASSERT_OK(uhmm_forget(memory.page(2), 3 * kPage));
  EXPECT_TRUE(file.holds(1, kBytes)) << "a mirror ends, not the memory";
  char word = 0;
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_device_read(1, memory.page(2), &word, 1, nullptr));
  for (const std::size_t page : {1, 5, 7}) {
    UHMM_EXPECT_OK(uhmm_device_read(1, memory.page(page), &word, 1, nullptr));
    EXPECT_EQ(static_cast<std::byte>(word), pattern(1, page * kPage));
  }
  UHMM_EXPECT_OK(uhmm_unregister(memory.page(5)));
}

TEST_P(MirroredMemory, OutlivesADevice) {
  const File file(File::Kind::Ordinary);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  device_fill(memory.data(), kBytes, 1);
  ASSERT_EQ(kill(static_cast<pid_t>(device_info().process_id), SIGKILL), 0);
  while ((device_info().flags & UHMM_DEVICE_IS_LOST) == 0) std::this_thread::yield();
  EXPECT_EQ(first_wrong(memory.data(), kBytes, 1), kBytes) << "nothing of it was there";
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1));
  UHMM_EXPECT_OK(uhmm_device_write(1, memory.data(), "x", 1, nullptr));
  EXPECT_EQ(memory.data()[0], std::byte{'x'});
}

TEST_P(MirroredMemory, ADeviceThatCannotReachItSaysSo) {
  const File file(File::Kind::Ordinary);
  file.fill_with(1, kBytes);
  Memory memory(kBytes, true, MAP_SHARED, file.fd());
  inject::arm(inject::Point::DeviceMirror, 1);
  char word = 0;
  EXPECT_NE(uhmm_device_read(1, memory.data(), &word, 1, nullptr), UHMM_OK);
  EXPECT_NE(std::string(uhmm_error_detail()).find("DeviceMirror"), std::string::npos) << uhmm_error_detail();
  EXPECT_TRUE(device_holds(memory.data(), kBytes, 1)) << "the next time it can";
  // At a fork: rather nothing than what was there before.
  Memory shared(kBytes, true, MAP_SHARED | MAP_ANONYMOUS);
  device_fill(shared.data(), kBytes, 2);
  inject::arm(inject::Point::DeviceMirror, 1);
  const pid_t child = fork();
  if (child == 0) {
    fill(shared.data(), kBytes, 3);
    _exit(0);
  }
  EXPECT_EQ(exit_code_of(child), 0);
  EXPECT_TRUE(device_holds(shared.data(), kBytes, 3)) << "its mapping is made again before it works";
}

// A process that may not open what is mapped, unless it has a descriptor of it.
TEST_P(MirroredMemory, WithoutPrivilege) {
  const pid_t program = fork();
  if (program == 0) {
    constexpr uid_t kNobody = 65534;
    const File file(File::Kind::Nameless);
    if (setgroups(0, nullptr) != 0 || setresgid(kNobody, kNobody, kNobody) != 0 ||
        setresuid(kNobody, kNobody, kNobody) != 0)
      _exit(0);
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    uhmm_config config = test_config();
    config.flags |= GetParam().flags;
    if (uhmm_init(&config) != UHMM_OK) _exit(0);  // no userfaultfd for such a process here
    Memory memory(kBytes, true, MAP_SHARED, file.fd());
    const std::vector<std::byte> bytes(kBytes, std::byte{7});
    std::vector<std::byte> read(kBytes);
    if (uhmm_device_write(1, memory.data(), bytes.data(), kBytes, nullptr) != UHMM_OK) _exit(2);
    Steps steps;
    const pid_t child = fork();
    if (child == 0) {
      const bool good = memory.data()[kBytes - 1] == std::byte{7};
      memory.data()[0] = std::byte{8};
      steps.reach(1);
      steps.await(2);
      _exit(good && memory.data()[1] == std::byte{9} ? 0 : 1);
    }
    steps.await(1);
    if (uhmm_device_read(1, memory.data(), read.data(), kBytes, nullptr) != UHMM_OK) _exit(3);
    if (read[0] != std::byte{8}) _exit(4);
    const std::byte nine{9};
    if (uhmm_device_write(1, memory.data() + 1, &nine, 1, nullptr) != UHMM_OK) _exit(5);
    steps.reach(2);
    _exit(exit_code_of(child) == 0 ? 0 : 6);
  }
  EXPECT_EQ(exit_code_of(program), 0);
}

INSTANTIATE_TEST_SUITE_P(Modes, MirroredMemory,
                         testing::Values(Mode{"Copy", 0}, Mode{"Coherent", UHMM_CONFIG_COHERENT}),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace uhmm::test
