// SPDX-License-Identifier: Apache-2.0
// What `uhmm doctor` says of machines that are made up here.
#include "tools/uhmm/doctor.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "runtime/os/userfaultfd.hpp"

namespace uhmm::tool {
namespace {

os::Machine best_machine() {
  os::Machine machine;
  machine.kernel = "6.18.0";
  machine.architecture = "x86_64";
  machine.cpus = 2;
  machine.page_bytes = 4096;
  machine.memory_bytes = std::uint64_t{8} << 30;
  machine.features = {true, true, true, true, true, true, true, true, true, true, true, true, true};
  machine.reserved_huge_pages = 4;
  machine.huge_pages = "madvise";
  machine.max_map_count = 1048576;
  machine.unprivileged_userfaultfd = 0;
  machine.overcommit = 0;
  machine.descriptor_limit = 1024;
  return machine;
}

const Finding* find(const std::vector<Finding>& findings, const std::string& name) {
  const auto found = std::ranges::find(findings, name, &Finding::name);
  return found == findings.end() ? nullptr : &*found;
}
std::size_t troubles(const std::vector<Finding>& findings) {
  return static_cast<std::size_t>(std::ranges::count_if(
      findings, [](const Finding& f) { return f.verdict == Verdict::Limit || f.verdict == Verdict::Bad; }));
}

TEST(Doctor, NothingIsWrongWithTheBestMachine) {
  const std::vector<Finding> findings = diagnose(best_machine(), {});
  EXPECT_EQ(troubles(findings), 0u) << as_table(findings);
  EXPECT_NE(as_table(findings).find("uhmm works here.\n"), std::string::npos);
}

struct Lack {
  const char* name;  // of the finding
  Verdict verdict;
  std::function<void(os::Machine&)> take_away;
  const char* fix;  // part of it
};
// Each is the only trouble that is found, and says what it means and what mends it.
TEST(Doctor, EveryLackIsFoundAndHasAMeaningAndAFix) {
  using M = os::Machine;
  const Lack lacks[] = {
      {"machine", Verdict::Limit, [](M& m) { m.architecture = "aarch64"; }, "report"},
      {"page size", Verdict::Bad, [](M& m) { m.page_bytes = 65536; }, "4 KiB"},
      {"userfaultfd", Verdict::Limit,
       [](M& m) {
         m.userfaultfd = {EPERM, EACCES, 0, 0};
       },
       "vm.unprivileged_userfaultfd=1"},
      {"userfaultfd", Verdict::Bad,
       [](M& m) {
         m.userfaultfd = {EPERM, ENOENT, EPERM, 0};
       },
       "seccomp"},
      {"userfaultfd", Verdict::Bad,
       [](M& m) {
         m.userfaultfd = {ENOSYS, ENOENT, ENOSYS, 0};
       },
       "another kernel"},
      {"write protection", Verdict::Limit, [](M& m) { m.features.write_protect = false; }, "5.7"},
      {"shared memory", Verdict::Bad, [](M& m) { m.features.shared_minor = false; }, "5.14"},
      {"protected shared memory", Verdict::Limit, [](M& m) { m.features.shared_write_protect = false; }, "5.19"},
      {"UFFDIO_POISON", Verdict::Limit, [](M& m) { m.features.poison = false; }, "6.6"},
      {"UFFDIO_MOVE", Verdict::Limit, [](M& m) { m.features.move = false; }, "6.8"},
      {"asynchronous write tracking", Verdict::Limit, [](M& m) { m.features.write_protect_async = false; }, "6.7"},
      {"events (fork, remap, remove, unmap)", Verdict::Limit, [](M& m) { m.features.fork_event = false; }, "4.11"},
      {"UFFD_FEATURE_SIGBUS", Verdict::Limit, [](M& m) { m.features.signal = false; }, "4.14"},
      {"UFFD_FEATURE_WP_UNPOPULATED", Verdict::Limit, [](M& m) { m.features.write_protect_absent = false; }, "6.4"},
      {"word of forks", Verdict::Limit, [](M& m) { m.userfaultfd.fork_events = EPERM; }, "cap_sys_ptrace"},
      {"transparent huge pages", Verdict::Limit, [](M& m) { m.huge_pages = "never"; }, "echo madvise >"},
      {"transparent huge pages", Verdict::Limit, [](M& m) { m.huge_pages = ""; }, "CONFIG_TRANSPARENT_HUGEPAGE"},
      {"/proc/self/pagemap", Verdict::Bad, [](M& m) { m.pagemap = EACCES; }, "/proc"},
      {"/proc/self/mem", Verdict::Bad, [](M& m) { m.own_memory = ENOENT; }, "/proc"},
      {"PROCMAP_QUERY", Verdict::Limit, [](M& m) { m.procmap_query = ENOTTY; }, "6.11"},
      {"PAGEMAP_SCAN", Verdict::Limit, [](M& m) { m.pagemap_scan = ENOTTY; }, "6.7"},
      {"io_uring", Verdict::Limit, [](M& m) { m.io_uring = EPERM; }, "io_uring_disabled"},
      {"file size limit", Verdict::Bad, [](M& m) { m.file_bytes_limit = 1u << 30; }, "ulimit -f unlimited"},
      {"open files limit", Verdict::Limit, [](M& m) { m.descriptor_limit = 64; }, "ulimit -n"},
      {"vm.overcommit_memory", Verdict::Limit, [](M& m) { m.overcommit = 2; }, "vm.overcommit_memory=0"},
  };
  for (const Lack& lack : lacks) {
    os::Machine machine = best_machine();
    lack.take_away(machine);
    const std::vector<Finding> findings = diagnose(machine, {});
    const Finding* found = find(findings, lack.name);
    ASSERT_NE(found, nullptr) << lack.name;
    EXPECT_EQ(found->verdict, lack.verdict) << lack.name;
    EXPECT_FALSE(found->meaning.empty()) << lack.name;
    EXPECT_NE(found->fix.find(lack.fix), std::string::npos) << lack.name << ": " << found->fix;
    EXPECT_EQ(troubles(findings), 1u) << as_table(findings);
    const char* last_line = lack.verdict == Verdict::Bad ? "does not work here" : "within the limits";
    EXPECT_NE(as_table(findings).find(last_line), std::string::npos) << lack.name;
  }
}

// What is no trouble for most programs is noted, with what it means and what mends it all the same.
TEST(Doctor, NotesHaveAMeaningAndAFixToo) {
  using M = os::Machine;
  const Lack lacks[] = {
      {"vm.max_map_count", Verdict::Note, [](M& m) { m.max_map_count = 65530; }, "sysctl vm.max_map_count="},
      {"locked memory limit", Verdict::Note, [](M& m) { m.locked_bytes_limit = 8 << 20; }, "ulimit -l"},
      {"reserved huge pages", Verdict::Note, [](M& m) { m.reserved_huge_pages = 0; }, "vm.nr_hugepages"},
      {"GPU", Verdict::Note, [](M&) {}, "driver"},
      {"HMM in the kernel", Verdict::Note, [](M&) {}, "CONFIG_DEVICE_PRIVATE=y"},
  };
  for (const Lack& lack : lacks) {
    os::Machine machine = best_machine();
    lack.take_away(machine);
    Surroundings around;
    around.kernel_hmm = false;
    const std::vector<Finding> findings = diagnose(machine, around);
    const Finding* found = find(findings, lack.name);
    ASSERT_NE(found, nullptr) << lack.name;
    EXPECT_EQ(found->verdict, lack.verdict) << lack.name;
    EXPECT_FALSE(found->meaning.empty()) << lack.name;
    EXPECT_NE(found->fix.find(lack.fix), std::string::npos) << lack.name << ": " << found->fix;
    EXPECT_EQ(troubles(findings), 0u) << as_table(findings);
  }
}

// Nobody is told of a lack without being told what it means and what to do.
TEST(Doctor, NothingBadIsSaidWithoutMeaningAndFix) {
  os::Machine worst;
  worst.userfaultfd = {EPERM, EACCES, 0, EPERM};
  worst.page_bytes = 65536;
  worst.pagemap = worst.own_memory = worst.procmap_query = worst.pagemap_scan = worst.io_uring = EPERM;
  worst.file_bytes_limit = worst.descriptor_limit = worst.locked_bytes_limit = 1;
  worst.max_map_count = 1;
  worst.overcommit = 2;
  Surroundings around;
  around.kernel_hmm = false;
  for (const Finding& finding : diagnose(worst, around)) {
    if (finding.verdict == Verdict::Good || finding.name == "kernel") continue;
    EXPECT_FALSE(finding.meaning.empty()) << finding.name;
    EXPECT_FALSE(finding.fix.empty()) << finding.name;
  }
}

TEST(Doctor, WithoutUserfaultfdItsFeaturesAreNoNews) {
  os::Machine machine = best_machine();
  machine.userfaultfd = {ENOSYS, ENOENT, ENOSYS, ENOSYS};
  machine.features = {};
  EXPECT_EQ(find(diagnose(machine, {}), "UFFDIO_MOVE"), nullptr);
}

TEST(Doctor, TheBestRungIsNamed) {
  os::Machine machine = best_machine();
  machine.userfaultfd = {EPERM, 0, 0, 0};
  EXPECT_NE(find(diagnose(machine, {}), "userfaultfd")->value.find("/dev/userfaultfd"), std::string::npos);
}

TEST(Doctor, GpusAndTheirLibrariesAreTold) {
  Surroundings around;
  EXPECT_EQ(find(diagnose(best_machine(), around), "GPU")->value, "none");
  around.nvidia_driver = "580.65";
  around.nvidia_gpus = {"0000:01:00.0"};
  EXPECT_NE(find(diagnose(best_machine(), around), "NVIDIA")->fix.find("libcuda1"), std::string::npos);
  around.nvidia_library = true;
  EXPECT_NE(find(diagnose(best_machine(), around), "NVIDIA")->meaning.find("no CUDA backend"), std::string::npos);
  around.amd_driver = true;
  EXPECT_NE(find(diagnose(best_machine(), around), "AMD")->fix.find("libamdhip64"), std::string::npos);
}

TEST(Doctor, JsonHoldsWhatTheTableSays) {
  const std::vector<Finding> findings = diagnose(best_machine(), {});
  const auto list = nlohmann::json::parse(as_json(findings));
  ASSERT_EQ(list.size(), findings.size());
  for (std::size_t i = 0; i < findings.size(); ++i) {
    EXPECT_EQ(list[i]["name"], findings[i].name);
    EXPECT_EQ(list[i]["verdict"], verdict_text(findings[i].verdict));
    EXPECT_NE(as_table(findings).find(findings[i].value), std::string::npos);
  }
}

class LookAround : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/uhmm-doctor-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(LookAround, AnEmptyMachineHasNothing) {
  const Surroundings found = look_around("1.2.3", root_);
  EXPECT_FALSE(found.kernel_hmm.has_value());
  EXPECT_NE(found.kernel_config_file.find("/boot/config-1.2.3"), std::string::npos) << "the places that were tried";
  EXPECT_TRUE(found.nvidia_driver.empty());
  EXPECT_FALSE(found.amd_driver);
}

TEST_F(LookAround, KernelConfigurationAndDriversAreRead) {
  write("/boot/config-1.2.3", "CONFIG_X=y\nCONFIG_DEVICE_PRIVATE=y\n");
  write("/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n");
  write("/proc/driver/nvidia/gpus/0000:01:00.0/information", "");
  write("/dev/kfd", "");
  const Surroundings found = look_around("1.2.3", root_);
  EXPECT_EQ(found.kernel_hmm, true);
  EXPECT_EQ(found.kernel_config_file, root_ + "/boot/config-1.2.3");
  EXPECT_EQ(found.nvidia_driver, "580.65.06");
  EXPECT_EQ(found.nvidia_gpus, std::vector<std::string>{"0000:01:00.0"});
  EXPECT_TRUE(found.amd_driver);
  write("/boot/config-1.2.4", "# CONFIG_DEVICE_PRIVATE is not set\n");
  EXPECT_EQ(look_around("1.2.4", root_).kernel_hmm, false);
}

// Of this machine: what two ways of asking say must agree.
TEST(LookAtMachine, AgreesWithWhatTheRuntimeFinds) {
  const os::Machine machine = os::look_at_machine();
  auto uffd = os::Userfaultfd::open();
  EXPECT_EQ(uffd.ok(), machine.userfaultfd.any());
  if (!uffd.ok()) GTEST_SKIP() << last_detail();
  EXPECT_EQ(uffd->features().move, machine.features.move);
  EXPECT_EQ(uffd->features().poison, machine.features.poison);
  EXPECT_EQ(uffd->features().shared_minor, machine.features.shared_minor);
  EXPECT_EQ(uffd->features().kernel_mode, machine.userfaultfd.kernel_faults());
  EXPECT_EQ(machine.page_bytes, 4096u);
  EXPECT_FALSE(machine.kernel.empty());
}

}  // namespace
}  // namespace uhmm::tool
