// SPDX-License-Identifier: Apache-2.0
// A child whose parent has ended puts what it is owed into its memory itself.
#include "runtime/engine/fork_snapshot.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "runtime/os/process.hpp"

namespace uhmm::engine {
namespace {

constexpr std::uint32_t kPages = 64;

class SnapshotWithoutUserfaultfd : public testing::Test {
 protected:
  void SetUp() override {
    void* memory = mmap(nullptr, 2 * kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    begin_ = static_cast<std::byte*>(memory);
    block_ = VirtAddr{begin_ + kBlockBytes - 1}.block_floor();
    snapshot_ = ForkSnapshot::make(1, 0);
    ASSERT_NE(snapshot_, nullptr);
    files_.devices[0] = os::make_memory_file("uhmm-unit", std::uint64_t{1} << 47);
    ASSERT_GE(files_.devices[0], 0);
    const std::vector<std::byte> contents(kPages * kPageBytes, std::byte{1});
    ASSERT_EQ(pwrite(files_.devices[0], contents.data(), contents.size(), static_cast<off_t>(block_.value)),
              static_cast<ssize_t>(contents.size()));
    snapshot_->add_owed(block_, DeviceIndex{0}, PageMask::of({0, kPages}));
  }
  void TearDown() override {
    close(files_.devices[0]);
    ForkSnapshot::unmap(snapshot_);
    munmap(begin_, 2 * kBlockBytes);
  }
  std::byte* page(std::uint32_t i) const { return static_cast<std::byte*>((block_ + i * kPageBytes).pointer()); }
  SnapshotReader reader() { return {*snapshot_, files_, -1, buffer_.data(), true}; }

  std::byte* begin_ = nullptr;
  VirtAddr block_;
  ForkSnapshot* snapshot_ = nullptr;
  SnapshotFiles files_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(SnapshotReader::kBufferBytes);
};

TEST_F(SnapshotWithoutUserfaultfd, WhatIsThereAlreadyIsNewer) {
  std::memset(page(3), 2, kPageBytes);
  std::memset(page(kPages - 1), 2, kPageBytes);
  reader().deliver_all();
  EXPECT_EQ(snapshot_->left(), 0u);
  for (std::uint32_t i = 0; i < kPages; ++i)
    EXPECT_EQ(page(i)[i], i == 3 || i == kPages - 1 ? std::byte{2} : std::byte{1}) << i;
}

TEST_F(SnapshotWithoutUserfaultfd, WhatWasMovedIsDeliveredWhereItIs) {
  SnapshotReader to_last = reader();
  EXPECT_EQ(to_last.deliver_some(snapshot_->entries()[0], PageMask::of({5, 1}), 100 * kPageBytes), 0);
  EXPECT_EQ(snapshot_->left(), kPages - 1);
  EXPECT_EQ(page(105)[0], std::byte{1});
  EXPECT_EQ(page(5)[0], std::byte{0});
}

}  // namespace
}  // namespace uhmm::engine
