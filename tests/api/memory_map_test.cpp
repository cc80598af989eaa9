// SPDX-License-Identifier: Apache-2.0
// What the program does to the memory map of managed memory: locks, protections. Contents stay, whatever it is.
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <optional>

#include "runtime/engine/patience.hpp"
#include "runtime/os/memory.hpp"
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

// What is no order to drop contents drops none, wherever the pages are. Some kernels refuse some of it.
TEST_F(MemoryMap, AdviceKeepsContents) {
  for_each_kind([&](Memory& memory) {
    constexpr int kAdvice[] = {
        MADV_NORMAL,    MADV_RANDOM,      MADV_SEQUENTIAL,        MADV_WILLNEED,           MADV_COLD,
        MADV_PAGEOUT,   MADV_HUGEPAGE,    MADV_NOHUGEPAGE,        MADV_DONTDUMP,           MADV_DODUMP,
        MADV_MERGEABLE, MADV_UNMERGEABLE, 22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */, 25 /* COLLAPSE */};
    for (const int advice : kAdvice) {
      SCOPED_TRACE(advice);
      // On the device, on both sides, and at home.
      fill(memory.data(), memory.bytes(), 1);
      UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes() / 2, 1, nullptr));
      UHMM_ASSERT_OK(uhmm_acquire(memory.page(32), 16 * kPage, 1, UHMM_ACCESS_READ));
      UHMM_ASSERT_OK(uhmm_release(memory.page(32), 16 * kPage, 1, UHMM_ACCESS_READ));
      (void)madvise(memory.data(), memory.bytes(), advice);
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
      device_increment(memory.data(), memory.bytes());
      (void)madvise(memory.data(), memory.bytes(), advice);
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
    }
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

TEST_F(MemoryMap, AccessThatIsRefusedIsASegmentationFaultWhereverThePageIs) {
  for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_COHERENT}) {
    SCOPED_TRACE(flags);
    start_with([&](uhmm_config& config) { config.flags |= flags; });
    Memory memory(8 * kPage);
    fill(memory.data(), memory.bytes(), 1);
    const auto refused = [&](std::size_t page) {
      return raised_by([&] { *reinterpret_cast<volatile std::byte*>(memory.page(page)) = std::byte{9}; }).signal;
    };
    to_device(memory);
    ASSERT_EQ(mprotect(memory.data(), 4 * kPage, PROT_READ), 0);
    ASSERT_EQ(mprotect(memory.page(4), 4 * kPage, PROT_NONE), 0);
    EXPECT_EQ(refused(0), SIGSEGV);
    EXPECT_EQ(raised_by_read(memory.page(5)).signal, SIGSEGV);
    EXPECT_EQ(memory.page(1)[7], pattern(1, kPage + 7));
    to_system(memory);
    EXPECT_EQ(refused(2), SIGSEGV);
    EXPECT_EQ(raised_by_read(memory.page(6)).signal, SIGSEGV);
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ | PROT_WRITE), 0);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  }
}

class DevicePermissions : public MemoryMap {
 protected:
  void SetUp() override {
    MemoryMap::SetUp();
    os::ProcessMemory process;
    ASSERT_TRUE(process.open().ok());
    if (!process.find_access(VirtAddr{this}).ok()) GTEST_SKIP() << "this kernel can't say what is protected (6.11)";
    process.close();
  }
  static void protect(Memory& memory, int protection) {
    ASSERT_EQ(mprotect(memory.data(), memory.bytes(), protection), 0);
  }
  uhmm_status read(const void* from) {
    std::byte byte{};
    return uhmm_device_read(1, from, &byte, 1, nullptr);
  }
  uhmm_status write(void* to) {
    const std::byte byte{};
    return uhmm_device_write(1, to, &byte, 1, nullptr);
  }
};

TEST_F(DevicePermissions, WhatIsReadOnlyIsForKernelsToo) {
  for_each_kind([&](Memory& memory) {
    protect(memory, PROT_READ);
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
    UHMM_EXPECT_STATUS(UHMM_ERR_PERMISSION, write(memory.page(3)));
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    // All of it is in system memory too, so nothing is lost with the kernel.
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(fill_kernel, SpanArgs{memory.data(), memory.bytes(), 2, nullptr}));
    EXPECT_NE(std::string(uhmm_error_detail()).find("SIGBUS"), std::string::npos) << uhmm_error_detail();
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    UHMM_ASSERT_OK(uhmm_device_restart(1));
    to_device(memory);
    EXPECT_EQ(on_device(memory), memory.pages()) << "it may be there all the same";
    for (const uhmm_page_info& page : snapshot(memory.data(), memory.bytes())) EXPECT_EQ(page.device_write, 0u);
    protect(memory, PROT_READ | PROT_WRITE);
    device_fill(memory.data(), memory.bytes(), 2);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  });
}

