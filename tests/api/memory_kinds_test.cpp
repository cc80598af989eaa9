// SPDX-License-Identifier: Apache-2.0
// Every kind of memory that a program has: registered, written by a device, read and written by the CPU.
#include <fcntl.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class MemoryKinds : public RuntimeTest {
 protected:
  // The whole life of a range: CPU, device, CPU, device, and out.
  void exercise(void* memory, std::size_t bytes) {
    auto* data = static_cast<std::byte*>(memory);
    fill(data, bytes, 1);
    UHMM_ASSERT_OK(uhmm_register(data, bytes));
    EXPECT_EQ(device_count_wrong(data, bytes, 1), 0u) << "the device sees what the CPU wrote";
    device_fill(data, bytes, 2);
    EXPECT_EQ(first_wrong(data, bytes, 2), bytes) << "the CPU sees what the device wrote";
    data[bytes / 2] = pattern(3, 0);
    data[bytes - 1] = pattern(3, 1);
    device_increment(data, bytes);
    data[0] = pattern(5, 5);
    UHMM_ASSERT_OK(uhmm_migrate(data, bytes, 1, nullptr));
    // The first and the last page may be in use by others, by this very thread even.
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::size_t whole = (address + bytes) / kPage - (address + kPage - 1) / kPage;
    if (static_cast<std::ptrdiff_t>(whole) > 0) {
      EXPECT_GE(pages_in_state(data, bytes, UHMM_PAGE_DEVICE), whole);
    }
    UHMM_ASSERT_OK(uhmm_unregister(data));
    for (std::size_t i = 0; i < bytes; ++i) {
      std::byte expected = pattern(2, i);
      if (i == bytes / 2) expected = pattern(3, 0);
      if (i == bytes - 1) expected = pattern(3, 1);
      expected = static_cast<std::byte>(std::to_integer<int>(expected) + 1);
      if (i == 0) expected = pattern(5, 5);
      ASSERT_EQ(data[i], expected) << "byte " << i << " of " << bytes;
    }
    fill(data, bytes, 9);
    EXPECT_EQ(first_wrong(data, bytes, 9), bytes);
    EXPECT_EQ(stats().pages_on_devices, 0u);
  }
};

TEST_F(MemoryKinds, BigHeapBlock) {
  const std::size_t bytes = 5 * kBlock + 12345;
  auto memory = std::make_unique<std::byte[]>(bytes);
  exercise(memory.get(), bytes);
}

TEST_F(MemoryKinds, SmallHeapBlock) {
  auto memory = std::make_unique<std::byte[]>(100);
  exercise(memory.get() + 3, 90);
}

TEST_F(MemoryKinds, NeighboursOfASmallHeapBlockKeepWorking) {
  // One page's worth of blocks; the middle one is managed while another thread uses the rest.
  std::vector<std::unique_ptr<std::uint64_t[]>> blocks;
  for (int i = 0; i < 32; ++i) blocks.push_back(std::make_unique<std::uint64_t[]>(12));
  std::uint64_t* mine = blocks[16].get();
  UHMM_ASSERT_OK(uhmm_register(mine, 12 * sizeof(*mine)));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> rounds{0};
  std::thread neighbour([&] {
    for (std::uint64_t round = 1; !stop; ++round) {
      for (std::size_t i = 0; i < blocks.size(); ++i)
        if (i != 16) std::fill_n(blocks[i].get(), 12, round + i);
      auto churn = std::make_unique<std::uint64_t[]>(12);  // the allocator works on the same pages
      churn[0] = round;
      for (std::size_t i = 0; i < blocks.size(); ++i)
        for (int j = 0; j < 12; ++j)
          if (i != 16 && blocks[i][j] != round + i) ++wrong;
      rounds = round;
    }
  });
  for (int round = 0; round < 50; ++round) {
    device_fill(reinterpret_cast<std::byte*>(mine), 96, static_cast<std::uint64_t>(round));
    EXPECT_EQ(first_wrong(reinterpret_cast<std::byte*>(mine), 96, static_cast<std::uint64_t>(round)), 96u);
    while (rounds == 0) std::this_thread::yield();
  }
  stop = true;
  neighbour.join();
  EXPECT_EQ(wrong, 0u);
  UHMM_EXPECT_OK(uhmm_unregister(mine));
}

