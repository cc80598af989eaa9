// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/machine.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <iterator>

#include "runtime/os/system_memory.hpp"
#include "runtime/os/thread.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::os {
namespace {

int error_of(int fd) { return fd >= 0 ? 0 : errno; }

Machine::Features features_of(int fd) {
  struct uffdio_api api {};
  api.api = UFFD_API;
  Machine::Features features;
  if (ioctl(fd, UFFDIO_API, &api) != 0) return features;
  // By number, for headers that are older than the kernel.
  const auto has = [&](int bit) { return ((api.features >> bit) & 1) != 0; };
  features.write_protect = has(0);
  features.fork_event = has(1);
  features.remap_event = has(2);
  features.remove_event = has(3);
  features.shared_memory = has(5);
  features.unmap_event = has(6);
  features.signal = has(7);
  features.shared_minor = has(10);
  features.shared_write_protect = has(12);
  features.write_protect_absent = has(13);
  features.poison = has(14);
  features.write_protect_async = has(15);
  features.move = has(16);
  return features;
}

// 0, or the errno with which word of forks is refused.
int fork_events_error(Rung rung) {
  const int fd = open_rung(rung);
  if (fd < 0) return errno;
  struct uffdio_api api {};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_FORK;
  const int error = ioctl(fd, UFFDIO_API, &api) == 0 ? 0 : errno;
  ::close(fd);
  return error;
}

// Tries every rung; features are those of the best.
void look_at_userfaultfd(Machine& machine) {
  Machine::Userfaultfd& rungs = machine.userfaultfd;
  const int system_call = open_rung(Rung::SystemCall);
  rungs.system_call = error_of(system_call);
  const int device = open_rung(Rung::DeviceFile);
  rungs.device = error_of(device);
  const int user_mode = open_rung(Rung::UserMode);
  rungs.user_mode = error_of(user_mode);
  bool asked = false;
  for (const int fd : {system_call, device, user_mode}) {
    if (fd < 0) continue;
    if (!asked) machine.features = features_of(fd);
    asked = true;
    ::close(fd);
  }
  rungs.fork_events = fork_events_error(system_call >= 0 ? Rung::SystemCall
                                        : device >= 0    ? Rung::DeviceFile
                                                         : Rung::UserMode);
}

int open_error(const char* path) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  const int error = error_of(fd);
  if (fd >= 0) ::close(fd);
  return error;
}

// 0 if the file knows the ioctl at all: an argument that no version accepts is told apart from an unknown number.
int ioctl_error(const char* path, unsigned long request) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  std::array<std::uint64_t, 32> argument{};
  const int error = ioctl(fd, request, argument.data()) == 0 ? 0 : errno;
  ::close(fd);
  return error == ENOTTY || error == ENOSYS ? error : 0;
}

int io_uring_error() {
  io_uring ring;
  const int result = io_uring_queue_init(4, &ring, 0);
  if (result != 0) return -result;
  io_uring_queue_exit(&ring);
  return 0;
}

std::optional<std::uint64_t> soft_limit(decltype(RLIMIT_FSIZE) resource) {
  struct rlimit limit {};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_cur;
}

// "always [madvise] never" -> "madvise"
std::string chosen(const std::string& text) {
  const auto open = text.find('[');
  const auto close = text.find(']');
  return open == std::string::npos || close == std::string::npos ? text : text.substr(open + 1, close - open - 1);
}

}  // namespace

std::optional<std::string> read_text(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::optional<std::uint64_t> read_number(const std::string& path) {
  const std::optional<std::string> text = read_text(path);
  if (!text) return std::nullopt;
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(text->data(), text->data() + text->size(), number);
  return parsed.ec == std::errc{} ? std::optional(number) : std::nullopt;
}

Machine look_at_machine() {
  constexpr unsigned long kPagemapScan = _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, 96);
  constexpr unsigned long kProcmapQuery = _IOC(_IOC_READ | _IOC_WRITE, 'f', 17, 104);
  Machine machine;
  struct utsname names {};
  if (uname(&names) == 0) {
    machine.kernel = names.release;
    machine.architecture = names.machine;
  }
  machine.cpus = usable_cpu_count();
  machine.page_bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  machine.memory_bytes = system_memory().total;
  look_at_userfaultfd(machine);
  machine.pagemap = open_error("/proc/self/pagemap");
  machine.own_memory = open_error("/proc/self/mem");
  machine.pagemap_scan = ioctl_error("/proc/self/pagemap", kPagemapScan);
  machine.procmap_query = ioctl_error("/proc/self/maps", kProcmapQuery);
  machine.io_uring = io_uring_error();
  if (const auto text = read_text("/sys/kernel/mm/transparent_hugepage/enabled")) machine.huge_pages = chosen(*text);
  machine.reserved_huge_pages = read_number("/proc/sys/vm/nr_hugepages").value_or(0);
  machine.max_map_count = read_number("/proc/sys/vm/max_map_count");
  machine.unprivileged_userfaultfd = read_number("/proc/sys/vm/unprivileged_userfaultfd");
  machine.overcommit = read_number("/proc/sys/vm/overcommit_memory");
  machine.file_bytes_limit = soft_limit(RLIMIT_FSIZE);
  machine.locked_bytes_limit = soft_limit(RLIMIT_MEMLOCK);
  machine.descriptor_limit = soft_limit(RLIMIT_NOFILE);
  return machine;
}

}  // namespace uhmm::os
