// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "runtime/base/status.hpp"
#include "uhmm/uhmm.h"

namespace {

TEST(CText, statuses) {
  std::set<std::string> texts;
#define UHMM_X(name, value, text)              \
  EXPECT_STREQ(uhmm_status_name(name), #name); \
  EXPECT_STREQ(uhmm_status_text(name), text);  \
  EXPECT_TRUE(texts.insert(text).second) << text;
  UHMM_STATUS_LIST(UHMM_X)
#undef UHMM_X
  EXPECT_STREQ(uhmm_status_name(static_cast<uhmm_status>(31)), "UHMM_ERR_?");
  EXPECT_STREQ(uhmm_status_text(static_cast<uhmm_status>(31)), "unknown status");
}

TEST(CText, causes) {
  unsigned count = 0;
#define UHMM_X(name, value, text)            \
  EXPECT_STREQ(uhmm_cause_text(name), text); \
  EXPECT_EQ(value, count++);
  UHMM_CAUSE_LIST(UHMM_X)
#undef UHMM_X
  EXPECT_EQ(count, unsigned{UHMM_CAUSE_COUNT});
  EXPECT_STREQ(uhmm_cause_text(UHMM_CAUSE_COUNT), "?");
}

TEST(CText, events) {
  unsigned count = 0;
#define UHMM_X(name, value, text)            \
  EXPECT_STREQ(uhmm_event_text(name), text); \
  EXPECT_EQ(value, count++);
  UHMM_EVENT_LIST(UHMM_X)
#undef UHMM_X
  EXPECT_LE(count, 64u) << "a subscription names kinds by bits";
  EXPECT_STREQ(uhmm_event_text(static_cast<uhmm_event_kind>(31)), "?");
  static_assert(sizeof(uhmm_event) == 64);
}

TEST(CText, detail_is_the_threads) {
  EXPECT_FALSE(uhmm::fail(UHMM_ERR_BUSY, "because").ok());
  EXPECT_STREQ(uhmm_error_detail(), "because");
}

}  // namespace
