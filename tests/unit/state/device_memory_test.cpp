// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/device_memory.hpp"

#include <gtest/gtest.h>

#include "runtime/policy/eviction.hpp"

namespace uhmm::state {
namespace {

const auto kAny = [](const BlockDevice&) { return true; };

TEST(DeviceMemory, PromisesNeverExceedTheQuota) {
  DeviceMemory memory;
  memory.reset(100);
  EXPECT_FALSE(memory.promised(0));
  EXPECT_TRUE(memory.reserve(0, 60));
  EXPECT_TRUE(memory.promised(0));
  EXPECT_FALSE(memory.promised(1));
  EXPECT_FALSE(memory.reserve(0, 41));
  EXPECT_EQ(memory.reserve_some(0, 50), 40u);
  EXPECT_EQ(memory.reserve_some(0, 1), 0u);
  memory.settle(0, 60, 30);
  EXPECT_TRUE(memory.promised(0));
  memory.settle(0, 40, 0);
  EXPECT_FALSE(memory.promised(0));
  EXPECT_TRUE(memory.reserve(0, 70));
  memory.release(0, 30);
  EXPECT_EQ(memory.reserve_some(0, 100), 30u);
}

TEST(DeviceMemory, APoolsQuotaComesFromTheDefaultPoolAndGoesBack) {
  DeviceMemory memory;
  memory.reset(100);
  EXPECT_FALSE(memory.add_pool(1, 101));
  ASSERT_TRUE(memory.add_pool(1, 70));
  EXPECT_FALSE(memory.reserve(0, 31));
  EXPECT_TRUE(memory.reserve(1, 70));
  EXPECT_TRUE(memory.pressed(1));
  EXPECT_FALSE(memory.pressed(0));
  memory.release(1, 70);
  memory.remove_pool(1);
  EXPECT_TRUE(memory.reserve(0, 100));
}

TEST(DeviceMemory, VictimsAreTheOldestInactiveThenTheOldestActive) {
  DeviceMemory memory;
  memory.reset(100);
  BlockDevice parts[4];
  for (BlockDevice& part : parts) memory.refresh(&part, true, true, true);
  EXPECT_EQ(policy::choose_victim(memory, 0, kAny), &parts[0]);
  memory.refresh(&parts[0], true, true, true);  // used again
  EXPECT_EQ(policy::choose_victim(memory, 0, kAny), &parts[1]);
  memory.place(&parts[3], MemoryList::Inactive);
  EXPECT_EQ(policy::choose_victim(memory, 0, kAny), &parts[3]);
  EXPECT_EQ(policy::choose_victim(memory, 0, [&](const BlockDevice& part) { return &part != &parts[3]; }), &parts[1]);
  EXPECT_EQ(policy::choose_victim(memory, 1, kAny), nullptr);  // another pool's
  for (BlockDevice& part : parts) memory.forget(&part);
  EXPECT_EQ(policy::choose_victim(memory, 0, kAny), nullptr);
}

TEST(DeviceMemory, AgingBeginsUnderPressureOnly) {
  DeviceMemory memory;
  memory.reset(100);
  BlockDevice part;
  memory.refresh(&part, true, true, true);
  EXPECT_EQ(policy::choose_for_aging(memory, 0, kAny), nullptr);
  ASSERT_TRUE(memory.reserve(0, 90));
  EXPECT_EQ(policy::choose_for_aging(memory, 0, kAny), &part);
  memory.place(&part, MemoryList::Inactive);
  EXPECT_EQ(policy::choose_for_aging(memory, 0, kAny), nullptr);
}

TEST(DeviceMemory, WhatABlockHoldsDecidesItsList) {
  DeviceMemory memory;
  memory.reset(100);
  BlockDevice part;
  memory.refresh(&part, true, true, false);
  EXPECT_EQ(part.list, MemoryList::Inactive);
  memory.refresh(&part, true, true, true);
  EXPECT_EQ(part.list, MemoryList::Active);
  memory.refresh(&part, true, true, false);
  EXPECT_EQ(part.list, MemoryList::Active);
  memory.refresh(&part, false, true, false);
  EXPECT_EQ(part.list, MemoryList::Retained);
  memory.refresh(&part, false, false, false);
  EXPECT_EQ(part.list, MemoryList::None);
}

TEST(DeviceMemory, StaleBlocksAreListedOnceAndOnlyWhileTheDeviceIsIdle) {
  DeviceMemory memory;
  memory.reset(100);
  BlockDevice first, second;
  EXPECT_FALSE(memory.defer_unmap(&first, [] { return true; }));
  EXPECT_EQ(memory.pop_stale(), nullptr);
  EXPECT_TRUE(memory.defer_unmap(&first, [] { return false; }));
  EXPECT_TRUE(memory.defer_unmap(&first, [] { return false; }));
  EXPECT_TRUE(memory.defer_unmap(&second, [] { return false; }));
  memory.forget(&second);
  EXPECT_EQ(memory.pop_stale(), &first);
  EXPECT_EQ(memory.pop_stale(), nullptr);
  memory.push_stale(&first);
  EXPECT_EQ(memory.pop_stale(), &first);
}

}  // namespace
}  // namespace uhmm::state
