// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/suite_report.hpp"

#include <algorithm>
#include <cstdlib>

namespace uhmm::tool {
namespace {

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// The rest of a line that begins so, after any "#" and spaces.
bool after(std::string_view line, std::string_view start, std::string_view* rest) {
  if (!line.starts_with(start)) return false;
  *rest = trim(line.substr(start.size()));
  return true;
}

bool needs_huge_pages(const std::string& name) {
  return name.ends_with(".compound") || name.ends_with(".anon_write_hugetlbfs");
}

// "ok 12 name" without "ok": the name.
std::string name_of(std::string_view rest) {
  const auto space = rest.find(' ');
  std::string_view name = space == std::string_view::npos ? std::string_view{} : trim(rest.substr(space));
  return std::string(name.substr(0, name.find(" #")));
}

void pad(std::string& out, std::size_t number) {
  const std::string digits = std::to_string(number);
  out += std::string(digits.size() < 9 ? 9 - digits.size() : 1, ' ') + digits;
}

void row(std::string& out, const char* name, std::size_t passed, std::size_t failed, std::size_t skipped) {
  out += name;
  out += std::string(22 - std::string_view(name).size(), ' ');
  for (const std::size_t number : {passed, failed, skipped}) pad(out, number);
  out += '\n';
}

}  // namespace

std::size_t SuiteReport::count(TestResult result) const {
  return static_cast<std::size_t>(
      std::count_if(tests.begin(), tests.end(), [&](const SuiteTest& test) { return test.result == result; }));
}

std::size_t SuiteReport::count(TestResult result, bool coherent) const {
  return static_cast<std::size_t>(std::count_if(tests.begin(), tests.end(), [&](const SuiteTest& test) {
    return test.result == result && test.coherent() == coherent;
  }));
}

SuiteReport read_suite(std::string_view output, bool huge_pages) {
  SuiteReport report;
  std::string running;
  std::string skip;
  std::string said;
  const auto end_test = [&](std::string name, TestResult result, std::string why) {
    report.tests.push_back({std::move(name), result, std::move(why)});
    running.clear();
    skip.clear();
    said.clear();
  };
  while (!output.empty()) {
    const auto newline = output.find('\n');
    const std::string_view line = output.substr(0, newline);
    output = newline == std::string_view::npos ? std::string_view{} : output.substr(newline + 1);
    std::string_view rest;
    if (after(line, "1..", &rest)) {
      report.planned = std::strtoul(std::string(rest).c_str(), nullptr, 10);
    } else if (after(line, "not ok ", &rest)) {
      end_test(name_of(rest), TestResult::Failed, said);
    } else if (after(line, "ok ", &rest)) {
      const std::string name = name_of(rest);
      if (const auto word = rest.find(" # SKIP"); word != std::string_view::npos)
        skip = "it says so" + std::string(rest.substr(word + 7));
      if (skip.empty() && !huge_pages && needs_huge_pages(name)) skip = "no huge page to test with";
      end_test(name, skip.empty() ? TestResult::Passed : TestResult::Skipped, skip);
    } else if (line.starts_with('#')) {
      const std::string_view remark = trim(line.substr(1));
      if (after(remark, "RUN ", &rest)) {
        if (!running.empty()) end_test(running, TestResult::Failed, "it did not end");
        running = std::string(rest.substr(0, rest.find(" ...")));
      } else if (after(remark, "SKIP ", &rest)) {
        skip = std::string(rest);
      } else if (said.empty() && !running.empty()) {
        said = std::string(remark);
      }
    }
  }
  if (!running.empty()) end_test(running, TestResult::Failed, "it did not end");
  return report;
}

std::string suite_table(const SuiteReport& report, const SuiteReport& control) {
  using enum TestResult;
  std::string out = std::string(22, ' ') + "   passed   failed  skipped\n";
  row(out, "private", report.count(Passed, false), report.count(Failed, false), report.count(Skipped, false));
  row(out, "coherent", report.count(Passed, true), report.count(Failed, true), report.count(Skipped, true));
  row(out, "all", report.count(Passed), report.count(Failed), report.count(Skipped));
  row(out, "control, without uhmm", control.count(Passed), control.count(Failed), control.count(Skipped));
  for (const SuiteTest& test : report.tests)
    if (test.result != Passed)
      out += std::string(test.result == Failed ? "failed:  " : "skipped: ") + test.name + ": " + test.why + "\n";
  return out;
}

}  // namespace uhmm::tool
