// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/conformance.hpp"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "tools/uhmm/run.hpp"
#include "tools/uhmm/suite_report.hpp"

namespace uhmm::tool {
namespace {

namespace fs = std::filesystem;

// A test that fails after its set-up repeats its message until its own timeout of 30 seconds.
constexpr std::size_t kMostOutput = std::size_t{4} << 20;
constexpr std::chrono::seconds kMostTime{300};

struct Ended {
  int status = -1;  // as from waitpid(2); -1: it could not be started
  std::string output;
};

// Runs a command with stdout and stderr in one, in a process group of its own that ends with it.
Ended run_command(std::vector<std::string> words, std::vector<std::string> environment) {
  Ended ended;
  int ends[2];
  if (pipe(ends) != 0) return ended;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ends[1], 1);
  posix_spawn_file_actions_adddup2(&files, ends[1], 2);
  posix_spawn_file_actions_addclose(&files, ends[0]);
  posix_spawn_file_actions_addclose(&files, ends[1]);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<char*> variables;
  for (std::string& word : environment) variables.push_back(word.data());
  variables.push_back(nullptr);
  pid_t process = -1;
  const int error = posix_spawnp(&process, arguments[0], &files, &attributes, arguments.data(),
                                 environment.empty() ? environ : variables.data());
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    ended.output = words[0] + ": " + std::strerror(error);
    return ended;
  }
  const auto until = std::chrono::steady_clock::now() + kMostTime;
  std::vector<char> buffer(65536);
  bool in_time = true;
  for (;;) {
    pollfd waiting{ends[0], POLLIN, 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    in_time = left.count() > 0 && poll(&waiting, 1, static_cast<int>(left.count())) != 0;
    if (!in_time) break;
    const ssize_t got = read(ends[0], buffer.data(), buffer.size());
    if (got <= 0) break;
    if (ended.output.size() < kMostOutput) ended.output.append(buffer.data(), static_cast<std::size_t>(got));
  }
  close(ends[0]);
  if (!in_time) kill(-process, SIGKILL);
  while (waitpid(process, &ended.status, 0) < 0 && errno == EINTR) {
  }
  kill(-process, SIGKILL);  // what it left behind
  return ended;
}

bool succeeded(const Ended& ended) { return WIFEXITED(ended.status) && WEXITSTATUS(ended.status) == 0; }

fs::path cache_folder(const std::string& asked) {
  if (!asked.empty()) return asked;
  if (const char* cache = getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/') return fs::path(cache) / "uhmm";
  if (const char* home = getenv("HOME"); home != nullptr && *home == '/') return fs::path(home) / ".cache" / "uhmm";
  return fs::path("/var/tmp") / ("uhmm-" + std::to_string(getuid()));
}

// Whoever else may write there could have this user run what they like.
bool is_ours(const fs::path& folder) {
  struct stat found {};
  return lstat(folder.c_str(), &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == getuid() &&
         (found.st_mode & S_IWOTH) == 0;
}

// The suite as a program, in a folder that is named after the source it was made from. "": it can't be had.
std::string build_suite(const ConformanceOptions& options) {
  std::error_code error;
  const auto size = fs::file_size(options.source, error);
  if (error) {
    std::fprintf(stderr,
                 "uhmm: %s: %s\nThe tests are part of the kernel's source. On Debian 12:\n    apt-get install "
                 "linux-source-6.1\n",
                 options.source.c_str(), error.message().c_str());
    return "";
  }
  const auto changed = fs::last_write_time(options.source, error).time_since_epoch().count();
  const fs::path cache = cache_folder(options.cache);
  fs::create_directories(cache, error);
  if (!is_ours(cache)) {
    std::fprintf(stderr, "uhmm: %s is not a folder of this user that others can't write\n", cache.c_str());
    return "";
  }
  const fs::path folder = cache / ("hmm-tests-" + std::to_string(size) + "-" + std::to_string(changed));
  const fs::path program = folder / "hmm-tests";
  if (fs::exists(program, error)) return program.string();
  // Made under another name: who finds the program finds a whole one.
  const fs::path work = folder.string() + "." + std::to_string(getpid());
  fs::create_directories(work, error);
  std::fprintf(stderr, "uhmm: building the suite from %s\n", options.source.c_str());
  const std::string tests = "*/tools/testing/selftests/";
  Ended done =
      run_command({"tar", "-xf", options.source, "-C", work.string(), "--strip-components=1", "--wildcards",
                   tests + "*m/hmm-tests.c", tests + "kselftest*.h", "*/lib/test_hmm_uapi.h", "*/mm/gup_test.h"},
                  {});
  fs::path source;
  for (const char* place : {"vm", "mm"})
    if (const fs::path found = work / "tools/testing/selftests" / place / "hmm-tests.c"; fs::exists(found, error))
      source = found;
  if (succeeded(done))
    done = run_command(
        {"gcc", "-O1", "-D_GNU_SOURCE", "-w", "-I" + work.string(), "-I" + (work / "tools/testing/selftests").string(),
         "-o", (work / "hmm-tests").string(), source.string(), "-lpthread"},
        {});
  if (succeeded(done)) fs::rename(work, folder, error);
  if (fs::exists(program, error)) return program.string();
  std::fprintf(stderr, "uhmm: the suite could not be built: %s\n", done.output.c_str());
  fs::remove_all(work, error);
  return "";
}

// Huge pages for as long as the object lives, if this user may reserve some.
class HugePages {
 public:
  HugePages() : before_(read()) {
    if (before_ >= 0 && before_ < kWanted) write(kWanted);
    there_ = read() > 0;
  }
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;
  ~HugePages() {
    if (before_ >= 0 && read() != before_) write(before_);
  }
  bool there() const { return there_; }

 private:
  static constexpr long kWanted = 4;
  static constexpr const char* kFile = "/proc/sys/vm/nr_hugepages";
  static long read() {
    long pages = -1;
    std::ifstream(kFile) >> pages;
    return pages;
  }
  static void write(long pages) { std::ofstream(kFile) << pages; }

  const long before_;
  bool there_ = false;
};

nlohmann::json to_json(const SuiteReport& report) {
  using enum TestResult;
  nlohmann::json out;
  out["planned"] = report.planned;
  for (const bool coherent : {false, true})
    out[coherent ? "coherent" : "private"] = {{"passed", report.count(Passed, coherent)},
                                              {"failed", report.count(Failed, coherent)},
                                              {"skipped", report.count(Skipped, coherent)}};
  out["tests"] = nlohmann::json::array();
  for (const SuiteTest& test : report.tests) {
    const char* result = test.result == Passed ? "passed" : test.result == Failed ? "failed" : "skipped";
    out["tests"].push_back({{"name", test.name}, {"result", result}, {"why", test.why}});
  }
  return out;
}

}  // namespace

int conformance(const ConformanceOptions& options) {
  const std::string library = find_preload_library(true);
  if (library.empty()) {
    std::fprintf(stderr, "uhmm: the library for `uhmm run` is not where this program's installation has it\n");
    return 2;
  }
  const std::string program = build_suite(options);
  if (program.empty()) return 2;
  const HugePages huge;
  const auto start = std::chrono::steady_clock::now();
  const Ended with = run_command({program}, preload_environment(library, true));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const Ended without = run_command({program}, {});
  const SuiteReport report = read_suite(with.output, huge.there());
  const SuiteReport control = read_suite(without.output, huge.there());
  // A kernel with its own test module passes without us; then the control run says nothing.
  const bool vacuous = control.count(TestResult::Passed) != 0;
  if (options.json) {
    const nlohmann::json out = {{"uhmm", to_json(report)},
                                {"control", to_json(control)},
                                {"huge_pages", huge.there()},
                                {"seconds", took.count()}};
    std::printf("%s\n", out.dump(2).c_str());
  } else {
    std::printf("%s%zu tests in %.1f s\n", suite_table(report, control).c_str(), report.planned, took.count());
    if (vacuous) std::printf("The control run passed tests: this kernel has mirror devices of its own.\n");
  }
  return report.complete() && !vacuous ? 0 : 1;
}

}  // namespace uhmm::tool