// Not inlined: the array has to be in a frame below the calls that follow.
__attribute__((noinline)) void use_stack(const std::function<void(std::byte*, std::size_t)>& body) {
  std::byte array[20'000];
  body(array, sizeof(array));
}

TEST_F(MemoryKinds, StackOfTheCallingThread) {
  use_stack([&](std::byte* array, std::size_t bytes) { exercise(array, bytes); });
}

TEST_F(MemoryKinds, StackThatMigratesWhileItsThreadRuns) {
  use_stack([&](std::byte* array, std::size_t bytes) {
    fill(array, bytes, 4);
    // Everything around this frame too, as far as it is surely mapped.
    auto* from = array;
    UHMM_ASSERT_OK(uhmm_register(from, bytes));
    for (int round = 0; round < 20; ++round) {
      UHMM_ASSERT_OK(uhmm_migrate(from, bytes, 1, nullptr));
      volatile int local = round;  // this frame is on the last page, or near
      EXPECT_EQ(local, round);
      EXPECT_EQ(array[bytes - 1], pattern(4, bytes - 1));
    }
    EXPECT_EQ(first_wrong(array, bytes, 4), bytes);
    UHMM_ASSERT_OK(uhmm_unregister(from));
  });
}

TEST_F(MemoryKinds, StacksOfOtherThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      std::byte array[10'000];
      fill(array, sizeof(array), static_cast<std::uint64_t>(i));
      UHMM_ASSERT_OK(uhmm_register(array, sizeof(array)));
      for (int round = 0; round < 10; ++round) {
        UHMM_ASSERT_OK(uhmm_migrate(array, sizeof(array), 1, nullptr));
        EXPECT_EQ(first_wrong(array, sizeof(array), static_cast<std::uint64_t>(i)), sizeof(array));
      }
      UHMM_ASSERT_OK(uhmm_unregister(array));
    });
  for (auto& thread : threads) thread.join();
}

alignas(4096) std::byte bss_array[3 * kPage + 77];

TEST_F(MemoryKinds, Bss) { exercise(bss_array, sizeof(bss_array)); }

TEST_F(MemoryKinds, MappedPrivate) {
  Memory memory(2 * kBlock + 3 * kPage, false);
  exercise(memory.data(), memory.bytes());
}

TEST_F(MemoryKinds, MappedShared) {
  Memory memory(2 * kBlock + 3 * kPage, false, MAP_SHARED | MAP_ANONYMOUS);
  exercise(memory.data(), memory.bytes());
  exercise(memory.data() + 100, 2 * kPage);
}

TEST_F(MemoryKinds, SharedMemoryIsOneForTwoMappings) {
  const int fd = memfd_create("uhmm-test", 0);
  ASSERT_EQ(ftruncate(fd, 4 * kPage), 0);
  Memory one(4 * kPage, true, MAP_SHARED, fd);
  device_fill(one.data(), one.bytes(), 7);
  EXPECT_EQ(first_wrong(one.data(), one.bytes(), 7), one.bytes());  // home again
  Memory other(4 * kPage, false, MAP_SHARED, fd);
  EXPECT_EQ(first_wrong(other.data(), other.bytes(), 7), other.bytes());
  close(fd);
}

TEST_F(MemoryKinds, Memfd) {
  const int fd = memfd_create("uhmm-test", 0);
  ASSERT_EQ(ftruncate(fd, static_cast<off_t>(kBlock + 5 * kPage)), 0);
  Memory memory(kBlock + 5 * kPage, false, MAP_SHARED, fd);
  close(fd);
  exercise(memory.data(), memory.bytes());
}

TEST_F(MemoryKinds, PosixSharedMemory) {
  const std::string name = "/uhmm-test-" + std::to_string(getpid());
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd < 0) GTEST_SKIP() << "no /dev/shm here";
  shm_unlink(name.c_str());
  ASSERT_EQ(ftruncate(fd, 7 * kPage), 0);
  Memory memory(7 * kPage, false, MAP_SHARED, fd);
  close(fd);
  exercise(memory.data(), memory.bytes());
}

TEST_F(MemoryKinds, SystemVSharedMemory) {
  const int id = shmget(IPC_PRIVATE, 6 * kPage, IPC_CREAT | 0600);
  if (id < 0) GTEST_SKIP() << "no System V shared memory here";
  void* memory = shmat(id, nullptr, 0);
  shmctl(id, IPC_RMID, nullptr);
  ASSERT_NE(memory, reinterpret_cast<void*>(-1));
  // The kernel's userfaultfd refuses it (to it, this is not shmem): it is mirrored, by whoever may open it.
  const uhmm_status status = uhmm_register(memory, 6 * kPage);
  if (status == UHMM_OK) {
    auto* data = static_cast<std::byte*>(memory);
    fill(data, 6 * kPage, 1);
    EXPECT_EQ(device_count_wrong(data, 6 * kPage, 1), 0u);
    device_fill(data, 6 * kPage, 2);
    EXPECT_EQ(first_wrong(data, 6 * kPage, 2), 6 * kPage);
    UHMM_EXPECT_OK(uhmm_unregister(memory));
  } else {
    EXPECT_EQ(status, UHMM_ERR_NOT_SUPPORTED) << describe(status);
    EXPECT_NE(std::string(uhmm_error_detail()).find("System V"), std::string::npos) << uhmm_error_detail();
  }
  shmdt(memory);
}

