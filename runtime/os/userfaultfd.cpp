// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/userfaultfd.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

// The installed header may be older than the running kernel: what it lacks is defined here, under our own names where
// the layout matters, and tested at run time.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace uhmm::os {
namespace {

constexpr std::uint64_t kFeatureWriteProtect = 1u << 0;
constexpr std::uint64_t kFeatureMissingShmem = 1u << 5;
constexpr std::uint64_t kFeatureThreadId = 1u << 8;
constexpr std::uint64_t kFeatureMinorShmem = 1u << 10;
constexpr std::uint64_t kFeatureWpHugetlbfsShmem = 1u << 12;
constexpr std::uint64_t kFeaturePoison = 1u << 14;
constexpr std::uint64_t kFeatureWpAsync = 1u << 15;  // never asked for; its presence dates the kernel (6.7)
constexpr std::uint64_t kFeatureMove = 1u << 16;
constexpr std::uint64_t kWanted = kFeatureWriteProtect | kFeatureMissingShmem | kFeatureThreadId | kFeatureMinorShmem |
                                  kFeatureWpHugetlbfsShmem | kFeaturePoison | kFeatureMove;

struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t moved;
};
constexpr std::uint64_t kMoveDontWake = 1;
struct PoisonArgs {
  struct uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
const unsigned long kMoveRequest = _IOWR(UFFDIO, 0x05, MoveArgs);
const unsigned long kPoisonRequest = _IOWR(UFFDIO, 0x08, PoisonArgs);
constexpr std::uint64_t kContinueWriteProtected = 2;

// -1 with errno; *rung becomes the one that it was.
int open_raw(Rung* rung) {
  if (*rung != Rung::Any) return open_rung(*rung);
  for (const Rung next : {Rung::SystemCall, Rung::DeviceFile, Rung::UserMode}) {
    const int fd = open_rung(next);
    if (fd >= 0) *rung = next;
    // No lower rung helps where the kernel has none, or is out of descriptors.
    if (fd >= 0 || next == Rung::UserMode || (next == Rung::SystemCall && errno != EPERM)) return fd;
  }
  return -1;
}

int handshake(int fd, std::uint64_t wanted, std::uint64_t* offered) {
  struct uffdio_api api {};
  api.api = UFFD_API;
  api.features = wanted;
  if (ioctl(fd, UFFDIO_API, &api) != 0) return errno;
  *offered = api.features;
  return 0;
}

struct uffdio_range to_range(ByteRange pages) {
  return {pages.begin.value, pages.bytes()};
}

// The kernel writes how many bytes it did, or a negative errno, into a field of the request.
Progress progress_of(int result, std::int64_t field) {
  if (result == 0) return {static_cast<std::uint64_t>(field), 0};
  const int error = errno;
  if (field > 0) return {static_cast<std::uint64_t>(field), error};
  return {0, error};
}

// Repeats `step(offset, length)` while it makes progress, and a bounded number of times when it was told to try again
// (the memory map was changing, or the kernel held the page for a moment). A piece that reaches from one of the
// program's mappings into the next is refused as a whole, as if there were no memory at all: then smaller pieces are
// tried, and only what is said about a single page is believed.
template <typename Step>
Progress repeat(std::uint64_t bytes, Step&& step) {
  constexpr int kMostRetries = 200;
  Progress total;
  int retries = 0;
  std::uint64_t piece = bytes;
  while (total.done < bytes) {
    piece = std::min(piece, bytes - total.done);
    const Progress part = step(total.done, piece);
    total.done += part.done;
    if (part.error == 0) {
      piece = bytes;
      continue;
    }
    if (part.error == EAGAIN && (part.done > 0 || ++retries < kMostRetries)) continue;
    const bool may_be_a_border = part.error == ENOENT || part.error == EINVAL;
    if (may_be_a_border && piece > kPageBytes) {
      piece = (piece / 2 + kPageBytes - 1) & ~(kPageBytes - 1);
      continue;
    }
    total.error = part.error;
    return total;
  }
  return total;
}

}  // namespace

