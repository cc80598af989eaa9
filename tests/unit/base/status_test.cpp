// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/status.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

namespace uhmm {
namespace {

TEST(Status, carries_a_code_and_a_detail) {
  EXPECT_TRUE(Status().ok());
  const Status status = fail(UHMM_ERR_BUSY, "page %d of %s", 7, "x");
  EXPECT_FALSE(status);
  EXPECT_EQ(status.code(), UHMM_ERR_BUSY);
  EXPECT_STREQ(last_detail(), "page 7 of x");
}

TEST(Status, detail_is_cut_not_overrun) {
  const std::string text(1000, 'a');
  EXPECT_FALSE(fail(UHMM_ERR_INVALID, "%s", text.c_str()).ok());
  EXPECT_EQ(std::strlen(last_detail()), kDetailBytes - 1);
  set_detail(text.c_str());
  EXPECT_EQ(std::strlen(last_detail()), kDetailBytes - 1);
  set_detail(nullptr);
  EXPECT_STREQ(last_detail(), "");
}

TEST(Status, detail_may_quote_itself) {
  set_detail("inner");
  EXPECT_FALSE(fail(UHMM_ERR_INVALID, "outer: %s", last_detail()).ok());
  EXPECT_STREQ(last_detail(), "outer: inner");
  set_detail(last_detail() + 7);
  EXPECT_STREQ(last_detail(), "inner");
}

TEST(Status, detail_belongs_to_the_thread) {
  set_detail("mine");
  std::thread([] {
    EXPECT_STREQ(last_detail(), "");
    set_detail("other");
  }).join();
  EXPECT_STREQ(last_detail(), "mine");
}

TEST(Status, errno_becomes_a_status) {
  EXPECT_EQ(fail_errno("mmap", ENOMEM).code(), UHMM_ERR_NO_MEMORY);
  EXPECT_STREQ(last_detail(), "mmap: Cannot allocate memory (ENOMEM)");
  EXPECT_EQ(fail_errno("open", EACCES).code(), UHMM_ERR_PERMISSION);
  EXPECT_EQ(fail_errno("open", EPERM).code(), UHMM_ERR_PERMISSION);
  EXPECT_EQ(fail_errno("read", EIO).code(), UHMM_ERR_SYSTEM);
  EXPECT_EQ(fail_errno("odd", 99999).code(), UHMM_ERR_SYSTEM);
  EXPECT_STREQ(last_detail(), "odd: error 99999");
}

TEST(Result, value_or_status) {
  Result<std::unique_ptr<int>> good(std::make_unique<int>(5));
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(**good, 5);
  EXPECT_TRUE(good.status().ok());
  const Result<int> bad(UHMM_ERR_NO_DEVICE);
  EXPECT_FALSE(bad);
  EXPECT_EQ(bad.status().code(), UHMM_ERR_NO_DEVICE);
}

Status tried(Status inner, bool& reached) {
  UHMM_TRY(inner);
  reached = true;
  return {};
}

TEST(Result, try_returns_early) {
  bool reached = false;
  EXPECT_EQ(tried(UHMM_ERR_FAULT, reached).code(), UHMM_ERR_FAULT);
  EXPECT_FALSE(reached);
  EXPECT_TRUE(tried({}, reached).ok());
  EXPECT_TRUE(reached);
}

}  // namespace
}  // namespace uhmm
