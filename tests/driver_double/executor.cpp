// SPDX-License-Identifier: Apache-2.0
#include "tests/driver_double/executor.hpp"

#include <link.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

// Present where the program is built with AddressSanitizer.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, std::size_t bytes);

namespace uhmm::driver_double {
namespace {

constexpr int kMapSignal = 62;  // nobody else's, and not one of the C library's own
constexpr int kFatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP};
constexpr std::uint32_t kQueue = 16;
constexpr std::size_t kMostVital = 512;
constexpr std::uint64_t kPage = 4096;

struct Span {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct Launch {
  uhmm_kernel kernel = nullptr;
  std::uint32_t grid[3] = {};
  alignas(16) std::byte args[UHMM_MAX_ARGS_BYTES] = {};
};

long futex(const std::atomic<std::uint32_t>& word, int operation, std::uint32_t value, long timeout_ms) {
  const timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1000000};
  return syscall(SYS_futex, &word, operation, value, timeout_ms != 0 ? &timeout : nullptr, nullptr, 0);
}

}  // namespace

// What both processes see.
struct Executor::Shared {
  std::atomic<std::uint32_t> mail{0};  // 1: a request is waiting
  Request request;
  std::atomic<std::uint32_t> posted{0};
  std::atomic<std::uint32_t> completed{0};
  std::atomic<std::uint32_t> failed{0};
  Fault fault;
  std::uint64_t running = 0;
  pid_t parent = 0;
  int file = -1;
  std::uint32_t vital_count = 0;
  Span vital[kMostVital];  // what the process itself needs, whatever the device has there
  Launch queue[kQueue];
  alignas(64) std::byte signal_stack[64 << 10] = {};
};

// The other side. No heap, no locks: this is a copy of a program with many threads.
struct ExecutorProcess {
  static Executor::Shared* shared;

  [[noreturn]] static void leave(int code) {
    for (;;) syscall(SYS_exit_group, code);
  }

  // Everything of [begin, end) but what is vital.
  template <typename Visit>
  static void around_vital(std::uint64_t begin, std::uint64_t end, Visit&& visit) {
    while (begin < end) {
      std::uint64_t stop = end;
      std::uint64_t next = end;
      for (std::uint32_t i = 0; i < shared->vital_count; ++i) {
        const Span& span = shared->vital[i];
        if (span.end <= begin || span.begin >= stop) continue;
        stop = span.begin > begin ? span.begin : begin;
        next = span.end;
      }
      if (stop > begin) visit(begin, stop);
      begin = stop < end ? next : end;
    }
  }

  static void map(const Executor::Request& request) {
    const bool open = request.action == Executor::Action::Open;
    around_vital(request.address, request.address + request.bytes, [&](std::uint64_t begin, std::uint64_t end) {
      const long place =
          syscall(SYS_mmap, begin, end - begin, open ? PROT_READ | PROT_WRITE : PROT_NONE,
                  open ? MAP_SHARED | MAP_FIXED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                  open ? shared->file : -1, open ? request.offset + (begin - request.address) : 0);
      if (static_cast<std::uint64_t>(place) != begin) leave(2);
      if (open && __asan_unpoison_memory_region != nullptr)
        __asan_unpoison_memory_region(reinterpret_cast<void*>(begin), end - begin);
    });
  }

  static void on_signal(int signal, void* siginfo, void*) {
    if (signal == kMapSignal) {
      if (shared->mail.load() == 1) {
        map(shared->request);
        shared->mail.store(0);
        futex(shared->mail, FUTEX_WAKE, 1, 0);
      }
      return;
    }
    if (signal == SIGALRM) {
      if (getppid() != shared->parent) leave(0);
      return;
    }
    shared->fault = {signal, reinterpret_cast<std::uint64_t>(static_cast<siginfo_t*>(siginfo)->si_addr),
                     shared->running};
    shared->failed.store(1);
    futex(shared->completed, FUTEX_WAKE, 1 << 30, 0);
    leave(1);
  }

