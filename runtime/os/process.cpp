// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/process.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace uhmm::os {
namespace {

thread_local bool spawning = false;
std::atomic<bool> device_process{false};

std::atomic<void*> calling_card{nullptr};

struct SpawnRequest {
  void (*child_main)(void*) = nullptr;
  void* argument = nullptr;
  SpawnedProcess result;
  int error = 0;
};

// Runs in the helper: a process that shares this one's memory, descriptors and the calling thread's identity towards
// the C library, as after vfork(). So its fork() takes the allocator's locks like the calling thread would, and the new
// process is the helper's child, not the program's.
void fork_in_helper(void* argument) {
  auto* request = static_cast<SpawnRequest*>(argument);
  const pid_t pid = ::fork();
  if (pid == 0) {
    device_process.store(true, std::memory_order_relaxed);
    if (void* card = calling_card.load()) (void)syscall(SYS_munmap, card, kPageBytes);
    request->child_main(request->argument);
    exit_now(1);
  }
  if (pid < 0) {
    request->error = errno;
    return;
  }
  // As long as the helper lives the pid can't be reused, and the descriptor table is shared: no race.
  request->result.pid = pid;
  request->result.pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (request->result.pidfd >= 0) return;
  request->error = errno;
  (void)kill(pid, SIGKILL);
}

// clone(2) with CLONE_VM on another stack, no signal at its end. libc's clone() is no help: sanitizers wrap it as if
// memory were copied.
pid_t run_helper(void (*body)(void*), void* argument, void* stack_top) {
  constexpr unsigned long kFlags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS;
#if defined(__x86_64__)
  register void (*body_register)(void*) asm("r12") = body;
  register void* argument_register asm("r13") = argument;
  register long ptid asm("rdx") = 0;
  register long ctid asm("r10") = 0;
  register long tls asm("r8") = 0;
  long result = SYS_clone;
  asm volatile(
      "syscall\n\t"
      "testq %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "movq %%r13, %%rdi\n\t"
      "callq *%%r12\n\t"
      "xorl %%edi, %%edi\n\t"
      "movl %[exit], %%eax\n\t"
      "syscall\n\t"
      "hlt\n"
      "1:"
      : "+a"(result)
      : "D"(kFlags), "S"(stack_top), "r"(ptid), "r"(ctid), "r"(tls), "r"(body_register),
        "r"(argument_register), [exit] "i"(SYS_exit_group)
      : "rcx", "r11", "memory", "cc");
  if (result < 0) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return static_cast<pid_t>(result);
#else
  struct Call {
    void (*body)(void*);
    void* argument;
  } call{body, argument};
  return clone(
      [](void* pointer) {
        auto* inner = static_cast<Call*>(pointer);
        inner->body(inner->argument);
        syscall(SYS_exit_group, 0);
        return 0;
      },
      stack_top, static_cast<int>(kFlags), &call);
#endif
}

}  // namespace

namespace {
std::atomic<void (*)(void*, bool)> copy_listener{nullptr};
std::atomic<void*> copy_context{nullptr};
}  // namespace

void listen_to_copies(void (*listener)(void* context, bool begins), void* context) {
  copy_listener.store(nullptr);
  copy_context.store(context);
  copy_listener.store(listener);
}

void announce_copy(bool begins) {
  if (auto* listener = copy_listener.load()) listener(copy_context.load(), begins);
}

void set_calling_card(void* page) { calling_card.store(page); }

int spawn_process(void (*child_main)(void*), void* argument, void* stack_top, SpawnedProcess* out) {
  SpawnRequest request;
  request.child_main = child_main;
  request.argument = argument;
  // A signal handler of the program must not run in the helper.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  spawning = true;
  announce_copy(true);
  const pid_t helper = run_helper(fork_in_helper, &request, stack_top);
  const int error = errno;
  announce_copy(false);
  spawning = false;
  // It ended before we went on; __WCLONE: it announces itself to nobody else.
  if (helper > 0) {
    while (waitpid(helper, nullptr, __WCLONE) < 0 && errno == EINTR) {
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (helper < 0) return error;
  if (request.error != 0) return request.error;
  if (request.result.pid < 0) return ECHILD;  // the helper was killed
  *out = request.result;
  return 0;
}

bool spawning_in_this_thread() { return spawning; }
bool in_device_process() { return device_process.load(std::memory_order_relaxed); }

int above_stdio(int fd) {
  if (fd < 0 || fd > 2) return fd;
  const int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  const int error = errno;
  close(fd);
  errno = error;
  return moved;
}

int duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 3); }

