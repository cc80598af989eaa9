// SPDX-License-Identifier: Apache-2.0
// Mirror devices: what the kernel's own suite does not look at. Errors, several opens, forks, ends.
#include "preload/dmirror/dmirror.hpp"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "preload/dmirror/mirror.hpp"
#include "preload/managed.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

namespace dmirror = preload::dmirror;
using dmirror::Command;

constexpr unsigned kRead = 0, kWrite = 1, kToDevice = 2, kToSystem = 3, kSnapshot = 4, kExclusive = 5,
                   kCheckExclusive = 6, kRelease = 7;

class Dmirror : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("UHMM_DMIRROR", "1", 1); }
  // A program need not; a leak checker stumbles over what is away.
  static void TearDownTestSuite() { (void)uhmm_shutdown(); }
  void SetUp() override {
    memory_ = map(kPages * kPage);
    fill(memory_, kPages * kPage, 1);
    buffer_.resize(kPages * kPage);
  }
  void TearDown() override {
    for (const int fd : fds_) dmirror::close(fd);
    forget(memory_, kPages * kPage);
    munmap(memory_, kPages * kPage);
  }
  static std::byte* map(std::size_t bytes, int protection = PROT_READ | PROT_WRITE) {
    void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    return static_cast<std::byte*>(memory);
  }
  // What the interposed munmap() does.
  static void forget(std::byte* memory, std::size_t bytes) {
    (void)uhmm_forget(memory, bytes);
    preload::unmanage({VirtAddr{memory}, VirtAddr{memory + bytes}});
  }
  int open(int unit) {
    const std::string path = "/dev/hmm_dmirror" + std::to_string(unit);
    const std::optional<int> fd = dmirror::open(path.c_str(), O_RDWR);
    EXPECT_TRUE(fd.has_value() && *fd >= 0) << path << ": " << std::strerror(errno);
    fds_.push_back(fd.value_or(-1));
    return fds_.back();
  }
  void close(int fd) {
    EXPECT_EQ(dmirror::close(fd), 0);
    std::erase(fds_, fd);
  }
  // 0, or the errno.
  static int control(int fd, unsigned number, Command& command) {
    const std::optional<int> done = dmirror::control(fd, _IOWR('H', number, Command), &command);
    if (!done.has_value()) return -1;
    return *done == 0 ? 0 : errno;
  }
  int run(int fd, unsigned number, const void* at, std::size_t pages, Command* out = nullptr) {
    Command command{reinterpret_cast<std::uint64_t>(at), reinterpret_cast<std::uint64_t>(buffer_.data()), pages, 0, 0};
    const int error = control(fd, number, command);
    if (out != nullptr) *out = command;
    return error;
  }
  std::vector<int> snapshot(int fd, const void* at, std::size_t pages) {
    EXPECT_EQ(run(fd, kSnapshot, at, pages), 0);
    std::vector<int> bytes;
    for (std::size_t i = 0; i < pages; ++i) bytes.push_back(std::to_integer<int>(buffer_[i]));
    return bytes;
  }

  static constexpr std::size_t kPages = 16;
  std::byte* memory_ = nullptr;
  std::vector<std::byte> buffer_;
  std::vector<int> fds_;
};

TEST_F(Dmirror, OnlyItsOwnPathsAndDescriptors) {
  for (const char* path : {"/dev/hmm_dmirror4", "/dev/hmm_dmirror", "/dev/hmm_dmirror00", "/dev/null", ""})
    EXPECT_FALSE(dmirror::open(path, O_RDWR).has_value()) << path;
  EXPECT_FALSE(dmirror::open(nullptr, O_RDWR).has_value());
  Command command{};
  EXPECT_EQ(control(-1, kRead, command), -1);
  EXPECT_EQ(control(0, kRead, command), -1);
  const int fd = open(0);
  const int stays = dup(fd);
  close(fd);
  EXPECT_EQ(control(fd, kRead, command), -1) << "a closed descriptor is the kernel's business";
  EXPECT_EQ(run(stays, kRead, memory_, 1), 0) << "a duplicate is as good";
  dmirror::close(stays);
}

