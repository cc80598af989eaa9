// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/userfaultfd.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/os/descriptors.hpp"
#include "runtime/os/userfaultfd_abi.hpp"

namespace uhmm::os {
namespace {

constexpr std::uint64_t kFeatureWriteProtect = 1u << 0;
constexpr std::uint64_t kFeatureMissingShmem = 1u << 5;
constexpr std::uint64_t kFeatureSigbus = 1u << 7;
constexpr std::uint64_t kFeatureThreadId = 1u << 8;
constexpr std::uint64_t kFeatureMinorShmem = 1u << 10;
constexpr std::uint64_t kFeatureWpHugetlbfsShmem = 1u << 12;
constexpr std::uint64_t kFeatureWpUnpopulated = 1u << 13;
constexpr std::uint64_t kFeaturePoison = 1u << 14;
constexpr std::uint64_t kFeatureWpAsync = 1u << 15;  // never asked for; its presence dates the kernel (6.7)
constexpr std::uint64_t kFeatureMove = 1u << 16;
constexpr std::uint64_t kFeatureEventFork = 1u << 1;
constexpr std::uint64_t kFeatureEventRemap = 1u << 2;
constexpr std::uint64_t kFeatureEventUnmap = 1u << 6;
constexpr std::uint64_t kWanted = kFeatureWriteProtect | kFeatureMissingShmem | kFeatureThreadId | kFeatureMinorShmem |
                                  kFeatureWpHugetlbfsShmem | kFeaturePoison | kFeatureMove;

constexpr int kReadEvery = 8;  // after so many calls that were told to try again

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

// One at a time takes news from the kernel and tells it.
template <typename Mutex>
class Reading {
 public:
  Reading(Mutex& mutex, std::atomic<std::uint32_t>& rounds) : lock_(mutex), rounds_(rounds) { rounds_.fetch_add(1); }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  ~Reading() {
    rounds_.fetch_add(1);
    rounds_.notify_all();
  }

 private:
  std::scoped_lock<Mutex> lock_;
  std::atomic<std::uint32_t>& rounds_;
};

}  // namespace

int open_rung(Rung rung) {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  if (rung == Rung::SystemCall) return static_cast<int>(syscall(SYS_userfaultfd, kFlags));
  if (rung == Rung::UserMode || rung == Rung::Signal)
    return static_cast<int>(syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY));
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return -1;
  const int fd = ioctl(device, USERFAULTFD_IOC_NEW, kFlags);
  const int error = errno;
  ::close(device);
  errno = error;
  return fd;
}

Userfaultfd::Userfaultfd(Userfaultfd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      pagemap_(std::exchange(other.pagemap_, -1)),
      features_(other.features_),
      rung_(other.rung_),
      listener_(other.listener_),
      forked_(other.forked_),
      forked_context_(other.forked_context_) {}

Userfaultfd& Userfaultfd::operator=(Userfaultfd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    pagemap_ = std::exchange(other.pagemap_, -1);
    features_ = other.features_;
    rung_ = other.rung_;
    listener_ = other.listener_;
    forked_ = other.forked_;
    forked_context_ = other.forked_context_;
  }
  return *this;
}

Userfaultfd::~Userfaultfd() { close(); }

int Userfaultfd::release() { return std::exchange(fd_, -1); }

void Userfaultfd::close() {
  if (const int spare = spare_.exchange(-1); spare >= 0) close_kept(spare);
  for (int* fd : {&fd_, &pagemap_})
    if (*fd >= 0) ::close(std::exchange(*fd, -1));
}

