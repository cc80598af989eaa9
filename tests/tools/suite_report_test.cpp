// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/suite_report.hpp"

#include <gtest/gtest.h>

namespace uhmm::tool {
namespace {

constexpr const char* kOutput = R"(TAP version 13
1..6
# Starting 6 tests from 5 test cases.
#  RUN           hmm.hmm_device_private.open_close ...
#            OK  hmm.hmm_device_private.open_close
ok 1 hmm.hmm_device_private.open_close
#  RUN           hmm.hmm_device_private.anon_read ...
# hmm-tests.c:137:anon_read:Expected self->fd (-1) >= 0 (0)
# anon_read: Test terminated by assertion
#          FAIL  hmm.hmm_device_private.anon_read
not ok 2 hmm.hmm_device_private.anon_read
#  RUN           hmm.hmm_device_private.compound ...
#            OK  hmm.hmm_device_private.compound
ok 3 hmm.hmm_device_private.compound
#  RUN           hmm.hmm_device_coherent.open_close ...
#      SKIP      DEVICE_COHERENT not available
#            OK  hmm.hmm_device_coherent.open_close
ok 4 hmm.hmm_device_coherent.open_close
#  RUN           hmm.hmm_device_coherent.anon_read ...
ok 5 hmm.hmm_device_coherent.anon_read # SKIP by TAP's own word
#  RUN           hmm.hmm_device_coherent.migrate ...
)";

TEST(SuiteReport, EveryTestHasItsOwnResult) {
  const SuiteReport report = read_suite(kOutput, true);
  EXPECT_EQ(report.planned, 6u);
  ASSERT_EQ(report.tests.size(), 6u);
  EXPECT_EQ(report.tests[0].result, TestResult::Passed);
  EXPECT_EQ(report.tests[0].name, "hmm.hmm_device_private.open_close");
  EXPECT_EQ(report.tests[1].result, TestResult::Failed);
  EXPECT_NE(report.tests[1].why.find("Expected self->fd"), std::string::npos);
  EXPECT_EQ(report.tests[2].result, TestResult::Passed);
  EXPECT_EQ(report.tests[3].result, TestResult::Skipped) << "reported as passed, and is not";
  EXPECT_EQ(report.tests[4].name, "hmm.hmm_device_coherent.anon_read");
  EXPECT_EQ(report.tests[5].result, TestResult::Failed) << "begun and never ended";
  EXPECT_FALSE(report.complete());
}

TEST(SuiteReport, WithoutHugePagesTheirTestsPassNothing) {
  const SuiteReport report = read_suite(kOutput, false);
  EXPECT_EQ(report.tests[2].result, TestResult::Skipped);
}

TEST(SuiteReport, ASkipInTapsOwnWordIsOne) {
  EXPECT_EQ(read_suite(kOutput, true).tests[4].result, TestResult::Skipped);
}

TEST(SuiteReport, CompleteIsAllThatWasPlanned) {
  EXPECT_FALSE(read_suite("", true).complete());
  EXPECT_FALSE(read_suite("1..2\nok 1 a.b\n", true).complete());
  EXPECT_TRUE(read_suite("1..2\nok 1 a.b\nok 2 a.c\n", true).complete());
  EXPECT_FALSE(read_suite("1..1\nnot ok 1 a.b\n", true).complete());
}

TEST(SuiteReport, TheTableCountsKindsApart) {
  const SuiteReport report = read_suite(kOutput, true);
  const std::string table = suite_table(report, read_suite("1..1\n#  RUN           x ...\n", true));
  EXPECT_NE(table.find("private                       2        1        0\n"), std::string::npos) << table;
  EXPECT_NE(table.find("coherent                      0        1        2\n"), std::string::npos) << table;
  EXPECT_NE(table.find("control, without uhmm         0        1        0\n"), std::string::npos) << table;
  EXPECT_NE(table.find("skipped: hmm.hmm_device_coherent.open_close: DEVICE_COHERENT not available"), std::string::npos)
      << table;
}

}  // namespace
}  // namespace uhmm::tool
