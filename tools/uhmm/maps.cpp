// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/maps.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/os/local_service.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::tool {
namespace {

constexpr int kTimeoutMs = 5000;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::uint64_t kib(std::uint64_t pages) { return pages * kPageBytes / 1024; }

// One record of `told` bytes into ours, which may be shorter or longer.
template <typename Record>
Record record_at(std::span<const std::byte> bytes, std::size_t offset, std::size_t told) {
  Record out{};
  std::memcpy(&out, bytes.data() + offset, std::min(told, sizeof(Record)));
  return out;
}

std::string text_of(std::span<const char> field) { return {field.data(), strnlen(field.data(), field.size())}; }

// Pages of [begin, end) that the process has in system memory: present, or swapped out.
Status count_system_pages(int pagemap, MappedRange& range) {
  constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;
  // In private memory that is device memory, which the CPU maps in place.
  const std::uint64_t file = range.told.shared_memory != 0 ? 0 : std::uint64_t{1} << 61;
  std::uint64_t entries[8192];
  const std::uint64_t end = range.told.end_page / kPageBytes;
  for (std::uint64_t page = range.told.first_page / kPageBytes; page < end;) {
    const std::uint64_t wanted = std::min<std::uint64_t>(std::size(entries), end - page);
    const ssize_t got = pread(pagemap, entries, wanted * 8, static_cast<off_t>(page * 8));
    if (got <= 0) return fail_errno("reading a process's pagemap", got < 0 ? errno : ESRCH);
    const std::span<const std::uint64_t> read(entries, static_cast<std::size_t>(got) / 8);
    range.system_pages += static_cast<std::uint64_t>(std::ranges::count_if(
        read, [file](std::uint64_t entry) { return (entry & kPresentOrSwapped) != 0 && (entry & file) == 0; }));
    page += read.size();
  }
  const std::uint64_t marked = (range.told.poisoned != 0 ? range.told.lost : 0) +
                               (range.told.marked != 0 ? range.told.device - range.told.in_place : 0);
  range.system_pages -= std::min(range.system_pages, marked);
  return {};
}

// End of each mapping, and its name.
std::map<std::uint64_t, std::pair<std::uint64_t, std::string>> read_mappings(const std::string& file) {
  std::map<std::uint64_t, std::pair<std::uint64_t, std::string>> found;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    char dash = 0;
    std::string permissions, offset, device, inode, name;
    words >> std::hex >> begin >> dash >> end >> permissions >> offset >> device >> inode >> std::ws;
    std::getline(words, name);
    found[end] = {begin, name};
  }
  return found;
}

std::string advice_of(const engine::ReportRange& range) {
  std::string text;
  const auto add = [&](const std::string& word) { text += (text.empty() ? "" : ",") + word; };
  if (range.preferred == UHMM_CPU)
    add("prefers:cpu");
  else if (range.preferred <= UHMM_MAX_DEVICES)
    add("prefers:" + std::to_string(range.preferred));
  for (std::uint32_t i = 0; i < kMaxDevices; ++i)
    if ((range.accessed_by & 1u << i) != 0) add("accessed-by:" + std::to_string(i + 1));
  if (range.read_mostly != 0) add("read-mostly");
  if (range.pinned != 0) add("pinned");
  if (range.held != 0) add("held");
  return text;
}

// Columns as wide as their widest entry; the first and the last are set to the left.
std::string align(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i == widths.size()) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      if (i != 0) line += "  ";
      line += i == 0 || i + 2 >= widths.size() ? row[i] + space : space + row[i];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string version_text(std::uint32_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Result<std::vector<std::byte>> read_whole(int file) {
  std::vector<std::byte> bytes;
  std::byte piece[65536];
  for (off_t at = 0;;) {
    const ssize_t got = pread(file, piece, sizeof(piece), at);
    if (got < 0) return fail_errno("reading a report", errno);
    if (got == 0) return bytes;
    bytes.insert(bytes.end(), piece, piece + got);
    at += got;
  }
}

}  // namespace

