// SPDX-License-Identifier: Apache-2.0
// userfaultfd(2), the only place that knows <linux/userfaultfd.h>. Calls never block except read() on a blocking
// descriptor (ours never are) and take no lock of ours.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/lock.hpp"
#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::os {

// Which faults a registered range reports.
enum FaultMode : unsigned { kMissing = 1, kWriteProtect = 2, kMinor = 4 };

struct UffdFault {
  VirtAddr address;  // page-aligned
  bool is_write = false;
  bool is_write_protect = false;  // a present page was write-protected
  bool is_minor = false;          // shared memory: the page exists but is not mapped
  std::uint32_t thread = 0;       // kernel thread id, 0 if unknown
};

// The program moved watched memory with mremap(2).
struct UffdMove {
  VirtAddr from;
  VirtAddr to;
  std::uint64_t bytes = 0;
};

// Who wants to know what the program does to the map of watched memory.
struct MapListener {
  // Memory was moved; it is watched where it is now.
  void (*moved)(void* context, const UffdMove& move) = nullptr;
  // Memory was unmapped, or something else was mapped over it. The addresses may be in use again.
  void (*unmapped)(void* context, ByteRange pages) = nullptr;
  // Was something told of these pages that is not dealt with yet?
  bool (*concerns)(void* context, ByteRange pages) = nullptr;
  void* context = nullptr;
};

// What only some users of a descriptor want.
enum Wish : unsigned {
  // Watched memory that the program moves stays watched, its unmapping is news, and somebody has to listen().
  kFollowMap = 1,
  kMarkAbsent = 2,  // write_protect() marks absent pages of private memory too: pagemap shows those as swapped (6.4)
  // A child made by fork() finds watched memory watched, by a descriptor of its own that this process gets, and
  // somebody has to listen_to_forks(). Where it is not allowed (CAP_SYS_PTRACE) the wish is forgotten.
  kFollowForks = 4,
};

enum class Wake : bool { No, Yes };

// How far a bulk call got. `done` bytes succeeded from the start; error is the errno that stopped it, 0 if none.
struct Progress {
  std::uint64_t done = 0;
  int error = 0;
};

struct UffdFeatures {
  bool move = false;                  // UFFDIO_MOVE, 6.8
  bool poison = false;                // UFFDIO_POISON, 6.6
  bool write_protect = false;         // on anonymous memory, 5.7
  bool shared_missing = false;        // shmem missing faults
  bool shared_minor = false;          // shmem minor faults, 5.14
  bool shared_write_protect = false;  // 5.19
  bool kernel_mode = false;           // faults of system calls reach us; else user-mode only
  bool continue_protected = false;    // UFFDIO_CONTINUE maps write-protected, 6.4
  bool marks_absent = false;          // as wished, and the kernel can
  bool follows_forks = false;         // as wished, and allowed
};

// Ways to get a userfaultfd, best first: by system call and by the device file it reports faults of system calls too.
// Signal: no messages, SIGBUS for the faulting thread; never chosen by Any.
enum class Rung : std::uint32_t { Any, SystemCall, DeviceFile, UserMode, Signal };
// A bare descriptor by one rung (not Any), for those who only ask what there is. -1 with errno.
int open_rung(Rung rung);

class Userfaultfd {
 public:
  Userfaultfd() = default;
  Userfaultfd(const Userfaultfd&) = delete;
  Userfaultfd& operator=(const Userfaultfd&) = delete;
  Userfaultfd(Userfaultfd&& other) noexcept;
  Userfaultfd& operator=(Userfaultfd&& other) noexcept;
  ~Userfaultfd();

  // Opens a non-blocking, close-on-exec descriptor for the calling process with everything this kernel offers: the
  // system call, else /dev/userfaultfd, else user-mode-only; or by the one rung that is named. Errors: NOT_SUPPORTED,
  // PERMISSION, with what would help.
  // `wishes`: a set of Wish.
  static Result<Userfaultfd> open(Rung rung = Rung::Any, unsigned wishes = 0);
  // Takes over a descriptor made by open() in another process; `features` as that process found them.
  static Userfaultfd adopt(int fd, const UffdFeatures& features);

