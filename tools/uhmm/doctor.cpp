// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/doctor.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

namespace uhmm::tool {
namespace {

constexpr std::uint64_t kDeviceFileBytes = std::uint64_t{1} << 47;
constexpr std::uint64_t kFewMaps = 65530;  // the kernel's default
constexpr std::uint64_t kFewDescriptors = 256;
constexpr std::uint64_t kLittleLocked = std::uint64_t{64} << 20;

std::string error_text(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : std::to_string(error);
}

std::string gib(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GiB", static_cast<double>(bytes) / (1u << 30));
  return text;
}

Finding good(std::string name, std::string value) { return {std::move(name), Verdict::Good, std::move(value), "", ""}; }

class Diagnosis {
 public:
  Diagnosis(const os::Machine& machine, const Surroundings& around) : machine_(machine), around_(around) {}
  std::vector<Finding> take() {
    basics();
    userfaultfd();
    features();
    proc();
    limits();
    huge_pages();
    gpus();
    return std::move(findings_);
  }

 private:
  void add(Finding finding) { findings_.push_back(std::move(finding)); }

  void basics() {
    add({"machine", machine_.architecture == "x86_64" ? Verdict::Good : Verdict::Limit,
         machine_.architecture + ", " + std::to_string(machine_.cpus) + " CPUs, " + gib(machine_.memory_bytes),
         machine_.architecture == "x86_64" ? "" : "uhmm is developed and tested on x86-64",
         machine_.architecture == "x86_64" ? "" : "none: expect to find bugs, and report them"});
    add({"kernel", Verdict::Note, machine_.kernel, "", ""});
    if (machine_.page_bytes != 4096)
      add({"page size", Verdict::Bad, std::to_string(machine_.page_bytes) + " bytes",
           "uhmm's unit of residency is a page of 4096 bytes", "boot a kernel with 4 KiB pages"});
  }

  void userfaultfd() {
    const os::Machine::Userfaultfd& rungs = machine_.userfaultfd;
    const std::string refused = "userfaultfd(2): " + error_text(rungs.system_call) +
                                ", /dev/userfaultfd: " + error_text(rungs.device) +
                                ", user mode only: " + error_text(rungs.user_mode);
    if (rungs.system_call == 0)
      add(good("userfaultfd", "by system call, faults of system calls included"));
    else if (rungs.device == 0)
      add(good("userfaultfd", "by /dev/userfaultfd, faults of system calls included"));
    else if (rungs.user_mode == 0)
      add({"userfaultfd", Verdict::Limit, "user mode only",
           "a system call that gets a pointer into memory that is on a device fails with EFAULT",
           "setfacl -m u:$USER:rw /dev/userfaultfd  # or: sysctl vm.unprivileged_userfaultfd=1"});
    else if (rungs.system_call == ENOSYS && rungs.user_mode == ENOSYS)
      add({"userfaultfd", Verdict::Bad, refused,
           "this kernel has none (CONFIG_USERFAULTFD is off, or a sandbox such as gVisor stands in for the kernel)",
           "none: use another kernel, or another container runtime (runc)"});
    else
      add({"userfaultfd", Verdict::Bad, refused, "it is refused: most often by a container's seccomp profile",
           "docker run --security-opt seccomp=unconfined ...  # or a profile that allows userfaultfd, or "
           "--device /dev/userfaultfd"});
  }

  void feature(const char* name, bool there, const char* since, const char* meaning, Verdict lack = Verdict::Limit) {
    if (there)
      add(good(name, "yes"));
    else
      add({name, lack, "no", meaning, std::string("run a kernel of version ") + since + " or later"});
  }
  void features() {
    if (!machine_.userfaultfd.any()) return;
    const os::Machine::Features& has = machine_.features;
    feature("write protection", has.write_protect, "5.7",
            "pages can't be shared with a device for reading: each is moved instead");
    feature("shared memory", has.shared_memory && has.shared_minor, "5.14",
            "shared memory (MAP_SHARED, memfd, shm) can't be managed, and there is no soft device", Verdict::Bad);
    feature("protected shared memory", has.shared_write_protect, "5.19",
            "a soft device can't map pages read-only: what it reads is moved, not copied");
    feature("UFFDIO_POISON", has.poison, "6.6",
            "lost pages are marked by a mapping each, which counts against vm.max_map_count");
    feature("UFFDIO_MOVE", has.move, "6.8",
            "pages are write-protected, copied and dropped instead of moved: migration is several times slower");
    feature("asynchronous write tracking", has.write_protect_async, "6.7", "not used by this version");
    feature("UFFD_FEATURE_SIGBUS", has.signal, "4.14", "there is no rung `signal` (UHMM_FAULTS=signal)");
    feature("UFFD_FEATURE_WP_UNPOPULATED", has.write_protect_absent, "6.4",
            "UHMM_DEVICE_ENTRIES does nothing: existing tools see pages on devices as absent, not as swapped out");
    feature("events (fork, remap, remove, unmap)",
            has.fork_event && has.remap_event && has.remove_event && has.unmap_event, "4.11",
            "memory that is moved past the runtime (raw mremap, realloc) loses what is on a device");
    if (machine_.userfaultfd.fork_events == 0)
      add(good("word of forks", "yes"));
    else
      add({"word of forks", Verdict::Limit, error_text(machine_.userfaultfd.fork_events),
           "fork() brings everything home first: lazy snapshots of what is on devices need CAP_SYS_PTRACE",
           "setcap cap_sys_ptrace+ep PROGRAM  # or run as root; in a container: --cap-add SYS_PTRACE"});
  }

