// SPDX-License-Identifier: Apache-2.0
// Programs that end managed memory without a word: unmapped, mapped over, moved onto. The old contents are never seen
// again, the new ones are never touched, and nothing has to be done for it.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

constexpr std::size_t kCount = 1400;  // nearly three blocks
constexpr std::size_t kBytes = kCount * kPage;

class UnseenUnmap : public RuntimeTest {
 protected:
  struct Kind {
    const char* name;
    std::uint32_t flags;
    std::uint32_t rung;
    int sharing;
  };
  void for_each_kind(const std::function<void(int flags)>& body) {
    constexpr Kind kKinds[] = {
        {"moved", 0, UHMM_FAULTS_AUTO, MAP_PRIVATE},     {"copied", UHMM_CONFIG_NO_MOVE, UHMM_FAULTS_AUTO, MAP_PRIVATE},
        {"shared", 0, UHMM_FAULTS_AUTO, MAP_SHARED},     {"entries", UHMM_CONFIG_DEVICE_ENTRIES, 0, MAP_PRIVATE},
        {"signals", 0, UHMM_FAULTS_SIGNAL, MAP_PRIVATE},
    };
    for (const Kind& kind : kKinds) {
      SCOPED_TRACE(kind.name);
      start_with([&](uhmm_config& config) {
        config.flags |= kind.flags;
        config.fault_rung = kind.rung;
      });
      body(kind.sharing | MAP_ANONYMOUS);
    }
  }
  static std::byte* map(std::size_t bytes, int flags, void* at = nullptr) {
    void* memory = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    return static_cast<std::byte*>(memory);
  }
  // Registered; pages are on the device alone, on both sides, and at home.
  static std::byte* mixed(int flags, int seed) {
    std::byte* memory = map(kBytes, flags);
    UHMM_EXPECT_OK(uhmm_register(memory, kBytes));
    fill(memory, kBytes, seed);
    UHMM_EXPECT_OK(uhmm_migrate(memory, kBytes / 2, 1, nullptr));
    std::byte byte{};
    for (std::size_t page = kCount / 2; page < kCount; page += 100)
      UHMM_EXPECT_OK(uhmm_device_read(1, memory + page * kPage, &byte, 1, nullptr));
    return memory;
  }
  static std::size_t first_other(const std::byte* memory, std::size_t bytes, std::byte value) {
    for (std::size_t i = 0; i < bytes; ++i)
      if (memory[i] != value) return i;
    return bytes;
  }
  static std::size_t wrong_from(const std::byte* memory, std::size_t from, std::size_t to, int seed) {
    for (std::size_t i = from; i < to; ++i)
      if (memory[i] != pattern(seed, i)) return i;
    return to;
  }
};

TEST_F(UnseenUnmap, AllOfIt) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    ASSERT_EQ(munmap(memory, kBytes), 0);
    EXPECT_EQ(stats().ranges, 0u);
    EXPECT_EQ(stats().pages_on_devices, 0u);
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_unregister(memory));
    // What comes there is as any other memory.
    ASSERT_EQ(map(kBytes, flags | MAP_FIXED_NOREPLACE, memory), memory);
    EXPECT_EQ(first_other(memory, kBytes, std::byte{0}), kBytes);
    UHMM_ASSERT_OK(uhmm_register(memory, kBytes));
    EXPECT_EQ(first_other(memory, kBytes, std::byte{0}), kBytes);
    device_increment(memory, kBytes);
    EXPECT_EQ(first_other(memory, kBytes, std::byte{1}), kBytes);
    UHMM_ASSERT_OK(uhmm_unregister(memory));
    munmap(memory, kBytes);
  });
}

TEST_F(UnseenUnmap, APart) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    const std::size_t from = 300 * kPage;
    const std::size_t to = 900 * kPage;
    ASSERT_EQ(munmap(memory + from, to - from), 0);
    EXPECT_EQ(stats().registered_bytes, kBytes - (to - from));
    ASSERT_EQ(map(to - from, flags | MAP_FIXED_NOREPLACE, memory + from), memory + from);
    std::memset(memory + from, 0x5a, to - from);
    std::byte byte{};
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_device_read(1, memory + from, &byte, 1, nullptr));
    EXPECT_EQ(first_other(memory + from, to - from, std::byte{0x5a}), to - from);
    EXPECT_EQ(wrong_from(memory, 0, from, 1), from);
    EXPECT_EQ(wrong_from(memory, to, kBytes, 1), kBytes);
    // The parts that are left are managed as before.
    device_increment(memory, from);
    device_increment(memory + to, kBytes - to);
    EXPECT_EQ(memory[0], static_cast<std::byte>(std::to_integer<int>(pattern(1, 0)) + 1));
    EXPECT_EQ(first_other(memory + from, to - from, std::byte{0x5a}), to - from);
    UHMM_EXPECT_OK(uhmm_unregister(memory));
    UHMM_EXPECT_OK(uhmm_unregister(memory + to));
    munmap(memory, kBytes);
  });
}

