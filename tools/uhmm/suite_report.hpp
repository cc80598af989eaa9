// SPDX-License-Identifier: Apache-2.0
// What the output of the kernel's own HMM tests says: a result per test, and no pass that wasn't one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace uhmm::tool {

enum class TestResult { Passed, Failed, Skipped };

struct SuiteTest {
  std::string name;  // "hmm.hmm_device_private.anon_read"
  TestResult result = TestResult::Failed;
  std::string why;  // of a failure or a skip, as far as it was said
  bool coherent() const { return name.find("coherent") != std::string::npos; }
};

struct SuiteReport {
  std::size_t planned = 0;  // as the suite announces it
  std::vector<SuiteTest> tests;

  std::size_t count(TestResult result) const;
  std::size_t count(TestResult result, bool coherent) const;
  // Everything that was planned has passed.
  bool complete() const { return planned != 0 && count(TestResult::Passed) == planned && tests.size() == planned; }
};

// TAP output as kselftest_harness.h prints it: a test that skips is reported there as passed, with a word before it.
// `huge_pages`: could the suite have any? If not, what then passes without having tested anything counts as skipped.
// Tests that were begun and not ended have failed.
SuiteReport read_suite(std::string_view output, bool huge_pages);

// The table for people: private and coherent apart.
std::string suite_table(const SuiteReport& report, const SuiteReport& control);

}  // namespace uhmm::tool