Result<Userfaultfd> Userfaultfd::open(Rung rung, unsigned wishes) {
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
  std::uint64_t wanted = kWanted;
  if (rung == Rung::Signal) {
    if ((offered & kFeatureSigbus) == 0)
      return fail(UHMM_ERR_NOT_SUPPORTED, "this kernel's userfaultfd can't signal faults (4.14)");
    wanted |= kFeatureSigbus;
  }
  if ((wishes & kFollowMap) != 0) wanted |= kFeatureEventRemap | kFeatureEventUnmap;
  if ((wishes & kMarkAbsent) != 0) wanted |= kFeatureWpUnpopulated;
  const bool asks_for_forks = (wishes & kFollowForks) != 0 && rung != Rung::Signal;
  if (asks_for_forks) wanted |= kFeatureEventFork;
  std::uint64_t granted = 0;
  error = handshake(result.fd_, offered & wanted, &granted);
  if (error == EPERM && asks_for_forks) {  // CAP_SYS_PTRACE is wanted for it; without, the same descriptor tries again
    wanted &= ~kFeatureEventFork;
    error = handshake(result.fd_, offered & wanted, &granted);
  }
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
  features.marks_absent = (offered & wanted & kFeatureWpUnpopulated) != 0;
  features.follows_forks = (offered & wanted & kFeatureEventFork) != 0;
  features.kernel_mode = rung != Rung::UserMode && rung != Rung::Signal;
  result.rung_ = rung;
  if (features.move) result.pagemap_ = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
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

// Repeats `step(offset, length)` while it makes progress, and a bounded number of times when it was told to try again
// (the memory map was changing, or the kernel held the page for a moment). A piece that reaches from one of the
// program's mappings into the next is refused as a whole, as if there were no memory at all: then smaller pieces are
// tried, and only what is said about a single page is believed.
// stale(done): has something been told of the pages that are left?
template <typename Stale, typename Step>
Progress Userfaultfd::repeat(std::uint64_t bytes, Stale&& stale, Step&& step) const {
  constexpr int kMostRetries = 200;
  Progress total;
  int retries = 0;
  int tries = 0;
  std::uint64_t piece = bytes;
  while (total.done < bytes) {
    piece = std::min(piece, bytes - total.done);
    const Progress part = step(total.done, piece);
    total.done += part.done;
    if (part.error == 0) {
      piece = bytes;
      continue;
    }
    if (part.done > 0) continue;  // what stopped it is met again
    // While the memory map is changing that is all the kernel says, however long it takes.
    if (part.error == EAGAIN && (!all_told() || ++retries < kMostRetries)) {
      if (++tries % kReadEvery == 0) {
        read_on();
        std::this_thread::yield();
      }
      if (!stale(total.done)) continue;
      total.error = ESTALE;
      return total;
    }
    const bool may_be_a_border = part.error == ENOENT || part.error == EINVAL;
    if (may_be_a_border && piece > kPageBytes) {
      piece = (piece / 2 + kPageBytes - 1) & ~(kPageBytes - 1);
      continue;
    }
    // What was told while the call was made counts as if it had been told before.
    let_tell();
    total.error = stale(total.done) ? ESTALE : part.error;
    return total;
  }
  return total;
}

// Linux 6.18 may move the first pages of a call and then report a failure as if it had moved none (seen where two
// threads move parts of one huge page whose mapping is split): those that are at their new place and no more at the old
// one.
std::uint64_t Userfaultfd::moved_in_silence(VirtAddr to, VirtAddr from, std::uint64_t bytes) const {
  constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
  constexpr std::uint64_t kSwapped = std::uint64_t{1} << 62;
  const auto entry = [this](VirtAddr page) {
    std::uint64_t word = 0;
    const ssize_t got =
        pread(pagemap_, &word, sizeof(word), static_cast<off_t>(page.value / kPageBytes * sizeof(word)));
    return got == static_cast<ssize_t>(sizeof(word)) ? word : kSwapped;
  };
  std::uint64_t moved = 0;
  while (moved < bytes && (entry(to + moved) & kPresent) != 0 && (entry(from + moved) & (kPresent | kSwapped)) == 0)
    moved += kPageBytes;
  return moved;
}

Progress Userfaultfd::move(VirtAddr to, VirtAddr from, std::uint64_t bytes, bool wake) const {
  const auto stale = [&](std::uint64_t done) {
    return is_stale({to + done, to + bytes}) || is_stale({from + done, from + bytes});
  };
  return repeat(bytes, stale, [&](std::uint64_t offset, std::uint64_t length) {
    MoveArgs args{to.value + offset, from.value + offset, length, wake ? 0 : kMoveDontWake, 0};
    const int result = ioctl(fd_, kMoveRequest, &args);
    Progress progress = progress_of(result, args.moved);
    if (progress.error != 0 && progress.done == 0) {
      progress.done = moved_in_silence(to + offset, from + offset, length);
      if (wake && progress.done != 0) this->wake({to + offset, to + offset + progress.done});
    }
    if (progress.done == length) progress.error = 0;
    return progress;
  });
}

Progress Userfaultfd::copy(VirtAddr to, const void* from, std::uint64_t bytes, bool write_protected) const {
  const auto stale = [&](std::uint64_t done) { return is_stale({to + done, to + bytes}); };
  return repeat(bytes, stale, [&](std::uint64_t offset, std::uint64_t length) {
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
  const auto stale = [&](std::uint64_t done) { return is_stale({to + done, to + bytes}); };
  return repeat(bytes, stale, [&](std::uint64_t offset, std::uint64_t length) {
    struct uffdio_zeropage args {};
    args.range = {to.value + offset, length};
    const int result = ioctl(fd_, UFFDIO_ZEROPAGE, &args);
    return progress_of(result, args.zeropage);
  });
}

Progress Userfaultfd::map_existing(ByteRange pages, bool write_protected) const {
  const auto stale = [&](std::uint64_t done) { return is_stale({pages.begin + done, pages.end}); };
  return repeat(pages.bytes(), stale, [&](std::uint64_t offset, std::uint64_t length) {
    struct uffdio_continue args {};
    args.range = {pages.begin.value + offset, length};
    args.mode = write_protected ? kContinueWriteProtected : 0;
    const int result = ioctl(fd_, UFFDIO_CONTINUE, &args);
    return progress_of(result, args.mapped);
  });
}

Progress Userfaultfd::poison(ByteRange pages) const {
  const auto stale = [&](std::uint64_t done) { return is_stale({pages.begin + done, pages.end}); };
  return repeat(pages.bytes(), stale, [&](std::uint64_t offset, std::uint64_t length) {
    PoisonArgs args{};
    args.range = {pages.begin.value + offset, length};
    const int result = ioctl(fd_, kPoisonRequest, &args);
    return progress_of(result, args.updated);
  });
}

int Userfaultfd::write_protect(ByteRange pages, bool on, Wake wake) const {
  struct uffdio_writeprotect args {};
  args.range = to_range(pages);
  args.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  if (!on && wake == Wake::No) args.mode |= UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  for (int tries = 1;; ++tries) {
    if (ioctl(fd_, UFFDIO_WRITEPROTECT, &args) == 0) return 0;
    if (errno != EAGAIN) return errno;
    if (tries % kReadEvery == 0) read_on();
    if (is_stale(pages)) return ESTALE;
  }
}

void Userfaultfd::wake(ByteRange pages) const {
  struct uffdio_range range = to_range(pages);
  // Can only fail for a range that is no longer registered, and then nobody sleeps there.
  (void)ioctl(fd_, UFFDIO_WAKE, &range);
}

void Userfaultfd::renew_spare() const {
  if (spare_.load() >= 0) return;
  const int fresh = keep_descriptor(fcntl(fd_, F_DUPFD_CLOEXEC, 3));
  int none = -1;
  if (fresh >= 0 && !spare_.compare_exchange_strong(none, fresh)) close_kept(fresh);
}

long Userfaultfd::read_message(void* messages, std::size_t bytes) const {
  ssize_t got = ::read(fd_, messages, bytes);
  // Out of descriptors a fork would sleep until one is free.
  if (got < 0 && (errno == EMFILE || errno == ENFILE))
    if (const int spare = spare_.exchange(-1); spare >= 0) {
      close_kept(spare);
      got = ::read(fd_, messages, bytes);
    }
  return got;
}

std::size_t Userfaultfd::read(std::span<UffdFault> faults) const {
  constexpr std::size_t kBatch = 32;
  struct uffd_msg messages[kBatch];
  const std::size_t wanted = faults.size() < kBatch ? faults.size() : kBatch;
  const Reading reading(news_mutex_, rounds_);
  const long bytes = read_message(messages, wanted * sizeof(messages[0]));
  if (bytes <= 0) return 0;
  std::size_t stored = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(bytes) / sizeof(messages[0]); ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) {
      tell(&messages[i]);
      continue;
    }
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

void Userfaultfd::listen_to_forks(void (*forked)(void* context, int fd), void* context) {
  forked_ = forked;
  forked_context_ = context;
}

void Userfaultfd::tell(const void* raw) const {
  const auto& message = *static_cast<const struct uffd_msg*>(raw);
  if (message.event == UFFD_EVENT_FORK) {
    const int fd = static_cast<int>(message.arg.fork.ufd);
    if (forked_ != nullptr)
      forked_(forked_context_, fd);
    else
      ::close(fd);
    return;
  }
  if (message.event == UFFD_EVENT_UNMAP && listener_.unmapped != nullptr) {
    const ByteRange pages{VirtAddr{std::uint64_t{message.arg.remove.start}},
                          VirtAddr{std::uint64_t{message.arg.remove.end}}};
    if (!is_own(pages)) listener_.unmapped(listener_.context, pages);
  }
  if (message.event != UFFD_EVENT_REMAP || listener_.moved == nullptr) return;
  const auto& move = message.arg.remap;
  listener_.moved(listener_.context, {VirtAddr{std::uint64_t{move.from}}, VirtAddr{std::uint64_t{move.to}}, move.len});
}

void Userfaultfd::begin_replacing(ByteRange pages) const {
  for (;;) {
    for (Own& own : replaced_) {
      std::uint64_t none = 0;
      if (own.end.load() != 0 || !own.begin.compare_exchange_strong(none, pages.begin.value)) continue;
      own.end.store(pages.end.value);
      return;
    }
    std::this_thread::yield();
  }
}

void Userfaultfd::end_replacing(ByteRange pages) const {
  // The system call may return before the news of it is told.
  let_tell();
  for (Own& own : replaced_) {
    if (own.begin.load() != pages.begin.value) continue;
    own.end.store(0);
    own.begin.store(0);
    return;
  }
}

// Of what begin_replacing() has announced. Each time is one piece of news at most.
bool Userfaultfd::is_own(ByteRange unmapped) const {
  return std::ranges::any_of(replaced_, [&](Own& own) {
    std::uint64_t end = unmapped.end.value;
    return own.begin.load() == unmapped.begin.value && own.end.compare_exchange_strong(end, 0);
  });
}

bool Userfaultfd::all_told() const {
  // The kernel looks whether the map is changing before it looks at the (empty) range.
  struct uffdio_writeprotect nothing {};
  const bool changing = ioctl(fd_, UFFDIO_WRITEPROTECT, &nothing) != 0 && errno == EAGAIN;
  return !changing && rounds_.load() % 2 == 0;
}

void Userfaultfd::let_tell() const {
  if (const std::uint32_t round = rounds_.load(); round % 2 != 0) rounds_.wait(round);
}

// The memory map may be changing until somebody reads of it, and all who would read may be waiting for that. Faults
// come out first: who faulted sleeps until the news is read, or nothing is left to read, and then tries again.
void Userfaultfd::read_on() const {
  if (listener_.moved == nullptr && forked_ == nullptr) return;
  const Reading reading(news_mutex_, rounds_);
  std::uint64_t asleep[64];
  std::size_t count = 0;
  struct uffd_msg message {};
  while (count < std::size(asleep) && read_message(&message, sizeof(message)) == sizeof(message)) {
    if (message.event == UFFD_EVENT_PAGEFAULT)
      asleep[count++] = message.arg.pagefault.address;
    else
      tell(&message);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const VirtAddr page = VirtAddr{asleep[i]}.page_floor();
    wake({page, page + kPageBytes});
  }
}

}  // namespace uhmm::os