Result<Maps> ask(pid_t process, engine::Request request) {
  Result<int> answer = os::ask_local_service(process, static_cast<char>(request), kTimeoutMs);
  if (!answer.ok()) return answer.status();
  const Descriptor file(*answer);
  Result<std::vector<std::byte>> bytes = read_whole(file.get());
  if (!bytes.ok()) return bytes.status();
  Result<Maps> maps = parse_report(*bytes);
  if (!maps.ok()) return maps;
  maps->process = process;
  UHMM_TRY(add_kernel_view(*maps, "/proc/" + std::to_string(process)));
  return maps;
}

Result<Maps> parse_report(std::span<const std::byte> bytes) {
  const Status bad = fail(UHMM_ERR_INVALID, "the program's answer is not a report of a uhmm runtime, or is cut off");
  constexpr std::size_t kLeast = offsetof(engine::ReportHeader, version);
  if (bytes.size() < kLeast) return bad;
  const auto header = record_at<engine::ReportHeader>(bytes, 0, bytes.size());
  if (header.magic != engine::kReportMagic || header.header_bytes < kLeast || header.device_bytes == 0 ||
      header.range_bytes == 0 || header.devices > kMaxDevices || header.header_bytes > bytes.size())
    return bad;
  std::size_t left = bytes.size() - header.header_bytes;
  const std::size_t devices = std::size_t{header.devices} * header.device_bytes;
  if (devices > left || header.ranges > (left - devices) / header.range_bytes) return bad;
  Maps maps;
  maps.version = header.version;
  std::size_t at = header.header_bytes;
  for (std::uint32_t i = 0; i < header.devices; ++i, at += header.device_bytes)
    maps.devices.push_back(record_at<engine::ReportDevice>(bytes, at, header.device_bytes));
  for (std::uint64_t i = 0; i < header.ranges; ++i, at += header.range_bytes)
    maps.ranges.push_back({record_at<engine::ReportRange>(bytes, at, header.range_bytes), 0, ""});
  return maps;
}

