// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/memory.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "runtime/os/page_details.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace uhmm::os {
namespace {

// PROCMAP_QUERY (6.11) answers in O(log n) where reading the text of /proc/self/maps is O(n).
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
const unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t kReadable = 1, kWritable = 2, kExecutable = 4, kShared = 8, kCoveringOrNext = 16;

constexpr std::uint64_t kPagemapPresent = std::uint64_t{1} << 63;
constexpr std::uint64_t kPagemapSwapped = std::uint64_t{1} << 62;
constexpr std::uint64_t kPagemapGuarded = std::uint64_t{1} << 58;

// What map_bus_error() leaves behind.
constexpr const char* kLostName = "uhmm-lost";

MappingKind kind_of(bool shared, std::uint64_t inode, const char* name) {
  if (std::strstr(name, kLostName) != nullptr) return MappingKind::Lost;
  if (std::strstr(name, kDeviceMemoryName) != nullptr) return MappingKind::Special;
  if (std::strncmp(name, "[vvar", 5) == 0 || std::strncmp(name, "[vdso", 5) == 0 ||
      std::strncmp(name, "[vsyscall", 9) == 0)
    return MappingKind::Special;
  if (shared) return std::strstr(name, "anon_hugepage") != nullptr ? MappingKind::Special : MappingKind::Shared;
  return inode == 0 ? MappingKind::PrivateAnonymous : MappingKind::PrivateFile;
}

// A line of /proc/self/maps: true if it is the mapping at the address or the next one above it.
bool parse_line(const char* line, VirtAddr address, Mapping* found) {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  unsigned major = 0;
  unsigned minor = 0;
  std::uint64_t inode = 0;
  char access[5] = {};
  char name[256] = {};
  if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %255[^\n]", &begin, &end, access,
                  &offset, &major, &minor, &inode, name) < 7 ||
      end <= address.value)
    return false;
  found->range = {VirtAddr{begin}, VirtAddr{end}};
  found->file_system = makedev(major, minor);
  found->inode = inode;
  found->offset = offset;
  found->readable = access[0] == 'r';
  found->writable = access[1] == 'w';
  found->executable = access[2] == 'x';
  found->shared = access[3] == 's';
  found->kind = kind_of(found->shared, inode, name);
  return true;
}

Mapping mapping_of(const ProcmapQuery& query) {
  Mapping mapping;
  mapping.range = {VirtAddr{query.vma_start}, VirtAddr{query.vma_end}};
  mapping.readable = (query.vma_flags & kReadable) != 0;
  mapping.writable = (query.vma_flags & kWritable) != 0;
  mapping.executable = (query.vma_flags & kExecutable) != 0;
  mapping.shared = (query.vma_flags & kShared) != 0;
  mapping.page_bytes = query.vma_page_size;
  mapping.file_system = makedev(query.dev_major, query.dev_minor);
  mapping.inode = query.inode;
  mapping.offset = query.vma_offset;
  return mapping;
}

}  // namespace

Status ProcessMemory::open() {
  pagemap_ = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  mem_ = ::open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  maps_ = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (pagemap_ < 0 || mem_ < 0 || maps_ < 0) {
    const int error = errno;
    close();
    return fail_errno("opening /proc/self/{pagemap,mem,maps} (is /proc mounted?)", error);
  }
  return {};
}

void ProcessMemory::close() {
  for (int* fd : {&pagemap_, &mem_, &maps_}) {
    if (*fd >= 0) ::close(*fd);
    *fd = -1;
  }
}

Result<Mapping> ProcessMemory::find_mapping(VirtAddr address) const {
  char name[64] = {};
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.query_flags = kCoveringOrNext;
  query.query_addr = address.value;
  query.vma_name_addr = reinterpret_cast<std::uint64_t>(name);
  query.vma_name_size = sizeof(name);
  int result = ioctl(maps_, kProcmapQuery, &query);
  if (result != 0 && errno == ENAMETOOLONG) {  // a long path: a file, whose name does not matter here
    query.vma_name_size = 0;
    query.vma_name_addr = 0;
    result = ioctl(maps_, kProcmapQuery, &query);
  }
  if (result != 0) {
    if (errno == ENOENT) return Mapping{};
    return find_mapping_in_text(address);
  }
  Mapping mapping = mapping_of(query);
  mapping.kind = kind_of(mapping.shared, query.inode, name);
  return mapping;
}

Result<Mapping> ProcessMemory::find_access(VirtAddr address) const {
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.query_flags = kCoveringOrNext;
  query.query_addr = address.value;
  if (ioctl(maps_, kProcmapQuery, &query) != 0) {
    if (errno == ENOENT) return Mapping{};
    return fail(UHMM_ERR_NOT_SUPPORTED, "no PROCMAP_QUERY (Linux 6.11)");
  }
  return mapping_of(query);
}

