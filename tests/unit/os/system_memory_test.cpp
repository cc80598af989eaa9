// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/system_memory.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

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

}  // namespace
}  // namespace uhmm::os