int open_rung(Rung rung) {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  if (rung == Rung::SystemCall) return static_cast<int>(syscall(SYS_userfaultfd, kFlags));
  if (rung == Rung::UserMode) return static_cast<int>(syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY));
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return -1;
  const int fd = ioctl(device, USERFAULTFD_IOC_NEW, kFlags);
  const int error = errno;
  ::close(device);
  errno = error;
  return fd;
}

Userfaultfd::Userfaultfd(Userfaultfd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), features_(other.features_), rung_(other.rung_) {}

Userfaultfd& Userfaultfd::operator=(Userfaultfd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    features_ = other.features_;
    rung_ = other.rung_;
  }
  return *this;
}

Userfaultfd::~Userfaultfd() { close(); }

int Userfaultfd::release() { return std::exchange(fd_, -1); }

void Userfaultfd::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Result<Userfaultfd> Userfaultfd::open(Rung rung) {
  const bool by_name = rung != Rung::Any;
  const int probe = open_raw(&rung);
  if (probe < 0) {
    if (errno == ENOSYS)
      return fail(UHMM_ERR_NOT_SUPPORTED,
                  "this kernel has no userfaultfd (CONFIG_USERFAULTFD off, or a sandbox such as gVisor)");
    if (rung == Rung::DeviceFile && (errno == ENOENT || errno == ENXIO || errno == ENODEV))
      return fail(UHMM_ERR_NOT_SUPPORTED, "there is no /dev/userfaultfd here (Linux 6.1 and later)");
    if (by_name && (errno == EPERM || errno == EACCES))
      return fail(
          UHMM_ERR_PERMISSION,
          "%s is refused to this process: UHMM_FAULTS=auto takes what there is, `uhmm doctor` tells what would help",
          rung == Rung::DeviceFile ? "/dev/userfaultfd" : "userfaultfd(2)");
    if (errno == EPERM)
      return fail(UHMM_ERR_PERMISSION,
                  "userfaultfd is refused here (seccomp?): allow the system call, or give access to /dev/userfaultfd");
    return fail_errno("userfaultfd", errno);
  }
  std::uint64_t offered = 0;
  int error = handshake(probe, 0, &offered);
  ::close(probe);
  if (error != 0) return fail_errno("UFFDIO_API", error);

  Userfaultfd result;
  result.fd_ = open_raw(&rung);
  if (result.fd_ < 0) return fail_errno("userfaultfd", errno);
  std::uint64_t granted = 0;
  error = handshake(result.fd_, offered & kWanted, &granted);
  if (error != 0) return fail_errno("UFFDIO_API", error);

  UffdFeatures& features = result.features_;
  features.move = (offered & kFeatureMove) != 0;
  features.poison = (offered & kFeaturePoison) != 0;
  features.write_protect = (offered & kFeatureWriteProtect) != 0;
  features.shared_missing = (offered & kFeatureMissingShmem) != 0;
  features.shared_minor = (offered & kFeatureMinorShmem) != 0;
  features.shared_write_protect = (offered & kFeatureWpHugetlbfsShmem) != 0;
  // The mode came with 6.4 and has no feature bit; the poison feature (6.6) is the next bit that proves it.
  features.continue_protected = (offered & (kFeaturePoison | kFeatureWpAsync)) != 0;
  features.kernel_mode = rung != Rung::UserMode;
  result.rung_ = rung;
  return result;
}

Userfaultfd Userfaultfd::adopt(int fd, const UffdFeatures& features) {
  Userfaultfd result;
  result.fd_ = fd;
  result.features_ = features;
  return result;
}

int Userfaultfd::register_range(ByteRange pages, unsigned mode) const {
  struct uffdio_register request {};
  request.range = to_range(pages);
  if ((mode & kMissing) != 0) request.mode |= UFFDIO_REGISTER_MODE_MISSING;
  if ((mode & kWriteProtect) != 0) request.mode |= UFFDIO_REGISTER_MODE_WP;
  if ((mode & kMinor) != 0) request.mode |= UFFDIO_REGISTER_MODE_MINOR;
  return ioctl(fd_, UFFDIO_REGISTER, &request) == 0 ? 0 : errno;
}

