// SPDX-License-Identifier: Apache-2.0
// Huge pages of the program: they move as one, stay whole on a device, and come back as one, until something parts
// them.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/inject.hpp"
#include "runtime/os/userfaultfd.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class HugePages : public RuntimeTest {
 protected:
  void SetUp() override {
    if (!huge_pages_can_be_had()) GTEST_SKIP() << "no huge page can be had here (transparent_hugepage is off?)";
    RuntimeTest::SetUp();
  }
  void TearDown() override {
    inject::disarm_all();
    RuntimeTest::TearDown();
  }
  // With and without entries in the kernel's page table for what is away.
  void with_both(const std::function<void(bool marks)>& body) {
    for (const bool marks : {false, true}) {
      SCOPED_TRACE(marks ? "marks" : "no marks");
      start_with([&](uhmm_config& config) { config.flags |= marks ? UHMM_CONFIG_DEVICE_ENTRIES : 0; });
      body(marks);
      if (HasFatalFailure()) return;
    }
  }
};

// Blocks of one huge page each, filled.
class HugeMemory : public BlockMemory {
 public:
  explicit HugeMemory(std::size_t blocks, std::uint64_t seed = 1) : BlockMemory(blocks) {
    (void)madvise(data(), bytes(), MADV_HUGEPAGE);
    fill(data(), bytes(), seed);
    for (std::size_t i = 0; i < blocks; ++i) EXPECT_TRUE(is_huge(block(i))) << i;
  }
};

// Pages that a device holds as part of a huge one.
std::size_t huge_there(const void* address, std::size_t bytes) {
  const auto pages = snapshot(address, bytes);
  return static_cast<std::size_t>(
      std::count_if(pages.begin(), pages.end(), [](const auto& page) { return page.huge != 0; }));
}

constexpr std::size_t kPagesOfBlock = kBlock / kPage;

TEST_F(HugePages, GoAndComeWhole) {
  with_both([&](bool) {
    const HugeMemory memory(3);
    for (int i = 0; i < 3; ++i) {
      UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
      EXPECT_EQ(huge_there(memory.data(), memory.bytes()), 3 * kPagesOfBlock);
      device_increment(memory.data(), memory.bytes());
      UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
      EXPECT_EQ(huge_there(memory.data(), memory.bytes()), 0u);
      for (std::size_t block = 0; block < 3; ++block) EXPECT_TRUE(is_huge(memory.block(block))) << block;
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), static_cast<std::uint64_t>(2 + i)), memory.bytes());
    }
  });
}

TEST_F(HugePages, ComeWholeWhenTheCpuTouchesOneByte) {
  with_both([&](bool) {
    const HugeMemory memory(2);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
    EXPECT_EQ(memory.data()[kBlock / 2 + 7], pattern(1, kBlock / 2 + 7));
    EXPECT_EQ(pages_in_state(memory.data(), kBlock, UHMM_PAGE_SYSTEM), kPagesOfBlock);
    EXPECT_TRUE(is_huge(memory.block(0)));
    EXPECT_EQ(huge_there(memory.block(1), kBlock), kPagesOfBlock) << "untouched";
    EXPECT_EQ(range_stats(memory.data()).cpu_faults, 1u);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    EXPECT_EQ(range_stats(memory.data()).cpu_faults, 2u);
  });
}

TEST_F(HugePages, GoWholeWhenADeviceTouchesOneByte) {
  with_both([&](bool) {
    const HugeMemory memory(2);
    std::byte value{9};
    UHMM_ASSERT_OK(uhmm_device_write(1, memory.data() + 12345, &value, 1, nullptr));
    EXPECT_EQ(huge_there(memory.data(), memory.bytes()), kPagesOfBlock);
    EXPECT_TRUE(is_huge(memory.block(1)));
    // A reader's copy leaves the program's page whole.
    UHMM_ASSERT_OK(uhmm_device_read(1, memory.block(1) + 12345, &value, 1, nullptr));
    EXPECT_EQ(value, pattern(1, kBlock + 12345));
    EXPECT_EQ(pages_in_state(memory.block(1), kBlock, UHMM_PAGE_SHARED), kPagesOfBlock);
    EXPECT_TRUE(is_huge(memory.block(1)));
    memory.data()[12345] = pattern(1, 12345);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  });
}