TEST_F(MemoryKinds, OneByte) {
  Memory memory(kPage, false);
  fill(memory.data(), kPage, 1);
  exercise(memory.data() + 1000, 1);
  for (std::size_t i = 0; i < kPage; ++i) {
    if (i != 1000) {
      ASSERT_EQ(memory.data()[i], pattern(1, i)) << i;
    }
  }
}

TEST_F(MemoryKinds, TwoRangesOnOnePage) {
  Memory memory(3 * kPage, false);
  fill(memory.data(), memory.bytes(), 1);
  std::byte* first = memory.data() + 100;
  std::byte* second = memory.data() + kPage + 200;
  UHMM_ASSERT_OK(uhmm_register(first, kPage));
  UHMM_ASSERT_OK(uhmm_register(second, kPage));
  device_fill(first, kPage, 2);
  device_fill(second, kPage, 3);
  EXPECT_EQ(first_wrong(first, kPage, 2), kPage);
  UHMM_ASSERT_OK(uhmm_migrate(second, kPage, 1, nullptr));
  // One of them ends; what the other has on the shared page stays right, wherever it is.
  UHMM_ASSERT_OK(uhmm_unregister(first));
  EXPECT_EQ(first_wrong(first, kPage, 2), kPage);
  EXPECT_EQ(first_wrong(second, kPage, 3), kPage);
  device_increment(second, kPage);
  EXPECT_EQ(first_wrong(first, kPage, 2), kPage);
  UHMM_ASSERT_OK(uhmm_unregister(second));
  for (std::size_t i = 0; i < kPage; ++i)
    ASSERT_EQ(second[i], static_cast<std::byte>(std::to_integer<int>(pattern(3, i)) + 1));
  for (std::size_t i = kPage + 100; i < kPage + 200; ++i) ASSERT_EQ(memory.data()[i], pattern(1, i)) << i;
}

TEST_F(MemoryKinds, RangeOverSeveralMappings) {
  Memory memory(9 * kPage, false);
  // Another advice makes another mapping of the middle, for the kernel.
  ASSERT_EQ(madvise(memory.page(3), 3 * kPage, MADV_DONTDUMP), 0);
  exercise(memory.data(), memory.bytes());
}

TEST_F(MemoryKinds, RangeOverSeveralSharedObjects) {
  Memory memory(9 * kPage, false);
  for (const int i : {0, 3, 6}) {
    const int fd = memfd_create("uhmm-test", 0);
    ASSERT_EQ(ftruncate(fd, 5 * kPage), 0);
    ASSERT_NE(mmap(memory.page(static_cast<std::size_t>(i)), 3 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                   fd, i == 3 ? kPage : 0),
              MAP_FAILED);
    close(fd);
  }
  exercise(memory.data(), memory.bytes());
}

TEST_F(MemoryKinds, PrivateAndSharedInOneRangeAreRefused) {
  Memory memory(4 * kPage, false);
  ASSERT_NE(mmap(memory.page(2), 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            MAP_FAILED);
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_register(memory.data(), memory.bytes()));
  exercise(memory.data(), 2 * kPage);
  exercise(memory.page(2), 2 * kPage);
}

TEST_F(MemoryKinds, AroundBlockBoundaries) {
  BlockMemory blocks(1);
  UHMM_ASSERT_OK(uhmm_unregister(blocks.data()));
  Memory memory(4 * kBlock, false);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  std::byte* boundary = memory.data() + (kBlock - address % kBlock) % kBlock + kBlock;
  const std::ptrdiff_t page = kPage;
  for (const auto& [before, bytes] : {std::pair<std::ptrdiff_t, std::size_t>{0, kBlock},
                                      {0, 1},
                                      {1, 1},
                                      {1, 2},
                                      {page, 2 * kPage},
                                      {page, kBlock + 2 * kPage},
                                      {7, kBlock + 14}}) {
    SCOPED_TRACE(std::to_string(before) + " before, " + std::to_string(bytes));
    exercise(boundary - before, bytes);
  }
}

TEST_F(MemoryKinds, HugePagesOfThePrivateKind) {
  BlockMemory blocks(2);
  UHMM_ASSERT_OK(uhmm_unregister(blocks.data()));
  (void)madvise(blocks.data(), blocks.bytes(), MADV_HUGEPAGE);  // where the kernel has them
  exercise(blocks.data(), blocks.bytes());
}

TEST_F(MemoryKinds, NeverTouchedMemoryReadsAsZeros) {
  Memory memory(40 * kPage);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_NONE), 40u);
  device_increment(memory.data(), 20 * kPage);
  for (std::size_t i = 0; i < 20 * kPage; ++i) ASSERT_EQ(memory.data()[i], std::byte{1}) << i;
  EXPECT_EQ(memory.data()[30 * kPage], std::byte{0});
}

}  // namespace
}  // namespace uhmm::test
