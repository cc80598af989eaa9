// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/report.hpp"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

#include "preload/heap/areas.hpp"
#include "preload/heap/heap.hpp"
#include "preload/heap/tier.hpp"
#include "preload/real.hpp"
#include "runtime/os/process.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::heap {
namespace {

constinit api::RunStats form = api::RunStats::None;
constinit char file_name[PATH_MAX] = "";
constinit std::uint64_t host_limit = 0;
constinit int standard_error = -1;
constinit pid_t process = -1;

// Text on the stack: at exit the heap may be in any state.
class Text {
 public:
  __attribute__((format(printf, 2, 3))) void add(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int wanted = vsnprintf(bytes_ + length_, sizeof(bytes_) - length_, format, arguments);
    va_end(arguments);
    length_ = std::min(length_ + static_cast<std::size_t>(std::max(wanted, 0)), sizeof(bytes_) - 1);
  }
  void write_to(int fd) const { (void)!::write(fd, bytes_, length_); }

 private:
  char bytes_[8192];
  std::size_t length_ = 0;
};

struct Numbers {
  uhmm_stats moved = UHMM_STATS_INIT;
  HeapStats heap;
  std::uint64_t peak_bytes = 0;  // resident, of the whole process
};

double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

std::uint64_t total(const std::uint64_t (&by_cause)[UHMM_CAUSE_COUNT]) {
  std::uint64_t sum = 0;
  for (const std::uint64_t pages : by_cause) sum += pages;
  return sum;
}

void table(Text& text, const Numbers& all) {
  text.add("\nuhmm: %s, process %d\n", program_invocation_short_name, getpid());
  text.add("  heap           %10.1f MiB allocated, %.1f MiB in areas, %.1f MiB records\n", mib(all.heap.allocated),
           mib(bytes_taken()), mib(all.heap.metadata));
  text.add("  system memory  %10.1f MiB at most, of the whole process\n", mib(all.peak_bytes));
  if (host_limit != 0)
    text.add("  of that heap   %10.1f MiB at most, limit %.1f MiB\n", mib(most_resident()), mib(host_limit));
  text.add("  devices        %10.1f MiB on them now\n", mib(all.moved.pages_on_devices << 12));
  text.add("  managed        %10lu ranges, %lu KiB of records\n", all.moved.ranges, all.moved.metadata_bytes >> 10);
  text.add("  faults         %10lu of the CPU, %lu of devices\n", all.moved.cpu_faults, all.moved.device_faults);
  text.add("  refused        %10lu allocations\n", refusals());
  text.add("  pages moved, and why                          to device     to system\n");
  for (int cause = 0; cause < UHMM_CAUSE_COUNT; ++cause) {
    const std::uint64_t there = all.moved.pages_to_device[cause];
    const std::uint64_t back = all.moved.pages_to_system[cause];
    if (there + back == 0) continue;
    text.add("    %-40s %12lu  %12lu\n", uhmm_cause_text(static_cast<uhmm_cause>(cause)), there, back);
  }
  text.add("    %-40s %12lu  %12lu\n", "in all", total(all.moved.pages_to_device), total(all.moved.pages_to_system));
}

void add_quoted(Text& text, const char* words) {
  text.add("\"");
  for (const char* at = words; *at != '\0'; ++at) {
    const auto byte = static_cast<unsigned char>(*at);
    if (byte < 0x20 || byte == '"' || byte == '\\')
      text.add("\\u%04x", byte);
    else
      text.add("%c", byte);
  }
  text.add("\"");
}

void json(Text& text, const Numbers& all) {
  text.add("{\"program\":");
  add_quoted(text, program_invocation_short_name);
  text.add(",\"process\":%d,\"heap\":{\"allocated\":%lu,\"areas\":%lu,\"metadata\":%lu},", getpid(), all.heap.allocated,
           bytes_taken(), all.heap.metadata);
  text.add("\"host_limit\":%lu,\"host_peak\":%lu,", host_limit, most_resident());
  text.add("\"peak_bytes\":%lu,\"device_bytes\":%lu,\"ranges\":%lu,\"metadata_bytes\":%lu,", all.peak_bytes,
           all.moved.pages_on_devices << 12, all.moved.ranges, all.moved.metadata_bytes);
  text.add("\"cpu_faults\":%lu,\"device_faults\":%lu,\"refused\":%lu,\"moved\":[", all.moved.cpu_faults,
           all.moved.device_faults, refusals());
  const char* separator = "";
  for (int cause = 0; cause < UHMM_CAUSE_COUNT; ++cause) {
    const std::uint64_t there = all.moved.pages_to_device[cause];
    const std::uint64_t back = all.moved.pages_to_system[cause];
    if (there + back == 0) continue;
    text.add("%s{\"cause\":\"%s\",\"to_device\":%lu,\"to_system\":%lu}", separator,
             uhmm_cause_text(static_cast<uhmm_cause>(cause)), there, back);
    separator = ",";
  }
  text.add("]}\n");
}

}  // namespace

void prepare_report(const api::RunOptions& options) {
  form = options.stats;
  if (form == api::RunStats::None) return;
  process = getpid();
  host_limit = options.host_limit;
  memcpy(file_name, options.stats_file, sizeof(file_name));
  if (file_name[0] == '\0') standard_error = os::above_stdio(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
}

void write_report() {
  if (form == api::RunStats::None || process != getpid() || os::in_device_process()) return;
  Numbers all;
  (void)uhmm_get_stats(&all.moved);
  all.heap = heap_stats();
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) all.peak_bytes = static_cast<std::uint64_t>(usage.ru_maxrss) << 10;
  Text text;
  form == api::RunStats::Json ? json(text, all) : table(text, all);
  int fd = standard_error;
  if (file_name[0] != '\0') fd = real::openat(AT_FDCWD, file_name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) return;
  text.write_to(fd);
  if (file_name[0] != '\0') (void)real::close(fd);
}

}  // namespace uhmm::preload::heap