Status add_kernel_view(Maps& maps, const std::string& proc) {
  const Descriptor pagemap(open((proc + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  if (pagemap.get() < 0) return fail_errno((proc + "/pagemap").c_str(), errno);
  const auto mappings = read_mappings(proc + "/maps");
  for (MappedRange& range : maps.ranges) {
    UHMM_TRY(count_system_pages(pagemap.get(), range));
    const auto place = mappings.upper_bound(range.told.first_page);
    if (place != mappings.end() && place->second.first <= range.told.first_page) range.mapping = place->second.second;
  }
  return {};
}

std::string maps_as_table(const Maps& maps) {
  std::string text = "process " + std::to_string(maps.process) + ", uhmm " + version_text(maps.version) + "\n";
  for (const engine::ReportDevice& device : maps.devices) {
    text += "device " + std::to_string(device.processor) + " (" + text_of(device.name) + "): ";
    if ((device.flags & UHMM_DEVICE_IS_LOST) != 0)
      text += "lost: " + text_of(device.lost_reason) + "\n";
    else
      text += std::to_string(kib(device.current_pages)) + " of " + std::to_string(kib(device.memory_pages)) +
              " KiB in use\n";
  }
  text += "\nKiB of pages\n";

  std::vector<std::vector<std::string>> rows{{"ADDRESS", "SIZE", "SYSTEM"}};
  for (const engine::ReportDevice& device : maps.devices)
    rows[0].push_back("DEVICE" + std::to_string(device.processor));
  for (const char* name : {"SHARED", "EXCLUSIVE", "LOST", "CPU-FAULTS", "DEV-FAULTS", "KIND", "ADVICE"})
    rows[0].push_back(name);
  engine::ReportRange sum;
  std::uint64_t sum_pages = 0;
  std::uint64_t sum_system = 0;
  const auto add_row = [&](const std::string& first, std::uint64_t pages, std::uint64_t system,
                           const engine::ReportRange& range, const std::string& kind, const std::string& advice) {
    std::vector<std::string> row{first, std::to_string(kib(pages)), std::to_string(kib(system))};
    for (const engine::ReportDevice& device : maps.devices)
      row.push_back(std::to_string(kib(range.on_device[device.processor - 1])));
    for (const std::uint64_t count : {range.shared, range.exclusive, range.lost})
      row.push_back(std::to_string(kib(count)));
    row.push_back(std::to_string(range.cpu_faults));
    row.push_back(std::to_string(range.device_faults));
    row.push_back(kind);
    row.push_back(advice);
    rows.push_back(std::move(row));
  };
  for (const MappedRange& range : maps.ranges) {
    const engine::ReportRange& told = range.told;
    const std::uint64_t pages = (told.end_page - told.first_page) / kPageBytes;
    char address[40];
    std::snprintf(address, sizeof(address), "%012lx-%012lx", told.begin, told.end);
    std::string kind = told.shared_memory != 0 ? "shared" : "private";
    if (!range.mapping.empty()) kind += " " + range.mapping;
    add_row(address, pages, range.system_pages, told, kind, advice_of(told));
    sum_pages += pages;
    sum_system += range.system_pages;
    sum.shared += told.shared;
    sum.exclusive += told.exclusive;
    sum.lost += told.lost;
    sum.cpu_faults += told.cpu_faults;
    sum.device_faults += told.device_faults;
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) sum.on_device[i] += told.on_device[i];
  }
  add_row(std::to_string(maps.ranges.size()) + (maps.ranges.size() == 1 ? " range" : " ranges"), sum_pages, sum_system,
          sum, "", "");
  return text + align(rows);
}

std::string maps_as_json(const Maps& maps) {
  nlohmann::ordered_json devices = nlohmann::ordered_json::array();
  for (const engine::ReportDevice& device : maps.devices)
    devices.push_back({{"device", device.processor},
                       {"name", text_of(device.name)},
                       {"coherent", (device.flags & UHMM_DEVICE_COHERENT) != 0},
                       {"lost", (device.flags & UHMM_DEVICE_IS_LOST) != 0},
                       {"lost_reason", text_of(device.lost_reason)},
                       {"memory_bytes", device.memory_pages * kPageBytes},
                       {"current_bytes", device.current_pages * kPageBytes}});
  nlohmann::ordered_json ranges = nlohmann::ordered_json::array();
  for (const MappedRange& range : maps.ranges) {
    const engine::ReportRange& told = range.told;
    nlohmann::ordered_json on_device = nlohmann::ordered_json::object();
    for (const engine::ReportDevice& device : maps.devices)
      on_device[std::to_string(device.processor)] = told.on_device[device.processor - 1];
    ranges.push_back({{"begin", told.begin},
                      {"end", told.end},
                      {"kind", told.shared_memory != 0 ? "shared" : "private"},
                      {"mapping", range.mapping},
                      {"pool", told.pool},
                      {"pages", (told.end_page - told.first_page) / kPageBytes},
                      {"system_pages", range.system_pages},
                      {"device_pages", told.device},
                      {"shared_pages", told.shared},
                      {"exclusive_pages", told.exclusive},
                      {"in_place_pages", told.in_place},
                      {"lost_pages", told.lost},
                      {"pages_by_device", on_device},
                      {"cpu_faults", told.cpu_faults},
                      {"device_faults", told.device_faults},
                      {"advice", advice_of(told)}});
  }
  const nlohmann::ordered_json all = {{"process", maps.process},
                                      {"version", version_text(maps.version)},
                                      {"page_bytes", kPageBytes},
                                      {"devices", devices},
                                      {"ranges", ranges}};
  return all.dump(2) + "\n";
}

int maps(pid_t process, bool json) {
  Result<Maps> found = ask(process, engine::Request::Report);
  if (!found.ok()) {
    char why[kDetailBytes];
    save_detail(why);
    std::fprintf(stderr, "uhmm maps: %s\n", why);
    return 1;
  }
  std::fputs((json ? maps_as_json(*found) : maps_as_table(*found)).c_str(), stdout);
  return 0;
}

}  // namespace uhmm::tool