Result<Mapping> ProcessMemory::find_mapping_in_text(VirtAddr address) const {
  // Service threads come here too: no stdio, whose buffers are the program's heap.
  const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return fail_errno("opening /proc/self/maps", errno);
  char text[4096];
  std::size_t held = 0;
  Mapping found;
  for (bool done = false; !done;) {
    const ssize_t got = ::read(maps, text + held, sizeof(text) - 1 - held);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    held += static_cast<std::size_t>(got);
    text[held] = '\0';
    char* line = text;
    for (char* end = std::strchr(line, '\n'); end != nullptr && !done; end = std::strchr(line, '\n')) {
      *end = '\0';
      done = parse_line(line, address, &found);
      line = end + 1;
    }
    held -= static_cast<std::size_t>(line - text);
    std::memmove(text, line, held);
    if (held == sizeof(text) - 1) held = 0;  // the rest of a longer path than can be
  }
  ::close(maps);
  return found;
}

Result<PageMask> ProcessMemory::with_flags(VirtAddr block, PageRun run, std::uint64_t any_of) const {
  std::uint64_t entries[kPagesPerBlock];
  const std::uint64_t first_page = (block.value >> kPageShift) + run.first;
  const ssize_t wanted = static_cast<ssize_t>(run.count * sizeof(entries[0]));
  const ssize_t got =
      pread(pagemap_, entries, static_cast<std::size_t>(wanted), static_cast<off_t>(first_page * sizeof(entries[0])));
  if (got != wanted) return fail_errno("reading /proc/self/pagemap", got < 0 ? errno : EIO);
  PageMask mask;
  for (std::uint32_t i = 0; i < run.count; ++i)
    if ((entries[i] & any_of) != 0) mask.set(run.first + i);
  return mask;
}

Result<PageMask> ProcessMemory::backed(VirtAddr block, PageRun run) const {
  return with_flags(block, run, kPagemapPresent | kPagemapSwapped);
}

Result<PageMask> ProcessMemory::poisoned(VirtAddr block, PageRun run) const {
  // A poisoned entry looks like a page that is swapped out, but can't be read. So does a guard page.
  Result<PageMask> found = with_flags(block, run, kPagemapSwapped);
  if (!found.ok()) return found;
  if (found->any()) {
    Result<PageMask> guards = guarded(block, run);
    if (guards.ok()) *found -= *guards;
  }
  PageMask out;
  found->for_each_run([&](PageRun swapped) {
    for (std::uint32_t page = swapped.first; page < swapped.end(); ++page) {
      std::byte byte{};
      if (read(block + std::size_t{page} * kPageBytes, &byte, 1) == 0) out.set(page);
    }
  });
  return out;
}

Result<PageMask> ProcessMemory::guarded(VirtAddr block, PageRun run) const {
  return with_flags(block, run, kPagemapGuarded);
}

bool ProcessMemory::is_huge(VirtAddr block) const { return maps_huge(pagemap_, block); }

std::size_t ProcessMemory::read(VirtAddr from, std::byte* to, std::size_t bytes) const {
  // /proc/self/mem walks the page table without the right to sleep in userfaultfd: an absent page is EIO, not a fault.
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = pread(mem_, to + done, bytes - done, static_cast<off_t>(from.value + done));
    if (got <= 0) {
      if (got < 0 && errno == EINTR) continue;
      break;
    }
    done += static_cast<std::size_t>(got);
  }
  return done;
}

std::byte* map_private(std::size_t bytes) {
  // A program that has asked for mlockall(MCL_FUTURE) would fill it here; what can't be accessed is not filled.
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* all = mmap(nullptr, bytes + kBlockBytes, PROT_NONE, kFlags, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const VirtAddr begin{static_cast<std::byte*>(all)};
  const VirtAddr aligned = (begin + (kBlockBytes - 1)).block_floor();
  if (aligned != begin) (void)munmap(all, aligned - begin);
  if (const std::size_t behind = (begin + kBlockBytes) - aligned; behind != 0)
    (void)munmap((aligned + bytes).pointer(), behind);
  void* memory = aligned.pointer();
  if (munlock(memory, bytes) != 0 || mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) {
    (void)munmap(memory, bytes);
    return nullptr;
  }
  (void)madvise(memory, bytes, MADV_NOHUGEPAGE);
  (void)madvise(memory, bytes, MADV_DONTFORK);
  return static_cast<std::byte*>(memory);
}

int renew_private(std::byte* memory, std::size_t bytes, bool huge) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(memory, bytes, PROT_NONE, kFlags, -1, 0) == MAP_FAILED) return errno;
  if (munlock(memory, bytes) != 0 || mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) return errno;
  (void)madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  (void)madvise(memory, bytes, MADV_DONTFORK);
  return 0;
}