TEST_F(HugePages, ArePartedByWhatTakesAPart) {
  struct Parting {
    const char* name;
    std::function<void(std::byte*)> part;
  };
  const Parting partings[] = {
      {"migrate", [](std::byte* at) { UHMM_EXPECT_OK(uhmm_migrate(at, kBlock / 4, UHMM_CPU, nullptr)); }},
      {"discard",
       [](std::byte* at) {
         UHMM_EXPECT_OK(uhmm_discard(at, kBlock / 4));
         for (std::size_t i = 0; i < kBlock / 4; ++i) ASSERT_EQ(at[i], std::byte{0}) << i;
         std::vector<std::byte> old(kBlock);
         fill(old.data(), kBlock, 1);
         std::memcpy(at, old.data() + reinterpret_cast<std::uintptr_t>(at) % kBlock, kBlock / 4);
       }},
      {"mprotect",
       [](std::byte* at) {
         ASSERT_EQ(mprotect(at, kBlock / 4, PROT_READ), 0);
         UHMM_EXPECT_OK(uhmm_revoke(at, kBlock / 4));
       }},
      {"unregister", [](std::byte* at) { UHMM_EXPECT_OK(uhmm_unregister_pages(at, kBlock / 4)); }},
      {"mremap",
       [](std::byte* at) {
         // There and back, by system calls that nobody interposes on. The mapping stays: others might take a hole.
         void* away = mmap(nullptr, kBlock / 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         constexpr int kFlags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
         ASSERT_EQ(mremap(at, kBlock / 4, kBlock / 4, kFlags, away), away);
         std::vector<std::byte> copy(static_cast<std::byte*>(away), static_cast<std::byte*>(away) + kBlock / 4);
         std::memcpy(at, copy.data(), copy.size());
         munmap(away, kBlock / 4);
       }},
      {"a neighbour's range",
       [](std::byte* at) {
         UHMM_EXPECT_OK(uhmm_forget(at + kBlock / 8, kPage));
         std::vector<std::byte> old(kBlock);
         fill(old.data(), kBlock, 1);
         std::memcpy(at + kBlock / 8, old.data() + reinterpret_cast<std::uintptr_t>(at) % kBlock + kBlock / 8, kPage);
       }},
  };
  with_both([&](bool) {
    for (const Parting& parting : partings) {
      for (const std::size_t offset : {std::size_t{0}, kBlock / 4, kBlock / 2}) {
        SCOPED_TRACE(std::string(parting.name) + " at " + std::to_string(offset));
        const HugeMemory memory(1);
        UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock, 1, nullptr));
        ASSERT_EQ(huge_there(memory.data(), kBlock), kPagesOfBlock);
        parting.part(memory.data() + offset);
        constexpr std::size_t kPiece = kBlock / 32;
        for (std::size_t at = 0; at < kBlock; at += kPiece) {
          uhmm_page_info pages[kPiece / kPage];
          std::size_t count = 0;
          if (uhmm_snapshot(memory.data() + at, kPiece, pages, std::size(pages), &count) != UHMM_OK) continue;
          for (const uhmm_page_info& page : pages) EXPECT_EQ(page.huge, 0) << at;
        }
        EXPECT_EQ(first_wrong(memory.data(), kBlock, 1), kBlock);
        // Pieces of a range that was cut.
        UHMM_EXPECT_OK(uhmm_unregister_pages(memory.data(), kBlock));
        ASSERT_EQ(mprotect(memory.data(), kBlock, PROT_READ | PROT_WRITE), 0);
      }
    }
  });
}