int Userfaultfd::unregister_range(ByteRange pages) const {
  struct uffdio_range range = to_range(pages);
  return ioctl(fd_, UFFDIO_UNREGISTER, &range) == 0 ? 0 : errno;
}

Progress Userfaultfd::move(VirtAddr to, VirtAddr from, std::uint64_t bytes, bool wake) const {
  return repeat(bytes, [&](std::uint64_t offset, std::uint64_t length) {
    MoveArgs args{to.value + offset, from.value + offset, length, wake ? 0 : kMoveDontWake, 0};
    const int result = ioctl(fd_, kMoveRequest, &args);
    return progress_of(result, args.moved);
  });
}

Progress Userfaultfd::copy(VirtAddr to, const void* from, std::uint64_t bytes, bool write_protected) const {
  return repeat(bytes, [&](std::uint64_t offset, std::uint64_t length) {
    struct uffdio_copy args {};
    args.dst = to.value + offset;
    args.src = reinterpret_cast<std::uint64_t>(from) + offset;
    args.len = length;
    args.mode = write_protected ? UFFDIO_COPY_MODE_WP : 0;
    const int result = ioctl(fd_, UFFDIO_COPY, &args);
    return progress_of(result, args.copy);
  });
}

Progress Userfaultfd::zero(VirtAddr to, std::uint64_t bytes) const {
  return repeat(bytes, [&](std::uint64_t offset, std::uint64_t length) {
    struct uffdio_zeropage args {};
    args.range = {to.value + offset, length};
    const int result = ioctl(fd_, UFFDIO_ZEROPAGE, &args);
    return progress_of(result, args.zeropage);
  });
}

Progress Userfaultfd::map_existing(ByteRange pages, bool write_protected) const {
  return repeat(pages.bytes(), [&](std::uint64_t offset, std::uint64_t length) {
    struct uffdio_continue args {};
    args.range = {pages.begin.value + offset, length};
    args.mode = write_protected ? kContinueWriteProtected : 0;
    const int result = ioctl(fd_, UFFDIO_CONTINUE, &args);
    return progress_of(result, args.mapped);
  });
}

Progress Userfaultfd::poison(ByteRange pages) const {
  return repeat(pages.bytes(), [&](std::uint64_t offset, std::uint64_t length) {
    PoisonArgs args{};
    args.range = {pages.begin.value + offset, length};
    const int result = ioctl(fd_, kPoisonRequest, &args);
    return progress_of(result, args.updated);
  });
}

int Userfaultfd::write_protect(ByteRange pages, bool on) const {
  struct uffdio_writeprotect args {};
  args.range = to_range(pages);
  args.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  for (;;) {
    if (ioctl(fd_, UFFDIO_WRITEPROTECT, &args) == 0) return 0;
    if (errno != EAGAIN) return errno;
  }
}

void Userfaultfd::wake(ByteRange pages) const {
  struct uffdio_range range = to_range(pages);
  // Can only fail for a range that is no longer registered, and then nobody sleeps there.
  (void)ioctl(fd_, UFFDIO_WAKE, &range);
}

std::size_t Userfaultfd::read(std::span<UffdFault> faults) const {
  constexpr std::size_t kBatch = 32;
  struct uffd_msg messages[kBatch];
  const std::size_t wanted = faults.size() < kBatch ? faults.size() : kBatch;
  const ssize_t bytes = ::read(fd_, messages, wanted * sizeof(messages[0]));
  if (bytes <= 0) return 0;
  std::size_t stored = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(bytes) / sizeof(messages[0]); ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    const auto& fault = messages[i].arg.pagefault;
    UffdFault& out = faults[stored++];
    out.address = VirtAddr{fault.address}.page_floor();
    out.is_write = (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
    out.is_write_protect = (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
    out.is_minor = (fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0;
    out.thread = fault.feat.ptid;
  }
  return stored;
}

}  // namespace uhmm::os
