// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/page_details.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>

#include "runtime/os/pins.hpp"

namespace uhmm::os {
namespace {

constexpr std::size_t kPages = 1000;  // more than one read of the pagemap

class PageDetailsTest : public testing::Test {
 protected:
  void SetUp() override {
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory_, MAP_FAILED);
    (void)madvise(memory_, kPages * kPageBytes, MADV_NOHUGEPAGE);
  }
  void TearDown() override { munmap(memory_, kPages * kPageBytes); }
  VirtAddr page(std::size_t i) const { return VirtAddr{memory_ + i * kPageBytes}; }

  std::byte* memory_ = nullptr;
};

TEST_F(PageDetailsTest, TellWhatWasTouched) {
  memory_[3 * kPageBytes] = std::byte{1};
  memory_[900 * kPageBytes] = std::byte{1};
  (void)*static_cast<volatile std::byte*>(memory_ + 5 * kPageBytes);
  std::array<PageDetails, kPages> details;
  ASSERT_TRUE(page_details(page(0), details).ok());
  for (std::size_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(details[i].present, i == 3 || i == 5 || i == 900) << i;
    EXPECT_FALSE(details[i].huge) << i;
    EXPECT_FALSE(details[i].file) << i;
  }
  EXPECT_TRUE(details[3].exclusive);
  EXPECT_FALSE(details[3].zero);
  EXPECT_FALSE(details[5].exclusive) << "everybody's page of zeros";
}

TEST_F(PageDetailsTest, SharedMemoryIsOfAFile) {
  void* shared = mmap(memory_, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(shared, memory_);
  memory_[0] = std::byte{1};
  std::array<PageDetails, 1> details;
  ASSERT_TRUE(page_details(page(0), details).ok());
  EXPECT_TRUE(details[0].present);
  EXPECT_TRUE(details[0].file);
}

TEST_F(PageDetailsTest, BeyondUserSpaceIsAnError) {
  std::array<PageDetails, 1> details;
  EXPECT_FALSE(page_details(VirtAddr{~std::uint64_t{0} << kPageShift}, details).ok());
}

// What pins do is seen by who can't move the page: see tests/api. Here: that they are taken, and refused.
TEST_F(PageDetailsTest, ReferencesToPages) {
  memory_[0] = std::byte{1};
  PinTimes times;
  EXPECT_EQ(reference_pages({page(0), page(16)}, &times), 0);
  EXPECT_NE(times.get_ns, 0u);
  munmap(memory_ + 4 * kPageBytes, kPageBytes);
  EXPECT_NE(reference_pages({page(3), page(5)}, &times), 0);
  const int pinned = pin_pages({page(0), page(2)}, &times);
  if (pinned == ENOSYS || pinned == EPERM) GTEST_SKIP() << "no io_uring here";
  EXPECT_EQ(pinned, 0);
  EXPECT_NE(pin_pages({page(3), page(5)}, &times), 0);
}

}  // namespace
}  // namespace uhmm::os