int duplicate_read_only(int fd) {
  char path[32];
  std::snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  return above_stdio(open(path, O_RDONLY | O_CLOEXEC));
}

int open_own_pidfd() { return above_stdio(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0))); }

bool process_ended(int pidfd, int timeout_ms) {
  pollfd entry{pidfd, POLLIN, 0};
  return poll(&entry, 1, timeout_ms) > 0;
}

void kill_process(int pidfd) { (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

bool ended_status(int pidfd, int* wait_status) {
  // struct pidfd_info as of 6.15; the installed header is older.
  struct Info {
    std::uint64_t mask;
    std::uint64_t cgroup;
    std::uint32_t ids[12];
    std::int32_t exit_code;
  } info{};
  static_assert(sizeof(Info) == 72 || sizeof(Info) == 64);
  constexpr std::uint64_t kExit = 1u << 3;
  info.mask = kExit;
  if (ioctl(pidfd, _IOWR(0xFF, 11, std::uint64_t[8]), &info) != 0) return false;
  if ((info.mask & kExit) == 0) return false;
  *wait_status = info.exit_code;
  return true;
}

std::size_t allowed_cpus(std::span<std::uint32_t> cpus) {
  cpu_set_t set;
  std::size_t count = 0;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (std::uint32_t cpu = 0; cpu < CPU_SETSIZE && count < cpus.size(); ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus[count++] = cpu;
  }
  if (count == 0) {
    // More CPUs than the set can say: as many as there are, unpinned numbering.
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    for (std::uint32_t cpu = 0; cpu < static_cast<std::uint32_t>(online > 0 ? online : 1) && count < cpus.size(); ++cpu)
      cpus[count++] = cpu;
  }
  return count;
}

void pin_to_cpus(std::span<const std::uint32_t> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const std::uint32_t cpu : cpus)
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

void name_thread(const char* name) { (void)prctl(PR_SET_NAME, name, 0, 0, 0); }

void drop_privileges() {
  (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  const struct rlimit none {};
  (void)setrlimit(RLIMIT_CORE, &none);
  for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 || errno == EPERM; ++capability)
    if (capability >= 63) break;
  (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  struct __user_cap_header_struct header {};
  header.version = _LINUX_CAPABILITY_VERSION_3;
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] {};
  (void)syscall(SYS_capset, &header, data);
}

namespace {

// The kernel's own sigaction layout; the signal set has 64 bits everywhere we run.
struct KernelSigaction {
  void (*handler)(int, void*, void*);
  unsigned long flags;
  void (*restorer)();
  std::uint64_t mask;
};

#if defined(__x86_64__)
// The kernel wants to be told where a handler returns to; the C library's own is not for others.
asm(R"(
  .text
  .p2align 4
  .local uhmm_return_from_handler
  .type uhmm_return_from_handler, @function
uhmm_return_from_handler:
  mov $15, %eax
  syscall
  .size uhmm_return_from_handler, .-uhmm_return_from_handler
)");
extern "C" __attribute__((visibility("hidden"))) void uhmm_return_from_handler();
static_assert(SYS_rt_sigreturn == 15);
#else
// Others have it in the vDSO.
constexpr void (*uhmm_return_from_handler)() = nullptr;
#endif

void raw_sigaction(int signal, const KernelSigaction& action) {
  (void)syscall(SYS_rt_sigaction, signal, &action, nullptr, sizeof(action.mask));
}

}  // namespace

void take_over_signals(std::span<const int> fatal, FatalHandler handler) {
  constexpr unsigned long kRestorer = 0x04000000;  // SA_RESTORER, not in the C library's headers
  for (int signal = 1; signal <= 64; ++signal) raw_sigaction(signal, KernelSigaction{});
  KernelSigaction action{};
  action.handler = handler;
  action.flags = SA_SIGINFO | SA_ONSTACK | kRestorer;
  action.restorer = uhmm_return_from_handler;
  action.mask = ~std::uint64_t{0};
  for (const int signal : fatal) raw_sigaction(signal, action);
}

void thread_signals(std::span<const int> fatal, void* alternate_stack, std::size_t bytes) {
  stack_t stack{};
  stack.ss_sp = alternate_stack;
  stack.ss_size = bytes;
  (void)syscall(SYS_sigaltstack, &stack, nullptr);
  std::uint64_t mask = ~std::uint64_t{0};
  for (const int signal : fatal) mask &= ~(std::uint64_t{1} << (signal - 1));
  (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
}

void fatal_details(void* siginfo, void* ucontext, std::uint64_t* address, std::uint64_t* instruction) {
  const auto* info = static_cast<const siginfo_t*>(siginfo);
  *address = reinterpret_cast<std::uint64_t>(info->si_addr);
  const auto* context = static_cast<const ucontext_t*>(ucontext);
#if defined(__x86_64__)
  *instruction = static_cast<std::uint64_t>(context->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  *instruction = context->uc_mcontext.pc;
#else
  (void)context;
  *instruction = 0;
#endif
}

void resume_at(void* ucontext, std::uint64_t instruction) {
  auto* context = static_cast<ucontext_t*>(ucontext);
#if defined(__x86_64__)
  context->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(instruction);
#elif defined(__aarch64__)
  context->uc_mcontext.pc = instruction;
#else
  (void)context;
  (void)instruction;
#endif
}

void exit_now(int code) {
  for (;;) syscall(SYS_exit_group, code);
}

int make_memory_file(const char* name, std::uint64_t bytes) {
  const int file = above_stdio(static_cast<int>(syscall(SYS_memfd_create, name, 3u)));  // CLOEXEC | ALLOW_SEALING
  if (file < 0) return -1;
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0 ||
      fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const int error = errno;
    close(file);
    errno = error;
    return -1;
  }
  return file;
}

void close_other_descriptors(std::span<const int> keep) {
  const int null = open("/dev/null", O_RDWR);
  if (null >= 0) {
    (void)dup2(null, 0);  // /dev/null may be 0 itself already
  } else {
    close(0);
  }
  unsigned from = 3;
  for (;;) {
    // The next kept number at or above `from`; the list has a handful of entries.
    unsigned next = ~0u;
    for (const int fd : keep)
      if (fd >= 0 && static_cast<unsigned>(fd) >= from && static_cast<unsigned>(fd) < next)
        next = static_cast<unsigned>(fd);
    if (next > from) {
      const unsigned last = next == ~0u ? ~0u : next - 1;
      if (syscall(SYS_close_range, from, last, 0) != 0) {  // before 5.9
        const long limit = sysconf(_SC_OPEN_MAX);
        for (unsigned fd = from; fd <= last && fd < static_cast<unsigned>(limit > 0 ? limit : 65536); ++fd)
          close(static_cast<int>(fd));
      }
    }
    if (next == ~0u) return;
    from = next + 1;
  }
}

void wait_any(int first, int second) {
  pollfd entries[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
  while (syscall(SYS_ppoll, entries, 2, nullptr, nullptr, 8) <= 0) {
  }
}

void futex_wait_shared(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns) {
  struct timespec timeout {};
  timeout.tv_sec = static_cast<time_t>(timeout_ns / 1000000000);
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1000000000);
  (void)syscall(SYS_futex, &word, FUTEX_WAIT, expected, timeout_ns == 0 ? nullptr : &timeout, nullptr, 0);
}

void futex_wake_shared(const std::atomic<std::uint32_t>& word, std::uint32_t waiters) {
  (void)syscall(SYS_futex, &word, FUTEX_WAKE, waiters > 0x7fffffffu ? 0x7fffffff : static_cast<int>(waiters), nullptr,
                nullptr, 0);
}

}  // namespace uhmm::os