TEST_F(Dmirror, BadArguments) {
  const int fd = open(0);
  EXPECT_EQ(run(fd, kRead, memory_ + 1, 1), EINVAL);
  EXPECT_EQ(run(fd, kRead, memory_, 0), EINVAL);
  EXPECT_EQ(run(fd, kRead, memory_, SIZE_MAX), EINVAL);
  EXPECT_EQ(run(fd, kRead, memory_, std::size_t{1} << 52), EINVAL);
  for (const unsigned number : {10u, 11u, 200u}) EXPECT_EQ(run(fd, number, memory_, 1), EINVAL) << number;
  const std::optional<int> wrong = dmirror::control(fd, _IOR('H', kRead, Command), buffer_.data());
  EXPECT_TRUE(wrong.has_value() && *wrong == -1 && errno == EINVAL);
  EXPECT_EQ(*dmirror::control(fd, _IOWR('H', kRead, Command), nullptr), -1);
  EXPECT_EQ(errno, EFAULT);
  // Data that can't be fetched or delivered.
  std::byte* const hole = map(kPage, PROT_NONE);
  Command command{reinterpret_cast<std::uint64_t>(memory_), reinterpret_cast<std::uint64_t>(hole), 1, 0, 0};
  for (const unsigned number : {kRead, kWrite, kSnapshot}) EXPECT_EQ(control(fd, number, command), EFAULT) << number;
  munmap(hole, kPage);
  EXPECT_EQ(first_wrong(memory_, kPages * kPage, 1), kPages * kPage);
}