  static void install(int signal) {
    // Past the C library and sanitizers, which would keep a signal back while a kernel runs.
    struct {
      void (*handler)(int, void*, void*);
      unsigned long flags;
      void (*restorer)();
      std::uint64_t mask;
    } action{};
    action.handler = on_signal;
    constexpr unsigned long kRestorer = 0x04000000;
    action.flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | kRestorer;
    action.restorer = return_from_handler;
    action.mask = ~std::uint64_t{0};
    (void)syscall(SYS_rt_sigaction, signal, &action, nullptr, sizeof(action.mask));
  }
  static void (*return_from_handler)();

  [[noreturn]] static void main() {
    const int file = shared->file;
    if (file > 3) (void)syscall(SYS_close_range, 3, file - 1, 0);
    (void)syscall(SYS_close_range, file + 1, ~0u, 0);
    const stack_t stack{shared->signal_stack, 0, sizeof(shared->signal_stack)};
    (void)syscall(SYS_sigaltstack, &stack, nullptr);
    for (int signal = 1; signal <= 64; ++signal) {
      const std::uint64_t none[4] = {};
      (void)syscall(SYS_rt_sigaction, signal, none, nullptr, 8);
    }
    for (const int signal : kFatal) install(signal);
    install(kMapSignal);
    install(SIGALRM);
    std::uint64_t mask = ~std::uint64_t{0};
    for (const int signal : kFatal) mask &= ~(std::uint64_t{1} << (signal - 1));
    mask &= ~(std::uint64_t{1} << (kMapSignal - 1)) & ~(std::uint64_t{1} << (SIGALRM - 1));
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
    // A kernel that never ends must not outlive its program.
    const itimerval every{{0, 500000}, {0, 500000}};
    (void)syscall(SYS_setitimer, ITIMER_REAL, &every, nullptr);
    for (std::uint32_t done = 0;;) {
      const std::uint32_t posted = shared->posted.load();
      if (posted == done) {
        futex(shared->posted, FUTEX_WAIT, posted, 200);
        if (getppid() != shared->parent) leave(0);
        continue;
      }
      run(shared->queue[done % kQueue]);
      shared->completed.store(++done);
      futex(shared->completed, FUTEX_WAKE, 1 << 30, 0);
    }
  }

  static void run(Launch& launch) {
    shared->running = reinterpret_cast<std::uint64_t>(launch.kernel);
    uhmm_kernel_item item{};
    for (int i = 0; i < 3; ++i) item.grid[i] = launch.grid[i];
    item.device = 1;
    for (item.index[2] = 0; item.index[2] < item.grid[2]; ++item.index[2])
      for (item.index[1] = 0; item.index[1] < item.grid[1]; ++item.index[1])
        for (item.index[0] = 0; item.index[0] < item.grid[0]; ++item.index[0]) {
          const uhmm_kernel_item mine = item;
          launch.kernel(&mine, launch.args);
        }
    shared->running = 0;
  }
};
Executor::Shared* ExecutorProcess::shared = nullptr;

#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .local uhmm_double_return
  .type uhmm_double_return, @function
uhmm_double_return:
  mov $15, %eax
  syscall
  .size uhmm_double_return, .-uhmm_double_return
)");
extern "C" __attribute__((visibility("hidden"))) void uhmm_double_return();
void (*ExecutorProcess::return_from_handler)() = uhmm_double_return;
#else
void (*ExecutorProcess::return_from_handler)() = nullptr;
#endif