  void file(const char* name, int error, const char* meaning, Verdict lack, const char* fix) {
    if (error == 0)
      add(good(name, "yes"));
    else
      add({name, lack, error_text(error), meaning, fix});
  }
  void proc() {
    file("/proc/self/pagemap", machine_.pagemap, "uhmm can't see which pages have contents", Verdict::Bad,
         "mount -t proc proc /proc");
    file("/proc/self/mem", machine_.own_memory, "uhmm can't copy pages without touching them", Verdict::Bad,
         "mount -t proc proc /proc");
    file("PROCMAP_QUERY", machine_.procmap_query, "registering a range reads /proc/self/maps as text: slower",
         Verdict::Limit, "run a kernel of version 6.11 or later");
    file("PAGEMAP_SCAN", machine_.pagemap_scan, "not used by this version", Verdict::Limit,
         "run a kernel of version 6.7 or later");
    file("io_uring", machine_.io_uring, "service threads wait with poll(2) instead: somewhat slower", Verdict::Limit,
         "sysctl kernel.io_uring_disabled=0  # or a container profile that allows io_uring_setup");
  }

  void limits() {
    if (machine_.file_bytes_limit && *machine_.file_bytes_limit < kDeviceFileBytes)
      add({"file size limit", Verdict::Bad, std::to_string(*machine_.file_bytes_limit) + " bytes",
           "a soft device's memory is a sparse file of 2^47 bytes: it can't be made", "ulimit -f unlimited"});
    if (machine_.descriptor_limit && *machine_.descriptor_limit < kFewDescriptors)
      add({"open files limit", Verdict::Limit, std::to_string(*machine_.descriptor_limit),
           "uhmm needs about 10 descriptors and 5 for each device", "ulimit -n 1024"});
    if (machine_.max_map_count) {
      const bool few = *machine_.max_map_count <= kFewMaps;
      add({"vm.max_map_count", few ? Verdict::Note : Verdict::Good, std::to_string(*machine_.max_map_count),
           few ? "a program with very many small ranges that come and go from devices can reach it" : "",
           few ? "sysctl vm.max_map_count=1048576" : ""});
    }
    if (machine_.overcommit == 2u)
      add({"vm.overcommit_memory", Verdict::Limit, "2 (strict)",
           "address space that uhmm only reserves may be refused: large devices may not start",
           "sysctl vm.overcommit_memory=0"});
    locked_memory();
  }

  void locked_memory() {
    if (!machine_.locked_bytes_limit) {
      add(good("locked memory limit", "unlimited"));
      return;
    }
    const bool little = *machine_.locked_bytes_limit < kLittleLocked;
    add({"locked memory limit", little ? Verdict::Note : Verdict::Good,
         std::to_string(*machine_.locked_bytes_limit) + " bytes",
         little ? "mlock() and buffers that io_uring registers get no more; uhmm itself locks nothing" : "",
         little ? "ulimit -l unlimited  # or LimitMEMLOCK=infinity, or docker run --ulimit memlock=-1" : ""});
  }

  void huge_pages() {
    const std::string& mode = machine_.huge_pages;
    if (mode == "always" || mode == "madvise")
      add(good("transparent huge pages", mode));
    else
      add({"transparent huge pages", Verdict::Limit, mode.empty() ? "not built in" : mode,
           "memory comes and goes page by page: blocks of 2 MiB don't move as one",
           mode.empty() ? "none: run a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
                        : "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"});
    const std::uint64_t reserved = machine_.reserved_huge_pages;
    add({"reserved huge pages", reserved != 0 ? Verdict::Good : Verdict::Note, std::to_string(reserved),
         reserved != 0 ? ""
                       : "`uhmm conformance` can't count the tests that need one, unless it may reserve some itself",
         reserved != 0 ? "" : "sysctl vm.nr_hugepages=4"});
  }