TEST_F(HugePages, GoAsSinglePagesWhenThereIsNoRoomForOne) {
  with_both([&](bool) {
    const HugeMemory memory(1);
    inject::arm(inject::Point::HugePage, 1);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock, 1, nullptr));
    EXPECT_TRUE(inject::fired(inject::Point::HugePage));
    EXPECT_EQ(pages_in_state(memory.data(), kBlock, UHMM_PAGE_DEVICE), kPagesOfBlock);
    EXPECT_EQ(huge_there(memory.data(), kBlock), 0u);
    EXPECT_EQ(memory.data()[3 * kPage], pattern(1, 3 * kPage)) << "and come so";
    EXPECT_LT(pages_in_state(memory.data(), kBlock, UHMM_PAGE_SYSTEM), kPagesOfBlock);
    EXPECT_EQ(first_wrong(memory.data(), kBlock, 1), kBlock);
  });
}

TEST_F(HugePages, ComeAsSinglePagesWhenNoHugeOneIsToBeHad) {
  with_both([&](bool) {
    const HugeMemory memory(1);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock, 1, nullptr));
    ASSERT_EQ(huge_there(memory.data(), kBlock), kPagesOfBlock);
    inject::arm(inject::Point::HugePage, 1);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock, UHMM_CPU, nullptr));
    EXPECT_TRUE(inject::fired(inject::Point::HugePage));
    EXPECT_FALSE(is_huge(memory.data()));
    EXPECT_EQ(first_wrong(memory.data(), kBlock, 1), kBlock);
  });
}

// A device with room for a part of it only.
TEST_F(HugePages, ArePartedByADeviceThatIsTooSmall) {
  start_with([](uhmm_config& config) { config.device_memory = std::uint64_t{4} << 20; });
  const HugeMemory memory(2);
  BlockMemory held(1);
  fill(held.data(), kBlock, 5);
  UHMM_ASSERT_OK(uhmm_acquire(held.data() + kBlock / 2, kBlock / 2, 1, UHMM_ACCESS_READ_WRITE));
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  (void)uhmm_migrate(memory.data(), memory.bytes(), 1, &result);
  EXPECT_GT(result.pages_moved, 0u);
  EXPECT_LE(huge_there(memory.data(), memory.bytes()), kPagesOfBlock);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_ASSERT_OK(uhmm_release(held.data() + kBlock / 2, kBlock / 2, 1, UHMM_ACCESS_READ_WRITE));
  EXPECT_EQ(first_wrong(held.data(), kBlock, 5), kBlock);
}

TEST_F(HugePages, AreEvictedWhole) {
  start_with([](uhmm_config& config) { config.device_memory = std::uint64_t{4} << 20; });
  const HugeMemory memory(6);
  for (std::size_t i = 0; i < 6; ++i) UHMM_ASSERT_OK(uhmm_migrate(memory.block(i), kBlock, 1, nullptr));
  EXPECT_EQ(huge_there(memory.data(), memory.bytes()), 2 * kPagesOfBlock);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(is_huge(memory.block(i))) << i;
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

// A child shares the page until somebody writes: that must not be where the migration ends.
TEST_F(HugePages, OfAProcessThatHasForked) {
  with_both([&](bool) {
    const HugeMemory memory(1);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), kBlock, 1, nullptr));
    int gate[2];
    ASSERT_EQ(pipe(gate), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(gate[1]);
      char byte = 0;
      (void)!read(gate[0], &byte, 1);
      _exit(first_wrong(memory.data(), kBlock, 1) == kBlock ? 0 : 1);
    }
    close(gate[0]);
    UHMM_EXPECT_OK(uhmm_migrate(memory.data(), kBlock, 1, nullptr));
    device_increment(memory.data(), kBlock);
    EXPECT_EQ(first_wrong(memory.data(), kBlock, 2), kBlock);
    close(gate[1]);
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  });
}

// ------------------------------------------------------------------------------------------ the kernel's page table