namespace {

void add_vital(std::uint32_t& count, Span (&vital)[kMostVital], std::uint64_t begin, std::uint64_t end) {
  if (count < kMostVital) vital[count++] = {begin & ~(kPage - 1), (end + kPage - 1) & ~(kPage - 1)};
}

// The code and data of every module, the calling thread's stack and its thread-local storage.
void find_vital(std::uint32_t& count, Span (&vital)[kMostVital]) {
  struct Search {
    std::uint32_t& count;
    Span (&vital)[kMostVital];
  } search{count, vital};
  (void)dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* its) {
        auto& found = *static_cast<Search*>(its);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          if (part.p_type == PT_LOAD)
            add_vital(found.count, found.vital, info->dlpi_addr + part.p_vaddr,
                      info->dlpi_addr + part.p_vaddr + part.p_memsz);
        }
        return 0;
      },
      &search);
  const auto here = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  const auto local = reinterpret_cast<std::uint64_t>(&errno);
  FILE* maps = std::fopen("/proc/self/maps", "re");
  char line[512];
  while (maps != nullptr && std::fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (std::sscanf(line, "%lx-%lx", &begin, &end) != 2) continue;
    const bool mine = (here >= begin && here < end) || (local >= begin && local < end);
    if (mine || std::strstr(line, "[v") != nullptr) add_vital(count, vital, begin, end);
  }
  if (maps != nullptr) (void)std::fclose(maps);
}

}  // namespace

bool Executor::start() {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  shared_ = new (memory) Shared;
  shared_->parent = getpid();
  shared_->file = file_;
  find_vital(shared_->vital_count, shared_->vital);
  const auto segment = reinterpret_cast<std::uint64_t>(shared_);
  add_vital(shared_->vital_count, shared_->vital, segment, segment + sizeof(Shared));
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  ExecutorProcess::shared = shared_;
  // Past the C library: none of the program's fork handlers has anything to do with a GPU, and no wait() of its own
  // sees a child that announces itself with no signal.
  if (on_copy != nullptr) on_copy(true);
  const long pid = syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr);
  if (pid == 0) ExecutorProcess::main();
  if (on_copy != nullptr) on_copy(false);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pid_ = static_cast<pid_t>(pid);
  return pid > 0;
}

Executor::~Executor() {
  if (pid_ > 0 && shared_ != nullptr && shared_->parent == getpid()) {
    (void)kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, __WCLONE) < 0 && errno == EINTR) {
    }
  }
  if (shared_ != nullptr) (void)munmap(shared_, sizeof(Shared));
}

bool Executor::gone() const {
  siginfo_t info{};
  return shared_->failed.load() != 0 ||
         (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT | __WCLONE) == 0 &&
          info.si_pid != 0);
}

bool Executor::perform(const Request& request) {
  if (gone()) return false;
  shared_->request = request;
  shared_->mail.store(1);
  (void)kill(pid_, kMapSignal);
  while (shared_->mail.load() == 1) {
    futex(shared_->mail, FUTEX_WAIT, 1, 50);
    if (shared_->mail.load() == 1 && gone()) return false;
  }
  return true;
}

bool Executor::launch(const void* function, const std::uint32_t (&grid)[3], const void* args, std::size_t bytes) {
  while (launched_ - completed() >= kQueue) {
    if (gone()) return false;
    doze(completed());
  }
  if (gone()) return false;
  Launch& launch = shared_->queue[launched_ % kQueue];
  launch.kernel = reinterpret_cast<uhmm_kernel>(const_cast<void*>(function));
  for (int i = 0; i < 3; ++i) launch.grid[i] = grid[i];
  if (bytes != 0) std::memcpy(launch.args, args, bytes);
  ++launched_;
  shared_->posted.store(static_cast<std::uint32_t>(launched_));
  futex(shared_->posted, FUTEX_WAKE, 1, 0);
  return true;
}

std::uint64_t Executor::completed() const {
  const auto behind = static_cast<std::uint32_t>(launched_) - shared_->completed.load();
  return launched_ - behind;
}

void Executor::doze(std::uint64_t seen_completed) const {
  futex(shared_->completed, FUTEX_WAIT, static_cast<std::uint32_t>(seen_completed), 20);
}

Executor::Fault Executor::fault() const {
  if (shared_->failed.load() != 0) return shared_->fault;
  return gone() ? Fault{SIGKILL, 0, shared_->running} : Fault{};
}

}  // namespace uhmm::driver_double
