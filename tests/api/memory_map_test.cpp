// SPDX-License-Identifier: Apache-2.0
// What the program does to the memory map of managed memory: locks, protections. Contents stay, whatever it is.
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <optional>

#include "runtime/engine/patience.hpp"
#include "runtime/os/userfaultfd.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class MemoryMap : public RuntimeTest {
 protected:
  // Both ways of taking private memory, and shared memory.
  void for_each_kind(const std::function<void(Memory&)>& body) {
    for (const std::uint32_t no_move : {0u, UHMM_CONFIG_NO_MOVE}) {
      for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
        SCOPED_TRACE(std::string(sharing == MAP_PRIVATE ? "private" : "shared") + (no_move != 0 ? ", no MOVE" : ""));
        start_with([&](uhmm_config& config) { config.flags |= no_move; });
        Memory memory(64 * kPage, true, sharing | MAP_ANONYMOUS);
        fill(memory.data(), memory.bytes(), 1);
        body(memory);
      }
    }
  }
  void to_device(Memory& memory) { UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr)); }
  void to_system(Memory& memory) { UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr)); }
  static std::size_t on_device(const Memory& memory) {
    return pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE);
  }
};

TEST_F(MemoryMap, LockedMemoryMigrates) {
  for_each_kind([&](Memory& memory) {
    ASSERT_EQ(mlock(memory.data(), memory.bytes()), 0);
    to_device(memory);
    EXPECT_EQ(on_device(memory), memory.pages());
    device_increment(memory.data(), memory.bytes());
    for (std::size_t i = 0; i < memory.bytes(); ++i)
      ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
    fill(memory.data(), memory.bytes(), 3);
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 3), 0u);
    to_device(memory);
    to_system(memory);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 3), memory.bytes());
    to_device(memory);
    ASSERT_EQ(munlock(memory.data(), memory.bytes()), 0);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 3), memory.bytes());
  });
}

TEST_F(MemoryMap, LockedMemoryIsDiscarded) {
  for_each_kind([&](Memory& memory) {
    ASSERT_EQ(mlock(memory.data(), memory.bytes()), 0);
    UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
    for (std::size_t i = 0; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], std::byte{0}) << i;
  });
}

TEST_F(MemoryMap, LockedWhileOnTheDevice) {
  for_each_kind([&](Memory& memory) {
    to_device(memory);
    ASSERT_EQ(mlock2(memory.data(), memory.bytes(), MLOCK_ONFAULT), 0);
    to_system(memory);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    device_increment(memory.data(), memory.bytes());
    EXPECT_EQ(memory.data()[kPage], static_cast<std::byte>(std::to_integer<int>(pattern(1, kPage)) + 1));
  });
}

TEST_F(MemoryMap, ProtectedWhileOnTheDevice) {
  for_each_kind([&](Memory& memory) {
    to_device(memory);
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ), 0);
    to_system(memory);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ | PROT_WRITE), 0);
    fill(memory.data(), memory.bytes(), 2);
    to_device(memory);
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_NONE), 0);
    to_system(memory);
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ | PROT_WRITE), 0);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
    to_device(memory);
    ASSERT_EQ(mprotect(memory.page(20), 20 * kPage, PROT_READ), 0);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes()) << "by faults, two kinds in one block";
  });
}

// Memory that the kernel pins for as long as the object lives. False where there is no io_uring.
class Pinned {
 public:
  Pinned(void* data, std::size_t bytes) {
    io_uring_params params{};
    ring_ = static_cast<int>(syscall(SYS_io_uring_setup, 1, &params));
    iovec buffer{data, bytes};
    if (ring_ >= 0) done_ = syscall(SYS_io_uring_register, ring_, IORING_REGISTER_BUFFERS, &buffer, 1) == 0;
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() {
    if (ring_ < 0) return;
    (void)syscall(SYS_io_uring_register, ring_, IORING_UNREGISTER_BUFFERS, nullptr, 0);
    close(ring_);
  }
  explicit operator bool() const { return done_; }

 private:
  int ring_ = -1;
  bool done_ = false;
};

class PinnedByTheKernel : public MemoryMap {
 protected:
  void SetUp() override {
    MemoryMap::SetUp();
    auto probe = os::Userfaultfd::open();
    if (!probe.ok() || !probe->features().move)
      GTEST_SKIP() << "without UFFDIO_MOVE nobody can tell that a page is pinned";
    engine::Patience::limit_ns.store(200'000'000);
  }
  void TearDown() override {
    engine::Patience::limit_ns.store(usual_limit_);
    MemoryMap::TearDown();
  }
  const std::uint64_t usual_limit_ = engine::Patience::limit_ns.load();
};

TEST_F(PinnedByTheKernel, PagesStayAndAreReported) {
  Memory memory(16 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  const Pinned pinned(memory.page(4), 2 * kPage);
  if (!pinned) GTEST_SKIP() << "no io_uring here";
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
  EXPECT_EQ(result.pages_skipped, 2u);
  EXPECT_EQ(on_device(memory), 14u);
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u) << "reading needs only a copy";
}

TEST_F(PinnedByTheKernel, AKernelThatWritesThemIsNotLeftWaiting) {
  Memory memory(kPage);
  fill(memory.data(), memory.bytes(), 1);
  {
    const Pinned pinned(memory.data(), kPage);
    if (!pinned) GTEST_SKIP() << "no io_uring here";
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(fill_kernel, SpanArgs{memory.data(), 1, 2, nullptr}));
  }
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  device_fill(memory.data(), memory.bytes(), 2);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
}

TEST_F(PinnedByTheKernel, AKernelWaitsForAPinThatEnds) {
  engine::Patience::limit_ns.store(usual_limit_);
  Memory memory(4 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  std::optional<Pinned> pinned;
  pinned.emplace(memory.data(), kPage);
  if (!*pinned) GTEST_SKIP() << "no io_uring here";
  const std::uint64_t faults = stats().device_faults;
  UHMM_ASSERT_OK(launch(stream_, fill_kernel, SpanArgs{memory.data(), kPage, 2, nullptr}));
  while (stats().device_faults < faults + 3) usleep(100);
  pinned.reset();
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  EXPECT_EQ(first_wrong(memory.data(), kPage, 2), kPage);
}

// Locking everything would lock the sanitizers' shadow memory too, which is larger than the machine.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(MemoryMap, EverythingMayBeLocked) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  to_device(memory);
  if (mlockall(MCL_CURRENT) != 0) GTEST_SKIP() << "no right to lock memory here";
  EXPECT_EQ(on_device(memory), 0u) << "locked memory is in memory";
  fill(memory.data(), memory.bytes(), 2);
  for (int round = 0; round < 3; ++round) {
    to_device(memory);
    EXPECT_EQ(on_device(memory), memory.pages());
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  }
  ASSERT_EQ(munlockall(), 0);
  to_device(memory);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
}

TEST_F(MemoryMap, EverythingMayBeLockedBeforeTheStart) {
  stop();
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) GTEST_SKIP() << "no right to lock memory here";
  start(test_config());
  {
    Memory memory(64 * kPage);
    fill(memory.data(), memory.bytes(), 2);
    for (int round = 0; round < 3; ++round) {
      to_device(memory);
      EXPECT_EQ(on_device(memory), memory.pages());
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
    }
  }
  ASSERT_EQ(munlockall(), 0);
}
#endif

}  // namespace
}  // namespace uhmm::test