TEST_F(UnseenUnmap, MappedOver) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    const std::size_t part = 512 * kPage;
    ASSERT_EQ(map(part, flags | MAP_FIXED, memory + 100 * kPage), memory + 100 * kPage);
    EXPECT_EQ(first_other(memory + 100 * kPage, part, std::byte{0}), part);
    EXPECT_EQ(stats().registered_bytes, kBytes - part);
    EXPECT_EQ(wrong_from(memory, 0, 100 * kPage, 1), 100 * kPage);
    EXPECT_EQ(wrong_from(memory, 100 * kPage + part, kBytes, 1), kBytes);
    munmap(memory, kBytes);
    EXPECT_EQ(stats().ranges, 0u);
  });
}

TEST_F(UnseenUnmap, Shrunk) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    ASSERT_EQ(mremap(memory, kBytes, 200 * kPage, 0), memory);
    EXPECT_EQ(stats().registered_bytes, 200 * kPage);
    EXPECT_EQ(wrong_from(memory, 0, 200 * kPage, 1), 200 * kPage);
    munmap(memory, 200 * kPage);
    EXPECT_EQ(stats().ranges, 0u);
  });
}

TEST_F(UnseenUnmap, MovedOntoAnotherRange) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    std::byte* other = mixed(flags, 2);
    ASSERT_EQ(mremap(memory, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, other), other);
    EXPECT_EQ(first_wrong(other, kBytes, 1), kBytes);
    EXPECT_EQ(stats().ranges, 0u);
    EXPECT_EQ(stats().pages_on_devices, 0u);
    munmap(other, kBytes);
  });
}

// Contents are on their way when their place moves on.
TEST_F(UnseenUnmap, MovedAgainAndAgain) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    std::byte* places[4];
    for (std::byte*& place : places) place = map(kBytes, flags);
    for (std::byte* place : places) {
      ASSERT_EQ(mremap(memory, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, place), place);
      memory = place;
    }
    EXPECT_EQ(first_wrong(memory, kBytes, 1), kBytes);
    EXPECT_EQ(stats().ranges, 0u);
    munmap(memory, kBytes);
  });
}

// The child has what had not followed yet when the program forked.
TEST_F(UnseenUnmap, ForkedRightAfterAMove) {
  for_each_kind([&](int flags) {
    std::byte* memory = mixed(flags, 1);
    std::byte* place = map(kBytes, flags);
    ASSERT_EQ(mremap(memory, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, place), place);
    const pid_t child = fork();
    if (child == 0) _exit(first_wrong(place, kBytes, 1) == kBytes ? 0 : 1);
    EXPECT_EQ(exit_code_of(child), 0);
    EXPECT_EQ(first_wrong(place, kBytes, 1), kBytes);
    munmap(place, kBytes);
  });
}

TEST_F(UnseenUnmap, TwoRangesChangePlaces) {
  for_each_kind([&](int flags) {
    std::byte* one = mixed(flags, 1);
    std::byte* two = mixed(flags, 2);
    std::byte* between = map(kBytes, flags);
    ASSERT_EQ(mremap(one, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, between), between);
    ASSERT_EQ(mremap(two, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, one), one);
    ASSERT_EQ(mremap(between, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, two), two);
    EXPECT_EQ(first_wrong(one, kBytes, 2), kBytes);
    EXPECT_EQ(first_wrong(two, kBytes, 1), kBytes);
    munmap(one, kBytes);
    munmap(two, kBytes);
    EXPECT_EQ(stats().ranges, 0u);
  });
}

// What the C library unmaps on its own, and gives out again at the same place. AddressSanitizer's keeps what is freed.
#if !defined(__SANITIZE_ADDRESS__)
TEST_F(UnseenUnmap, FreedLargeBlocks) {
  for (int round = 0; round < 5; ++round) {
    const std::size_t bytes = std::size_t{48} << 20;  // more than it ever keeps
    auto* memory = static_cast<std::byte*>(malloc(bytes));
    ASSERT_NE(memory, nullptr);
    UHMM_ASSERT_OK(uhmm_register(memory, bytes));
    std::memset(memory, round + 1, bytes);
    device_increment(memory, kPage * 100);
    EXPECT_EQ(memory[kPage], static_cast<std::byte>(round + 2));
    UHMM_ASSERT_OK(uhmm_migrate(memory, bytes, 1, nullptr));
    free(memory);
    EXPECT_EQ(stats().ranges, 0u);
  }
}
#endif

