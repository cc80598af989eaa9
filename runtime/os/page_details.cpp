// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/page_details.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace uhmm::os {
namespace {

constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
constexpr std::uint64_t kSwapped = std::uint64_t{1} << 62;
constexpr std::uint64_t kFile = std::uint64_t{1} << 61;
constexpr std::uint64_t kWriteProtected = std::uint64_t{1} << 57;  // by userfaultfd
constexpr std::uint64_t kExclusive = std::uint64_t{1} << 56;

// PAGEMAP_SCAN (6.7), which the installed header may not know.
struct Region {
  std::uint64_t start, end, categories;
};
struct ScanArgs {
  std::uint64_t size, flags, start, end, walk_end, vector, vector_length, most_pages;
  std::uint64_t inverted, all_of, any_of, returned;
};
const unsigned long kPagemapScan = _IOWR('f', 16, ScanArgs);
constexpr std::uint64_t kIsZero = 1 << 5;
constexpr std::uint64_t kIsHuge = 1 << 6;

struct Descriptor {
  explicit Descriptor(int number) : fd(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  const int fd;
};

void scan(int pagemap, VirtAddr first, std::span<PageDetails> out) {
  std::array<Region, 64> regions{};
  const std::uint64_t end = (first + out.size() * kPageBytes).value;
  ScanArgs args{};
  args.size = sizeof(args);
  args.start = first.value;
  args.end = end;
  args.vector = reinterpret_cast<std::uint64_t>(regions.data());
  args.vector_length = regions.size();
  args.any_of = args.returned = kIsZero | kIsHuge;
  while (args.start < end) {
    const int count = ioctl(pagemap, kPagemapScan, &args);
    if (count < 0) return;  // an older kernel: neither is known
    for (int i = 0; i < count; ++i) {
      const Region& region = regions[static_cast<std::size_t>(i)];
      for (std::uint64_t at = region.start; at < region.end; at += kPageBytes) {
        PageDetails& page = out[(at - first.value) >> kPageShift];
        page.zero = (region.categories & kIsZero) != 0;
        page.huge = (region.categories & kIsHuge) != 0;
      }
    }
    if (args.walk_end <= args.start) return;
    args.start = args.walk_end;
  }
}

}  // namespace

bool maps_huge(int pagemap, VirtAddr page) {
  Region region{};
  ScanArgs args{};
  args.size = sizeof(args);
  args.start = page.value;
  args.end = page.value + kPageBytes;
  args.vector = reinterpret_cast<std::uint64_t>(&region);
  args.vector_length = 1;
  args.all_of = args.returned = kIsHuge;
  return ioctl(pagemap, kPagemapScan, &args) == 1;
}

Status page_details(VirtAddr first, std::span<PageDetails> out) {
  const Descriptor pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (pagemap.fd < 0) return fail_errno("opening /proc/self/pagemap", errno);
  std::array<std::uint64_t, kPagesPerBlock> entries;
  for (std::size_t done = 0; done < out.size();) {
    const std::size_t wanted = std::min(out.size() - done, entries.size());
    const auto offset = static_cast<off_t>(((first.value >> kPageShift) + done) * sizeof(entries[0]));
    const ssize_t got = pread(pagemap.fd, entries.data(), wanted * sizeof(entries[0]), offset);
    if (got < static_cast<ssize_t>(sizeof(entries[0]))) return fail_errno("reading /proc/self/pagemap", errno);
    const std::size_t count = static_cast<std::size_t>(got) / sizeof(entries[0]);
    for (std::size_t i = 0; i < count; ++i) {
      PageDetails& page = out[done + i];
      page = {};
      page.present = (entries[i] & kPresent) != 0;
      page.swapped = (entries[i] & (kSwapped | kWriteProtected)) == kSwapped;
      page.file = (entries[i] & kFile) != 0;
      page.exclusive = (entries[i] & kExclusive) != 0;
    }
    done += count;
  }
  scan(pagemap.fd, first, out);
  return {};
}

KernelFaults kernel_faults(ByteRange pages, bool write) {
  KernelFaults faults;
  std::array<std::uint64_t, kPagesPerBlock> entries{};
  const Descriptor pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const std::uint32_t first = pages.begin.page_in_block();
  const auto offset = static_cast<off_t>((pages.begin.value >> kPageShift) * sizeof(entries[0]));
  if (pagemap.fd >= 0) (void)!pread(pagemap.fd, entries.data(), pages.pages() * sizeof(entries[0]), offset);
  for (std::uint32_t i = 0; i < pages.pages(); ++i) {
    if ((entries[i] & kPresent) == 0)
      faults.absent.set(first + i);
    else if (write && (entries[i] & kWriteProtected) != 0)
      faults.write_protected.set(first + i);
  }
  return faults;
}

}  // namespace uhmm::os
