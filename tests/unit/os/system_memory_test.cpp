// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/system_memory.hpp"

#include <gtest/gtest.h>

#include <unistd.h>
#include <vector>

namespace uhmm::os {
namespace {

TEST(SystemMemory, IsSomeAndNotMoreThanTheMachineHas) {
  const SystemMemory memory = system_memory();
  const std::uint64_t machine =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  EXPECT_GT(memory.total, std::uint64_t{16} << 20);
  EXPECT_LE(memory.total, machine);
  EXPECT_GT(memory.available, 0u);
  EXPECT_LE(memory.available, memory.total);
}

TEST(OwnMemory, GrowsAsMemoryIsTouched) {
  OwnMemory own;
  ASSERT_EQ(own.open(), 0);
  const std::uint64_t before = own.private_bytes();
  EXPECT_GT(before, 0u);
  const std::vector<char> touched(64 << 20, 'x');
  // The kernel's counts of each CPU are added up now and then: most of it is seen.
  EXPECT_GT(own.private_bytes(), before + (56 << 20));
  EXPECT_EQ(touched.back(), 'x');
}

}  // namespace
}  // namespace uhmm::os