TEST_F(DevicePermissions, WhatNobodyMayReadStays) {
  for_each_kind([&](Memory& memory) {
    protect(memory, PROT_NONE);
    UHMM_EXPECT_STATUS(UHMM_ERR_FAULT, read(memory.page(3)));
    uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
    EXPECT_NE(uhmm_migrate(memory.data(), memory.bytes(), 1, &result), UHMM_OK);
    EXPECT_EQ(result.pages_skipped, memory.pages());
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(touch_kernel, SpanArgs{memory.data(), 1, 0, nullptr}));
    UHMM_ASSERT_OK(uhmm_device_restart(1));
    protect(memory, PROT_READ | PROT_WRITE);
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  });
}

TEST_F(DevicePermissions, APartOfARange) {
  for_each_kind([&](Memory& memory) {
    ASSERT_EQ(mprotect(memory.page(20), 10 * kPage, PROT_READ), 0);
    ASSERT_EQ(mprotect(memory.page(40), 5 * kPage, PROT_NONE), 0);
    device_fill(memory.data(), 20 * kPage, 2);  // windows reach into what is protected
    UHMM_EXPECT_STATUS(UHMM_ERR_PERMISSION, write(memory.page(20)));
    UHMM_EXPECT_OK(write(memory.page(30)));
    UHMM_EXPECT_STATUS(UHMM_ERR_FAULT, read(memory.page(44)));
    UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_make_exclusive(memory.page(18), 4 * kPage, 1, nullptr));
    uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
    UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
    EXPECT_EQ(result.pages_skipped, 5u);
    protect(memory, PROT_READ | PROT_WRITE);
    memory.page(30)[0] = pattern(1, 30 * kPage);
    EXPECT_EQ(first_wrong(memory.data(), 20 * kPage, 2), 20 * kPage);
    for (std::size_t i = 20 * kPage; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], pattern(1, i)) << i;
  });
}

// Guard pages (Linux 6.13) are mapped as before and can't be touched: not by a kernel either, which must not wait for
// them for ever. Only newer kernels say which they are (6.15).
class GuardPages : public DevicePermissions {
 protected:
  static constexpr int kInstall = 102;
  static constexpr int kRemove = 103;
  void SetUp() override {
    DevicePermissions::SetUp();
    Memory probe(kPage, false);
    os::ProcessMemory process;
    ASSERT_TRUE(process.open().ok());
    const VirtAddr page{probe.data()};
    const bool installed = madvise(probe.data(), kPage, kInstall) == 0;
    Result<PageMask> seen = process.guarded(page.block_floor(), {page.page_in_block(), 1});
    process.close();
    if (!installed || !seen.ok() || seen->none()) GTEST_SKIP() << "this kernel has no guard pages, or does not tell";
  }
};

TEST_F(GuardPages, AreNoMemoryForADevice) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  ASSERT_EQ(madvise(memory.page(10), 2 * kPage, kInstall), 0);
  UHMM_EXPECT_STATUS(UHMM_ERR_FAULT, read(memory.page(11)));
  UHMM_EXPECT_OK(read(memory.page(12)));
  (void)uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr);
  EXPECT_EQ(on_device(memory), memory.pages() - 2);
  to_system(memory);
  UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(touch_kernel, SpanArgs{memory.page(11), 1, 0, nullptr}));
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  EXPECT_EQ(raised_by_read(memory.page(11)).signal, SIGSEGV);
  ASSERT_EQ(madvise(memory.page(10), 2 * kPage, kRemove), 0);
  UHMM_EXPECT_OK(read(memory.page(11)));
  EXPECT_EQ(memory.page(11)[0], std::byte{0});
  EXPECT_EQ(first_wrong(memory.data(), 10 * kPage, 1), 10 * kPage);
}

// A program should not do this before it has unregistered the memory; a kernel may not read zeros there all the same.
TEST_F(MemoryMap, HolesAreNoMemoryForADevice) {
  for_each_kind([&](Memory& memory) {
    ASSERT_EQ(munmap(memory.page(10), 2 * kPage), 0);
    uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
    UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, &result));
    EXPECT_EQ(result.pages_skipped, 2u);
    std::byte byte{};
    UHMM_EXPECT_STATUS(UHMM_ERR_FAULT, uhmm_device_read(1, memory.page(11), &byte, 1, nullptr));
    to_system(memory);
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(touch_kernel, SpanArgs{memory.page(11), 1, 0, nullptr}));
    EXPECT_EQ(first_wrong(memory.data(), 10 * kPage, 1), 10 * kPage);
    UHMM_ASSERT_OK(uhmm_device_restart(1));
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