// Every page that goes with the mapping is told to its owner.
TEST_F(UnseenUnmap, OwnersOfPoolsHearOfIt) {
  std::atomic<std::uint64_t> freed{0};
  uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
  ops.page_free = [](void* context, std::uint64_t, uhmm_cause) {
    static_cast<std::atomic<std::uint64_t>*>(context)->fetch_add(1);
  };
  uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
  desc.device = 1;
  desc.bytes = 8 << 20;
  desc.context = &freed;
  desc.ops = &ops;
  uhmm_pool pool = 0;
  UHMM_ASSERT_OK(uhmm_pool_create(&desc, &pool));
  std::byte* memory = map(100 * kPage, MAP_PRIVATE | MAP_ANONYMOUS);
  UHMM_ASSERT_OK(uhmm_register(memory, 100 * kPage));
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory, pool));
  fill(memory, 100 * kPage, 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory, 100 * kPage, 1, nullptr));
  munmap(memory, 100 * kPage);
  (void)stats();
  EXPECT_EQ(freed.load(), 100u);
  UHMM_EXPECT_OK(uhmm_pool_destroy(pool));
}

// All is home and nobody watches: then nothing tells of the unmapping. What is there now is of another kind.
TEST_F(UnseenUnmap, AnotherKindOfMemoryInPlaceOfWhatWasHome) {
  for_each_kind([&](int flags) {
    std::byte* memory = map(kBytes, flags);
    UHMM_ASSERT_OK(uhmm_register(memory, kBytes));
    fill(memory, kBytes, 1);
    const int file = memfd_create("other", MFD_CLOEXEC);
    ASSERT_GE(file, 0);
    ASSERT_EQ(ftruncate(file, kBytes), 0);
    ASSERT_EQ(mmap(memory, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0), memory);
    fill(memory, kBytes, 2);
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_migrate(memory, kBytes, 1, nullptr));
    EXPECT_NE(std::string(uhmm_error_detail()).find("registered"), std::string::npos) << uhmm_error_detail();
    std::byte byte{};
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_device_read(1, memory, &byte, 1, nullptr));
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(touch_kernel, SpanArgs{memory, kPage, 0, nullptr}));
    UHMM_ASSERT_OK(uhmm_device_restart(1));
    EXPECT_EQ(first_wrong(memory, kBytes, 2), kBytes);
    // Registered anew it is what it is.
    UHMM_ASSERT_OK(uhmm_unregister(memory));
    UHMM_ASSERT_OK(uhmm_register(memory, kBytes));
    device_increment(memory, kBytes);
    EXPECT_EQ(memory[kPage], static_cast<std::byte>(std::to_integer<int>(pattern(2, kPage)) + 1));
    UHMM_ASSERT_OK(uhmm_unregister(memory));
    munmap(memory, kBytes);
    close(file);
  });
}

// Others use the same blocks, from both sides. The new mappings have contents that nobody else may touch or drop.
TEST_F(UnseenUnmap, BesideOthersThatUseTheRange) {
  for_each_kind([&](int flags) {
    std::byte* memory = map(kBytes, flags);
    UHMM_ASSERT_OK(uhmm_register(memory, kBytes));
    fill(memory, kBytes, 1);
    const std::size_t from = 600 * kPage;
    const std::size_t part = 200 * kPage;
    std::atomic<bool> end{false};
    std::thread toucher([&] {
      while (!end) {
        EXPECT_EQ(wrong_from(memory, 0, from, 1), from);
        EXPECT_EQ(wrong_from(memory, from + part, kBytes, 1), kBytes);
      }
    });
    std::thread mover([&] {
      while (!end) {
        (void)uhmm_migrate(memory, from, 1, nullptr);
        (void)uhmm_migrate(memory + from + part, kBytes - from - part, 1, nullptr);
      }
    });
    for (int round = 0; round < 12; ++round) {
      (void)uhmm_migrate(memory + from, part, 1, nullptr);
      ASSERT_EQ(munmap(memory + from, part), 0);
      ASSERT_EQ(map(part, flags | MAP_FIXED_NOREPLACE, memory + from), memory + from);
      const auto value = static_cast<std::byte>(round + 0x40);
      std::memset(memory + from, std::to_integer<int>(value), part);
      EXPECT_EQ(first_other(memory + from, part, value), part) << round;
      UHMM_EXPECT_OK(uhmm_register(memory + from, part));
      (void)uhmm_migrate(memory + from, part, 1, nullptr);
      EXPECT_EQ(first_other(memory + from, part, value), part) << round;
    }
    end = true;
    toucher.join();
    mover.join();
    UHMM_EXPECT_OK(uhmm_forget(memory, kBytes));
    munmap(memory, kBytes);
  });
}

}  // namespace
}  // namespace uhmm::test