struct Entries {
  std::size_t present = 0;
  std::size_t swapped = 0;
};
Entries entries_of(const std::byte* data, std::size_t bytes) {
  std::vector<std::uint64_t> words(bytes / kPage);
  const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(pread(file, words.data(), words.size() * 8,
                  static_cast<off_t>(reinterpret_cast<std::uintptr_t>(data) / kPage * 8)),
            static_cast<ssize_t>(words.size() * 8));
  close(file);
  Entries found;
  for (const std::uint64_t word : words) {
    found.present += word >> 63;
    found.swapped += word >> 62 & 1;
  }
  return found;
}

class DeviceEntries : public testing::WithParamInterface<std::uint32_t>, public RuntimeTest {
 protected:
  void SetUp() override {
    uhmm_config config = test_config();
    config.flags |= UHMM_CONFIG_DEVICE_ENTRIES | GetParam();
    start(config);
    auto probe = os::Userfaultfd::open(os::Rung::Any, os::kMarkAbsent);
    if (!probe.ok() || !probe->features().marks_absent) GTEST_SKIP() << "the kernel can't mark absent pages";
  }
};

TEST_P(DeviceEntries, StandForPagesOnADevice) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{40}, 2 * kPagesOfBlock}) {
    SCOPED_TRACE(count);
    const Memory memory(count * kPage);
    (void)madvise(memory.data(), memory.bytes(), MADV_NOHUGEPAGE);
    fill(memory.data(), memory.bytes(), 1);
    for (int i = 0; i < 3; ++i) {
      UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
      EXPECT_EQ(entries_of(memory.data(), memory.bytes()).present, 0u);
      EXPECT_EQ(entries_of(memory.data(), memory.bytes()).swapped, count);
      UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
      EXPECT_EQ(entries_of(memory.data(), memory.bytes()).present, count);
      EXPECT_EQ(entries_of(memory.data(), memory.bytes()).swapped, 0u);
    }
    device_increment(memory.data(), memory.bytes());
    EXPECT_EQ(entries_of(memory.data(), memory.bytes()).swapped, count);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes()) << "by faults";
    EXPECT_EQ(entries_of(memory.data(), memory.bytes()).present, count);
  }
}

TEST_P(DeviceEntries, EndWithThePage) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), 2 * kPage));
  EXPECT_EQ(entries_of(memory.data(), memory.bytes()).swapped, 6u);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_NONE), 2u);
  for (std::size_t i = 0; i < 2 * kPage; ++i) ASSERT_EQ(memory.data()[i], std::byte{0});
  // On the device only: no page of the CPU's ever was there.
  Memory untouched(4 * kPage);
  device_fill(untouched.data(), untouched.bytes(), 3);
  EXPECT_EQ(entries_of(untouched.data(), untouched.bytes()).swapped, 4u);
  UHMM_ASSERT_OK(uhmm_unregister_pages(untouched.page(1), kPage));
  EXPECT_EQ(first_wrong(untouched.data(), untouched.bytes(), 3), untouched.bytes());
  UHMM_ASSERT_OK(uhmm_unregister_pages(untouched.data(), untouched.bytes()));
  EXPECT_EQ(entries_of(untouched.data(), untouched.bytes()).swapped, 0u);
  // A copy is none of them.
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
  std::byte byte{};
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.page(4), &byte, 1, nullptr));
  EXPECT_EQ(entries_of(memory.page(4), kPage).present, 1u);
}

void trap_kernel(const uhmm_kernel_item*, void*) { __builtin_trap(); }

TEST_P(DeviceEntries, GiveWayToWhatIsLost) {
  may_lose_data_ = true;
  Memory memory(4 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  EXPECT_NE(run(trap_kernel, SpanArgs{}), UHMM_OK);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(raised_by_read(memory.page(i)).signal, SIGBUS) << i;
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
  for (std::size_t i = 0; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], std::byte{0});
}

INSTANTIATE_TEST_SUITE_P(Modes, DeviceEntries, testing::Values(0u, UHMM_CONFIG_NO_MOVE),
                         [](const auto& mode) { return mode.param == 0 ? "Move" : "NoMove"; });

}  // namespace
}  // namespace uhmm::test