  void gpus() {
    if (around_.kernel_hmm)
      add({"HMM in the kernel", Verdict::Note,
           std::string(*around_.kernel_hmm ? "CONFIG_DEVICE_PRIVATE=y" : "no CONFIG_DEVICE_PRIVATE") + " (" +
               around_.kernel_config_file + ")",
           *around_.kernel_hmm ? "" : "no driver can offer the kernel's own HMM here; uhmm does not need it",
           *around_.kernel_hmm ? "" : "none needed; for such drivers: run a kernel with CONFIG_DEVICE_PRIVATE=y"});
    else
      add({"HMM in the kernel", Verdict::Note, "can't be told: no " + around_.kernel_config_file,
           "it is not known whether a driver can offer the kernel's own HMM; uhmm does not need it",
           "modprobe configs  # gives /proc/config.gz where the kernel has it"});
    if (around_.nvidia_driver.empty() && !around_.amd_driver) {
      add({"GPU", Verdict::Note, "none", "the soft device is what there is",
           "none needed; with a GPU: install its driver, in a container: --gpus all or --device /dev/kfd"});
      return;
    }
    if (!around_.nvidia_driver.empty()) {
      const std::string driver =
          "driver " + around_.nvidia_driver + ", " + std::to_string(around_.nvidia_gpus.size()) + " GPUs";
      if (around_.nvidia_library)
        add({"NVIDIA", Verdict::Limit, driver, "this version has no CUDA backend", "none: use the soft device"});
      else
        add({"NVIDIA", Verdict::Limit, driver + ", no libcuda.so.1", "the driver's library can't be opened",
             "apt-get install libcuda1  # in a container: --gpus all"});
    }
    if (around_.amd_driver)
      add({"AMD", Verdict::Limit, around_.amd_library ? "/dev/kfd, libamdhip64" : "/dev/kfd, no libamdhip64.so",
           around_.amd_library ? "this version has no HIP backend" : "the HIP runtime can't be opened",
           around_.amd_library ? "none: use the soft device" : "apt-get install libamdhip64-5"});
  }

  const os::Machine& machine_;
  const Surroundings& around_;
  std::vector<Finding> findings_;
};

}  // namespace

const char* verdict_text(Verdict verdict) {
  switch (verdict) {
    case Verdict::Good: return "good";
    case Verdict::Limit: return "limit";
    case Verdict::Bad: return "bad";
    case Verdict::Note: return "note";
  }
  return "?";
}

std::vector<Finding> diagnose(const os::Machine& machine, const Surroundings& around) {
  return Diagnosis(machine, around).take();
}

std::string as_table(const std::vector<Finding>& findings) {
  std::size_t width = 0;
  for (const Finding& finding : findings) width = std::max(width, finding.name.size());
  std::string text;
  const std::string indent(9 + width, ' ');
  for (const Finding& finding : findings) {
    std::string verdict = verdict_text(finding.verdict);
    verdict.resize(7, ' ');
    std::string name = finding.name;
    name.resize(width, ' ');
    text += verdict + name + "  " + finding.value + "\n";
    if (!finding.meaning.empty()) text += indent + finding.meaning + "\n";
    if (!finding.fix.empty()) text += indent + "-> " + finding.fix + "\n";
  }
  const auto bad = std::ranges::count(findings, Verdict::Bad, &Finding::verdict);
  const auto limits = std::ranges::count(findings, Verdict::Limit, &Finding::verdict);
  text += bad != 0      ? "uhmm does not work here.\n"
          : limits != 0 ? "uhmm works here, within the limits above.\n"
                        : "uhmm works here.\n";
  return text;
}

std::string as_json(const std::vector<Finding>& findings) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Finding& finding : findings)
    list.push_back({{"name", finding.name},
                    {"verdict", verdict_text(finding.verdict)},
                    {"value", finding.value},
                    {"meaning", finding.meaning},
                    {"fix", finding.fix}});
  return list.dump(2) + "\n";
}

int doctor(bool json) {
  const os::Machine machine = os::look_at_machine();
  const std::vector<Finding> findings = diagnose(machine, look_around(machine.kernel));
  std::fputs((json ? as_json(findings) : as_table(findings)).c_str(), stdout);
  return std::ranges::count(findings, Verdict::Bad, &Finding::verdict) == 0 ? 0 : 1;
}

}  // namespace uhmm::tool
