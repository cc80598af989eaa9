// SPDX-License-Identifier: Apache-2.0
#include "runtime/policy/placement.hpp"

#include <gtest/gtest.h>

namespace uhmm::policy {
namespace {

TEST(Placement, AdviceMakesAProcessorKeepItsCopy) {
  state::Advice advice;
  EXPECT_FALSE(keeps_copy(advice, 1));
  advice.preferred.store(1);
  EXPECT_TRUE(keeps_copy(advice, 1));
  EXPECT_FALSE(keeps_copy(advice, 2));
  advice.accessed_by.store(1u << 2);
  EXPECT_TRUE(keeps_copy(advice, 2));
  EXPECT_FALSE(keeps_copy(advice, 3));
  advice.read_mostly.store(true);
  EXPECT_TRUE(keeps_copy(advice, 3));
}

TEST(Placement, AReadTakesThePageOnceWritesAreCertain) {
  state::Range range({VirtAddr{kPageBytes}, VirtAddr{2 * kPageBytes}}, state::Backing::Private);
  EXPECT_FALSE(moves_on_read(range));
  learn_device_write(range.device_locality, true, 512);
  EXPECT_TRUE(moves_on_read(range));
  range.advice.preferred.store(UHMM_CPU);
  EXPECT_FALSE(moves_on_read(range));
  range.advice.preferred.store(~0u);
  for (int i = 0; i < 3; ++i) learn_device_write(range.device_locality, false, 1);
  EXPECT_FALSE(moves_on_read(range));
}

}  // namespace
}  // namespace uhmm::policy