  int fd() const { return fd_; }
  int release();
  void close();
  const UffdFeatures& features() const { return features_; }
  Rung rung() const { return rung_; }  // Any: adopted

  // 0 or an errno. `mode` is a set of FaultMode.
  int register_range(ByteRange pages, unsigned mode) const;
  int unregister_range(ByteRange pages) const;

  // Pages from `from` (private anonymous memory of this process) into the absent pages at `to`; wakes faults there
  // unless told not to. Errors: EEXIST (present), EAGAIN (map is changing), EBUSY (pinned or shared after fork),
  // ENOENT (source hole), EINVAL (kinds or permissions differ).
  Progress move(VirtAddr to, VirtAddr from, std::uint64_t bytes, bool wake = true) const;
  Progress copy(VirtAddr to, const void* from, std::uint64_t bytes, bool write_protected = false) const;
  Progress zero(VirtAddr to, std::uint64_t bytes) const;
  // Map shared pages that exist already.
  Progress map_existing(ByteRange pages, bool write_protected) const;
  // Poisoned pages raise SIGBUS.
  Progress poison(ByteRange pages) const;
  // 0 or an errno. Clearing protection wakes faults there, unless told not to.
  int write_protect(ByteRange pages, bool on, Wake wake = Wake::Yes) const;
  void wake(ByteRange pages) const;

  // How many faults were stored; 0 when none are pending.
  std::size_t read(std::span<UffdFault> faults) const;

  // From now on `listener` is told of memory that the program moved or unmapped, in the order in which it happened, and
  // before any fault that came after it is read. It may be called by any call here, under whatever locks the caller
  // has, and must not wait. The program's thread goes on when it has been told; until then the kernel answers EAGAIN to
  // changes of pages. A call that meets that answer fails with ESTALE if what was told concerns its pages.
  void listen(const MapListener& listener) { listener_ = listener; }
  // The same for forks: `forked` owns the new process's descriptor, whose news and faults wait to be read. The thread
  // that forks goes on when it has been told.
  void listen_to_forks(void (*forked)(void* context, int fd), void* context);
  // The kernel needs a descriptor to tell of a fork: one is kept for that, and renewed here when it has been used.
  void renew_spare() const;
  // Reads on for those who listen. Faults that come out with it are taken again.
  void read_on() const;
  // True: of every change and fork that has happened so far, whoever listens has been told.
  bool all_told() const;
  // Any thread, takes no lock: on return those whose news had been taken from the kernel have been told it.
  void let_tell() const;

  // The caller maps something else over watched pages: that is no news. The kernel wants it read all the same, so
  // somebody has to go on reading until it is over.
  void begin_replacing(ByteRange pages) const;
  void end_replacing(ByteRange pages) const;

 private:
  template <typename Stale, typename Step>
  Progress repeat(std::uint64_t bytes, Stale&& stale, Step&& step) const;
  bool is_stale(ByteRange pages) const {
    return listener_.concerns != nullptr && listener_.concerns(listener_.context, pages);
  }
  void tell(const void* message) const;
  bool is_own(ByteRange unmapped) const;
  long read_message(void* messages, std::size_t bytes) const;

  std::uint64_t moved_in_silence(VirtAddr to, VirtAddr from, std::uint64_t bytes) const;

  int fd_ = -1;
  int pagemap_ = -1;  // of the process that moves
  UffdFeatures features_;
  Rung rung_ = Rung::Any;
  MapListener listener_;
  void (*forked_)(void* context, int fd) = nullptr;
  void* forked_context_ = nullptr;
  // News is told in the order in which it is taken from the kernel.
  mutable RankedMutex<LockRank::News> news_mutex_;
  mutable std::atomic<std::uint32_t> rounds_{0};  // odd: between taking news from the kernel and telling it
  // Pages that are being replaced by ourselves.
  struct Own {
    std::atomic<std::uint64_t> begin{0};
    std::atomic<std::uint64_t> end{0};
  };
  mutable std::array<Own, 64> replaced_;
  mutable std::atomic<int> spare_{-1};
};

}  // namespace uhmm::os