TEST_F(Dmirror, MemoryThatIsNotThere) {
  const int fd = open(0);
  // Where the kernel puts nothing on its own, so that the hole stays one.
  void* const place = reinterpret_cast<void*>(0x7e90'0000'0000);
  auto* const area = static_cast<std::byte*>(
      mmap(place, 8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  ASSERT_EQ(area, place);
  munmap(area + 4 * kPage, kPage);
  ASSERT_EQ(mprotect(area + 6 * kPage, kPage, PROT_NONE), 0);
  ASSERT_EQ(mprotect(area + 7 * kPage, kPage, PROT_READ), 0);
  for (const std::size_t bad : {4u, 6u}) {
    const std::byte* at = area + (bad - 1) * kPage;
    EXPECT_EQ(run(fd, kRead, at, 2), EFAULT);
    EXPECT_EQ(run(fd, kWrite, at, 2), EFAULT);
    EXPECT_EQ(run(fd, kToDevice, at, 2), EINVAL);
    EXPECT_EQ(run(fd, kToSystem, at, 2), EINVAL);
    EXPECT_EQ(run(fd, kExclusive, at, 2), EBUSY);
    EXPECT_EQ(run(fd, kCheckExclusive, at, 2), 0);
    EXPECT_EQ(snapshot(fd, at, 2)[1], 0xff);
  }
  EXPECT_EQ(run(fd, kWrite, area + 7 * kPage, 1), EPERM);
  EXPECT_EQ(run(fd, kExclusive, area + 7 * kPage, 1), EBUSY);
  EXPECT_EQ(run(fd, kRead, area + 7 * kPage, 1), 0);
  // More than there is.
  EXPECT_NE(run(fd, kRead, memory_, std::size_t{1} << 34), 0);
  forget(area, 8 * kPage);
  munmap(area, 8 * kPage);
}

// More pages than anybody has memory for: every command ends where the memory does, and takes no more of its own.
TEST_F(Dmirror, HugeCounts) {
  const int fd = open(0);
  void* const place = reinterpret_cast<void*>(0x7e91'0000'0000);
  auto* const area = static_cast<std::byte*>(
      mmap(place, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  ASSERT_EQ(area, place);
  fill(area, 4 * kPage, 1);
  // What is delivered ends at a page that is not there.
  std::byte* const data = map(64 * kPage);
  ASSERT_EQ(mprotect(data + 63 * kPage, kPage, PROT_NONE), 0);
  struct Expected {
    unsigned number;
    int error;
  };
  for (const Expected& one : {Expected{kRead, EFAULT}, Expected{kWrite, EFAULT}, Expected{kToDevice, EINVAL},
                              Expected{kToSystem, EINVAL}, Expected{kSnapshot, EFAULT}, Expected{kExclusive, EBUSY},
                              Expected{kCheckExclusive, 0}, Expected{kRelease, 0}}) {
    for (const int bits : {30, 34, 50}) {
      SCOPED_TRACE(std::to_string(one.number) + ", 2^" + std::to_string(bits));
      Command command{reinterpret_cast<std::uint64_t>(area), reinterpret_cast<std::uint64_t>(data),
                      std::uint64_t{1} << bits, 0, 0};
      EXPECT_EQ(control(fd, one.number, command), one.error);
    }
  }
  rusage usage{};
  ASSERT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(usage.ru_maxrss, 512 << 10) << "KiB; a byte for each of 2^30 pages would be twice that";
#endif
  EXPECT_EQ(first_wrong(area, 4 * kPage, 1), 4 * kPage);
  forget(area, 4 * kPage);
  munmap(area, 4 * kPage);
  munmap(data, 64 * kPage);
}

// A command of more than one piece counts what all of them did.
TEST_F(Dmirror, CommandsOfSeveralPieces) {
  constexpr std::size_t kMany = dmirror::kMostPagesAtOnce + 100;
  const int fd = open(0);
  std::byte* const area = map(kMany * kPage);
  buffer_.resize(kMany * kPage);
  fill(area, kMany * kPage, 3);
  Command command{};
  EXPECT_EQ(run(fd, kRead, area, kMany, &command), 0);
  EXPECT_EQ(command.cpages, kMany);
  EXPECT_EQ(first_wrong(buffer_.data(), kMany * kPage, 3), kMany * kPage);
  fill(buffer_.data(), kMany * kPage, 4);
  EXPECT_EQ(run(fd, kWrite, area, kMany, &command), 0);
  EXPECT_EQ(command.cpages, kMany);
  EXPECT_EQ(snapshot(fd, area, kMany), std::vector<int>(kMany, 0x22));
  EXPECT_EQ(run(fd, kToSystem, area, kMany, &command), 0);
  EXPECT_EQ(command.cpages, kMany);
  EXPECT_EQ(first_wrong(area, kMany * kPage, 4), kMany * kPage);
  forget(area, kMany * kPage);
  munmap(area, kMany * kPage);
}

// The vdso is nothing that can migrate; nor are holes beside it.
TEST_F(Dmirror, TheKernelsOwnMappingsStay) {
  const int fd = open(0);
  const auto vdso = getauxval(AT_SYSINFO_EHDR);
  if (vdso == 0) GTEST_SKIP() << "no vdso here";
  const void* const at = reinterpret_cast<const void*>(vdso);
  EXPECT_EQ(run(fd, kToDevice, at, 1), EINVAL);
  EXPECT_EQ(run(fd, kToSystem, at, 1), EINVAL);
  EXPECT_EQ(run(fd, kExclusive, at, 1), EBUSY);
  EXPECT_EQ(run(fd, kWrite, at, 1), EPERM);
}

// Reserved huge pages are mirrored where they are, seen as such, and never migrated.
TEST_F(Dmirror, ReservedHugePages) {
  const int fd = open(0);
  void* const made = mmap(nullptr, kBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (made == MAP_FAILED) GTEST_SKIP() << "no huge page is reserved (vm.nr_hugepages)";
  auto* const huge = static_cast<std::byte*>(made);
  fill(huge, kBlock, 1);
  EXPECT_EQ(run(fd, kToDevice, huge, 1), EINVAL);
  EXPECT_EQ(run(fd, kToSystem, huge, 1), EINVAL);
  EXPECT_EQ(snapshot(fd, huge, 4), std::vector<int>(4, 0x06)) << "writable, by an entry of 2 MiB";
  EXPECT_EQ(run(fd, kRead, huge, 4), 0);
  EXPECT_EQ(first_wrong(buffer_.data(), 4 * kPage, 1), 4 * kPage);
  fill(buffer_.data(), 4 * kPage, 2);
  EXPECT_EQ(run(fd, kWrite, huge, 4), 0);
  EXPECT_EQ(first_wrong(huge, 4 * kPage, 2), 4 * kPage) << "in place";
  ASSERT_EQ(munmap(huge, kBlock), 0);
  preload::map_changes();
  EXPECT_EQ(run(fd, kRead, huge, 1), EFAULT);
}

// As in the kernel, where the device's memory is everybody's who has it open: a close brings all of it home.
TEST_F(Dmirror, TwoOpensOfOneDevice) {
  const int fd = open(0);
  const int other = open(0);
  EXPECT_EQ(run(fd, kToDevice, memory_, 4), 0);
  EXPECT_EQ(run(other, kToDevice, memory_ + 8 * kPage, 4), 0);
  EXPECT_EQ(snapshot(other, memory_, 1)[0], 0x22) << "it is the same device";
  close(other);
  EXPECT_EQ(snapshot(fd, memory_, 1)[0], 0x02);
  EXPECT_EQ(snapshot(fd, memory_ + 8 * kPage, 1)[0], 0x02);
  EXPECT_EQ(run(fd, kToDevice, memory_, 16), 0) << "the other open works on";
  EXPECT_EQ(snapshot(fd, memory_, 16), std::vector<int>(16, 0x22));
  EXPECT_EQ(first_wrong(memory_, kPages * kPage, 1), kPages * kPage);
}

TEST_F(Dmirror, SharedMemoryIsMirroredWhereItIs) {
  const int fd = open(0);
  auto* shared =
      static_cast<std::byte*>(mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  fill(shared, 4 * kPage, 2);
  EXPECT_EQ(run(fd, kToDevice, shared, 4), ENOENT);
  Command command;
  EXPECT_EQ(run(fd, kRead, shared, 4, &command), 0);
  EXPECT_EQ(command.cpages, 4u);
  EXPECT_EQ(command.faults, 1u);
  EXPECT_EQ(first_wrong(buffer_.data(), 4 * kPage, 2), 4 * kPage);
  EXPECT_EQ(run(fd, kRead, shared, 4, &command), 0);
  EXPECT_EQ(command.faults, 0u) << "the device has it mapped";
  EXPECT_EQ(run(fd, kWrite, shared, 4, &command), 0);
  EXPECT_EQ(command.faults, 1u) << "for reading only";
  EXPECT_EQ(run(fd, kExclusive, shared, 4), EBUSY);
  preload::map_changes();
  EXPECT_EQ(run(fd, kRead, shared, 4, &command), 0);
  EXPECT_EQ(command.faults, 1u) << "the map may have changed";
  munmap(shared, 4 * kPage);
}

TEST_F(Dmirror, FaultsAreCountedByRuns) {
  const int fd = open(0);
  EXPECT_EQ(run(fd, kToDevice, memory_ + 2 * kPage, 3), 0);
  EXPECT_EQ(run(fd, kToDevice, memory_ + 8 * kPage, 1), 0);
  Command command;
  EXPECT_EQ(run(fd, kRead, memory_, kPages, &command), 0);
  EXPECT_EQ(command.faults, 3u);
  EXPECT_EQ(command.cpages, kPages);
  EXPECT_EQ(first_wrong(buffer_.data(), kPages * kPage, 1), kPages * kPage);
}

TEST_F(Dmirror, TheLastCloseBringsEverythingHome) {
  const int fd = open(0);
  const int other = open(1);
  EXPECT_EQ(run(fd, kToDevice, memory_, 4), 0);
  EXPECT_EQ(run(other, kToDevice, memory_ + 4 * kPage, 4), 0);
  const int again = dup(fd);
  close(fd);
  EXPECT_EQ(pages_in_state(memory_, 8 * kPage, UHMM_PAGE_DEVICE), 8u) << "a duplicate is left";
  dmirror::close(again);
  EXPECT_EQ(pages_in_state(memory_, 4 * kPage, UHMM_PAGE_DEVICE), 0u);
  EXPECT_EQ(pages_in_state(memory_ + 4 * kPage, 4 * kPage, UHMM_PAGE_DEVICE), 4u) << "of another device";
  EXPECT_EQ(run(other, kRelease, memory_, 1), 0);
  EXPECT_EQ(pages_in_state(memory_, 8 * kPage, UHMM_PAGE_DEVICE), 0u);
  EXPECT_EQ(first_wrong(memory_, kPages * kPage, 1), kPages * kPage);
}

TEST_F(Dmirror, PagesOnOtherDevicesStayThere) {
  const int fd = open(0);
  const int other = open(1);
  const int coherent = open(2);
  fill(memory_, kPages * kPage, 1);  // the devices' processes have copies of what was there when they began
  EXPECT_EQ(run(other, kToDevice, memory_, 2), 0);
  EXPECT_EQ(run(coherent, kToDevice, memory_ + 2 * kPage, 2), 0);
  EXPECT_EQ(run(fd, kToDevice, memory_, 1), ENOENT);
  EXPECT_EQ(run(fd, kToDevice, memory_ + 2 * kPage, 1), ENOENT);
  EXPECT_EQ(snapshot(fd, memory_, 5), (std::vector<int>{0, 0, 0x52, 0x52, 2}));
  EXPECT_EQ(snapshot(other, memory_, 2), (std::vector<int>{0x22, 0x22}));
  Command command;
  EXPECT_EQ(run(fd, kToSystem, memory_, kPages, &command), 0);
  EXPECT_EQ(command.cpages, 0u);
  EXPECT_EQ(run(coherent, kToSystem, memory_, kPages, &command), 0);
  EXPECT_EQ(command.cpages, 2u);
  EXPECT_EQ(run(other, kExclusive, memory_ + 8 * kPage, 2), 0);
  EXPECT_EQ(run(other, kCheckExclusive, memory_, kPages), EPERM);
  EXPECT_EQ(run(fd, kCheckExclusive, memory_, kPages), 0);
  EXPECT_EQ(snapshot(other, memory_ + 8 * kPage, 1)[0], 0);
  EXPECT_EQ(first_wrong(memory_, kPages * kPage, 1), kPages * kPage);
  EXPECT_EQ(run(other, kCheckExclusive, memory_, kPages), 0);
}

TEST_F(Dmirror, HugePagesAreToldOfAsSuch) {
  const int fd = open(0);  // first: its process begins with a copy of everything
  std::byte* const area = map(2 * kBlock);
  auto* const block =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(area) + kBlock - 1) & ~(kBlock - 1));
  if (madvise(block, kBlock, MADV_HUGEPAGE) != 0) GTEST_SKIP() << "no transparent huge pages";
  block[0] = std::byte{1};
  std::vector<std::byte> states(kBlock / kPage);
  Command command{reinterpret_cast<std::uint64_t>(block), reinterpret_cast<std::uint64_t>(states.data()), states.size(),
                  0, 0};
  ASSERT_EQ(control(fd, kSnapshot, command), 0);
  if (states[0] == std::byte{2}) GTEST_SKIP() << "the kernel had no huge page, or can't tell (6.7)";
  for (const std::byte state : states) EXPECT_EQ(state, std::byte{6}) << "write, PMD";
  munmap(area, 2 * kBlock);
}

// A descriptor stands for the memory of who opened it, also in a child.
TEST_F(Dmirror, AChildReachesItsParentsMemoryByItsParentsDescriptor) {
  const int fd = open(0);
  EXPECT_EQ(run(fd, kToDevice, memory_, 4), 0);
  const pid_t child = fork();
  if (child == 0) {
    fill(memory_, kPages * kPage, 9);  // its own copy
    int wrong = run(fd, kRead, memory_, kPages) == 0 ? 0 : 1;
    wrong |= first_wrong(buffer_.data(), kPages * kPage, 1) == kPages * kPage ? 0 : 2;
    fill(buffer_.data(), buffer_.size(), 5);
    wrong |= run(fd, kWrite, memory_, 2) == 0 ? 0 : 4;
    wrong |= first_wrong(memory_, kPages * kPage, 9) == kPages * kPage ? 0 : 8;
    wrong |= run(fd, kWrite, memory_, 0) == EINVAL ? 0 : 16;
    // And its own by its own.
    const int own = open(1);
    wrong |= run(own, kToDevice, memory_, kPages) == 0 ? 0 : 32;
    wrong |= first_wrong(buffer_.data(), kPages * kPage, 9) == kPages * kPage ? 0 : 64;
    _exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(first_wrong(memory_, 2 * kPage, 5), 2 * kPage);
  for (std::size_t i = 2 * kPage; i < kPages * kPage; ++i) ASSERT_EQ(memory_[i], pattern(1, i));
  EXPECT_EQ(run(fd, kRead, memory_, kPages), 0) << "the child's end is not the parent's";
}

// Which of the two is opened first decides whose fork handlers come first.
TEST_F(Dmirror, AForkAfterTheKernelsTestFileWasOpened) {
  const std::optional<int> pins = dmirror::open("/sys/kernel/debug/gup_test", O_RDWR);
  ASSERT_TRUE(pins.has_value() && *pins >= 0);
  const int fd = open(0);
  EXPECT_EQ(run(fd, kToDevice, memory_, kPages), 0);
  const pid_t child = fork();
  if (child == 0) _exit(first_wrong(memory_, kPages * kPage, 1) == kPages * kPage ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  dmirror::close(*pins);
}

// A device is started by fork() too, while other threads of the program register memory.
TEST_F(Dmirror, DevicesBeginBesideThreadsThatUseOthers) {
  const int fd = open(0);
  std::atomic<bool> end{false};
  std::thread other([&] {
    std::vector<std::byte> data(kPage);
    while (!end) {
      std::byte* const area = map(4 * kPage);
      Command command{reinterpret_cast<std::uint64_t>(area), reinterpret_cast<std::uint64_t>(data.data()), 1, 0, 0};
      EXPECT_EQ(control(fd, kWrite, command), 0);
      forget(area, 4 * kPage);
      munmap(area, 4 * kPage);
    }
  });
  for (const int unit : {1, 2, 3}) {
    const int own = open(unit);
    EXPECT_EQ(run(own, kRead, memory_, kPages), 0);
  }
  end = true;
  other.join();
}

TEST_F(Dmirror, AnOpenersEndIsAnErrorForItsChild) {
  int told[2];
  ASSERT_EQ(pipe(told), 0);
  const pid_t opener = fork();
  if (opener == 0) {
    const int fd = open(0);
    const pid_t self = getpid();
    if (fork() == 0) {
      while (getppid() == self) usleep(1000);
      int wrong = run(fd, kRead, memory_, 1) == EFAULT ? 0 : 1;
      wrong |= run(fd, kToDevice, memory_, 1) == EINVAL ? 0 : 2;
      (void)!write(told[1], &wrong, sizeof(wrong));
      _exit(0);
    }
    _exit(0);
  }
  ASSERT_EQ(waitpid(opener, nullptr, 0), opener);
  int wrong = -1;
  ASSERT_EQ(::read(told[0], &wrong, sizeof(wrong)), static_cast<ssize_t>(sizeof(wrong)));
  EXPECT_EQ(wrong, 0);
  ::close(told[0]);
  ::close(told[1]);
}

// Right data or an error, whatever other threads do to the map meanwhile.
TEST_F(Dmirror, MemoryThatEndsDuringAnAccess) {
  const int fd = open(0);
  for (int round = 0; round < 30; ++round) {
    std::byte* const area = map(64 * kPage);
    fill(area, 64 * kPage, 3);
    std::thread ending([&] {
      usleep(static_cast<useconds_t>(round * 20));
      mprotect(area + 32 * kPage, 32 * kPage, PROT_NONE);
      forget(area + 32 * kPage, 32 * kPage);
      munmap(area + 32 * kPage, 32 * kPage);
    });
    buffer_.assign(64 * kPage, std::byte{0});
    const int error = run(fd, round % 2 == 0 ? kRead : kToDevice, area, 64);
    if (error == 0)
      EXPECT_EQ(first_wrong(buffer_.data(), 64 * kPage, 3), 64 * kPage);
    else
      EXPECT_TRUE(error == EFAULT || error == EINVAL || error == ENOENT) << error;
    ending.join();
    EXPECT_EQ(first_wrong(area, 32 * kPage, 3), 32 * kPage);
    // The other half may be somebody else's by now.
    forget(area, 32 * kPage);
    munmap(area, 32 * kPage);
  }
}

}  // namespace
}  // namespace uhmm::test