std::byte* map_plain(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

int protect_like(const Mapping& mapping, std::byte* memory, std::size_t bytes) {
  const int protection =
      (mapping.readable ? PROT_READ : 0) | (mapping.writable ? PROT_WRITE : 0) | (mapping.executable ? PROT_EXEC : 0);
  return mprotect(memory, bytes, protection) == 0 ? 0 : errno;
}

int move_mapping(std::byte* from, ByteRange to) {
  void* moved = mremap(from, to.bytes(), to.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, to.begin.pointer());
  return moved == MAP_FAILED ? errno : 0;
}

void unmap(void* address, std::size_t bytes) {
  if (address != nullptr) (void)munmap(address, bytes);
}

std::byte* reserve_addresses(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

int map_alias(ByteRange pages, std::byte* at) {
  // Length 0 duplicates a shared mapping; the duplicate has no userfaultfd.
  if (mremap(pages.begin.pointer(), 0, pages.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) return errno;
  (void)madvise(at, pages.bytes(), MADV_DONTFORK);
  return 0;
}

PageMask cached(const std::byte* block_in_view, PageRun run) {
  unsigned char present[kPagesPerBlock] = {};
  PageMask mask;
  void* start = const_cast<std::byte*>(block_in_view) + run.offset();
  if (mincore(start, run.bytes(), present) != 0) return PageMask::of(run);
  for (std::uint32_t i = 0; i < run.count; ++i)
    if ((present[i] & 1) != 0) mask.set(run.first + i);
  return mask;
}

PageMask holes(VirtAddr block, PageRun run) {
  unsigned char present[kPagesPerBlock];
  const auto mapped = [&](PageRun part) {
    return mincore((block + part.offset()).pointer(), part.bytes(), present) == 0 || errno != ENOMEM;
  };
  PageMask mask;
  if (mapped(run)) return mask;
  for (std::uint32_t page = run.first; page < run.end(); ++page)
    if (!mapped({page, 1})) mask.set(page);
  return mask;
}

int drop_pages(ByteRange pages) {
  if (madvise(pages.begin.pointer(), pages.bytes(), MADV_DONTNEED) == 0) return 0;
  if (errno != EINVAL) return errno;
  // mlock()ed memory is refused, unless asked for by this name (5.18).
  return madvise(pages.begin.pointer(), pages.bytes(), MADV_DONTNEED_LOCKED) == 0 ? 0 : errno;
}

int remove_shared(ByteRange pages) {
  return madvise(pages.begin.pointer(), pages.bytes(), MADV_REMOVE) == 0 ? 0 : errno;
}

int populate_write(ByteRange pages) {
  return madvise(pages.begin.pointer(), pages.bytes(), MADV_POPULATE_WRITE) == 0 ? 0 : errno;
}

bool touch_for_write(VirtAddr page) {
  // FUTEX_WAKE_OP adds 0 to the word at `page`, atomically, and resolves faults without the right to sleep in
  // userfaultfd (as fault_in_user_writeable() does); its other futex is a word of our own that nobody waits for.
  static std::uint32_t own_word = 0;
  constexpr int kAddZero = FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0);
  return syscall(SYS_futex, &own_word, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, page.pointer(), kAddZero) >= 0;
}

int map_bus_error(ByteRange pages) {
  const int fd = memfd_create(kLostName, MFD_CLOEXEC);
  if (fd < 0) return errno;
  // Beyond the end of an empty file there is nothing to map: every access is SIGBUS.
  void* view = mmap(pages.begin.pointer(), pages.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  const int error = view == MAP_FAILED ? errno : 0;
  ::close(fd);
  return error;
}

int map_again(std::byte* view, ByteRange pages) {
  void* mapped = mremap(view, 0, pages.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, pages.begin.pointer());
  if (mapped == MAP_FAILED) return errno;
  (void)madvise(mapped, pages.bytes(), MADV_DOFORK);  // the view is not inherited
  return 0;
}

int map_zeros(ByteRange pages) {
  void* memory = mmap(pages.begin.pointer(), pages.bytes(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  return memory == MAP_FAILED ? errno : 0;
}

int make_anonymous(const ProcessMemory& process, const Mapping& mapping, ByteRange pages) {
  std::byte* fresh = map_plain(pages.bytes());
  if (fresh == nullptr) return ENOMEM;
  // Beyond the end of the file there is nothing to read.
  int error = process.read(pages.begin, fresh, pages.bytes()) == pages.bytes() ? 0 : EIO;
  if (error == 0) error = protect_like(mapping, fresh, pages.bytes());
  if (error == 0) error = move_mapping(fresh, pages);
  if (error != 0) unmap(fresh, pages.bytes());
  return error;
}

const std::byte* map_file(int fd, std::uint64_t offset, std::size_t bytes) {
  void* view = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, static_cast<off_t>(offset));
  if (view == MAP_FAILED) return nullptr;
  (void)madvise(view, bytes, MADV_DONTFORK);
  return static_cast<const std::byte*>(view);
}

std::uint32_t count_threads() {
  // Field 20 of the line; the second is a name in parentheses that may contain anything.
  char line[1024] = {};
  const int fd = ::open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ~0u;
  const ssize_t got = ::read(fd, line, sizeof(line) - 1);
  ::close(fd);
  const char* rest = got > 0 ? std::strrchr(line, ')') : nullptr;
  unsigned threads = 0;
  if (rest == nullptr ||
      std::sscanf(rest, ") %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %u", &threads) != 1)
    return ~0u;
  return threads;
}

}  // namespace uhmm::os
