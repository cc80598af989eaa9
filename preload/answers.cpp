// SPDX-License-Identifier: Apache-2.0
// Calls whose answers are given once: a connection, a child's status, a signal, the setting before this one.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "preload/alternate_stack.hpp"
#include "preload/kernel_access.hpp"
#include "preload/managed.hpp"
#include "preload/messages.hpp"
#include "preload/next.hpp"

using namespace uhmm::preload;

#define UHMM_ANSWER_LIST(X)                                                                                            \
  X(accept4, int(int, sockaddr*, socklen_t*, int))                                                                     \
  X(wait4, pid_t(pid_t, int*, int, rusage*))                                                                           \
  X(waitid, int(idtype_t, id_t, siginfo_t*, int))                                                                      \
  X(sigtimedwait, int(const sigset_t*, siginfo_t*, const timespec*))                                                   \
  X(getsockopt, int(int, int, int, void*, socklen_t*))                                                                 \
  X(nanosleep, int(const timespec*, timespec*))                                                                        \
  X(clock_nanosleep, int(clockid_t, int, const timespec*, timespec*))                                                  \
  X(sigprocmask, int(int, const sigset_t*, sigset_t*))                                                                 \
  X(pthread_sigmask, int(int, const sigset_t*, sigset_t*))                                                             \
  X(timerfd_settime, int(int, int, const itimerspec*, itimerspec*))                                                    \
  X(sigaltstack, int(const stack_t*, stack_t*))                                                                        \
  X(posix_spawn,                                                                                                       \
    int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const*, char* const*)) \
  X(posix_spawnp,                                                                                                      \
    int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const*, char* const*)) \
  X(syscall, long(long, ...))

#define UHMM_NEXT(name, type)              \
  namespace {                              \
  constinit Next<type> next_##name(#name); \
  }
UHMM_ANSWER_LIST(UHMM_NEXT)
#define UHMM_FIND(name, ...) (void)next_##name.get();
__attribute__((constructor)) static void find_all(){UHMM_ANSWER_LIST(UHMM_FIND)}

UHMM_INTERPOSE int accept4(int fd, sockaddr* address, socklen_t* length, int flags) {
  const auto call = [&] { return next_accept4.get()(fd, address, length, flags); };
  if (!kernel_needs_help()) return call();
  return instead({whole_of(address, length_in(length)), whole_of(length)}, call);
}
UHMM_INTERPOSE int accept(int fd, sockaddr* address, socklen_t* length) { return accept4(fd, address, length, 0); }

UHMM_INTERPOSE pid_t wait4(pid_t which, int* status, int options, rusage* usage) {
  return instead({whole_of(status), whole_of(usage)}, [&] { return next_wait4.get()(which, status, options, usage); });
}
UHMM_INTERPOSE pid_t waitpid(pid_t which, int* status, int options) { return wait4(which, status, options, nullptr); }
UHMM_INTERPOSE pid_t wait(int* status) { return wait4(-1, status, 0, nullptr); }
UHMM_INTERPOSE pid_t wait3(int* status, int options, rusage* usage) { return wait4(-1, status, options, usage); }
UHMM_INTERPOSE int waitid(idtype_t kind, id_t which, siginfo_t* info, int options) {
  return instead({whole_of(info)}, [&] { return next_waitid.get()(kind, which, info, options); });
}

UHMM_INTERPOSE int sigtimedwait(const sigset_t* set, siginfo_t* info, const timespec* time) {
  return instead({whole_of(set), whole_of(info), whole_of(time)},
                 [&] { return next_sigtimedwait.get()(set, info, time); });
}
UHMM_INTERPOSE int sigwaitinfo(const sigset_t* set, siginfo_t* info) { return sigtimedwait(set, info, nullptr); }

UHMM_INTERPOSE int getsockopt(int fd, int level, int name, void* value, socklen_t* length) {
  const auto call = [&] { return next_getsockopt.get()(fd, level, name, value, length); };
  if (!kernel_needs_help()) return call();
  socklen_t bytes = 0;
  if (length == nullptr || copy_from_program(&bytes, reinterpret_cast<std::uint64_t>(length), sizeof(bytes)) != 0)
    return call();
  auto*& pointer = reinterpret_cast<std::byte*&>(value);
  return instead({whole_of(pointer, bytes), whole_of(length)}, call);
}

UHMM_INTERPOSE int nanosleep(const timespec* time, timespec* left) {
  // Only a sleep that was interrupted says how much is left.
  (void)make_ready({out(left, sizeof(*left))});
  return retried(
      -1, [&] { return next_nanosleep.get()(time, left); }, [&] { return make_ready({in(time, sizeof(*time))}); });
}
UHMM_INTERPOSE int clock_nanosleep(clockid_t clock, int flags, const timespec* time, timespec* left) {
  (void)make_ready({in(time, sizeof(*time)), out(left, sizeof(*left))});
  return next_clock_nanosleep.get()(clock, flags, time, left);
}

UHMM_INTERPOSE int sigprocmask(int how, const sigset_t* set, sigset_t* before) {
  return instead({whole_of(set), whole_of(before)}, [&] { return next_sigprocmask.get()(how, set, before); });
}
UHMM_INTERPOSE int pthread_sigmask(int how, const sigset_t* set, sigset_t* before) {
  (void)make_ready({in(set, sizeof(*set)), out(before, sizeof(*before))});
  return next_pthread_sigmask.get()(how, set, before);
}
UHMM_INTERPOSE int timerfd_settime(int fd, int flags, const itimerspec* time, itimerspec* before) {
  return instead({whole_of(time), whole_of(before)},
                 [&] { return next_timerfd_settime.get()(fd, flags, time, before); });
}

UHMM_INTERPOSE int sigaltstack(const stack_t* stack, stack_t* before) {
  const auto call = [&] { return next_sigaltstack.get()(stack, before); };
  if (!kernel_needs_help()) return call();
  const int result = instead({whole_of(stack), whole_of(before)}, call);
  stack_t now{};
  if (result == 0 && stack != nullptr && called_by_program() && next_sigaltstack.get()(nullptr, &now) == 0) {
    without_exceptions([&] { return alternate_stack_is(now), 0; }, -1);
  }
  return result;
}

// It answers with an error number, and the child that would fail is the C library's.
UHMM_INTERPOSE int posix_spawn(pid_t* process, const char* path, const posix_spawn_file_actions_t* actions,
                               const posix_spawnattr_t* attributes, char* const* words, char* const* environment) {
  (void)make_program_ready(path, words, environment);
  return next_posix_spawn.get()(process, path, actions, attributes, words, environment);
}
UHMM_INTERPOSE int posix_spawnp(pid_t* process, const char* name, const posix_spawn_file_actions_t* actions,
                                const posix_spawnattr_t* attributes, char* const* words, char* const* environment) {
  (void)make_program_ready(name, words, environment);
  return next_posix_spawnp.get()(process, name, actions, attributes, words, environment);
}

namespace {

// Numbers of calls that do nothing before they fail with EFAULT, and for which the C library has no function.
constexpr std::array kBareCalls{SYS_futex, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
                                SYS_getrandom};

}  // namespace

// NOLINTNEXTLINE(cert-dcl50-cpp): variadic as what it stands for
UHMM_INTERPOSE long syscall(long number, ...) {
  std::array<long, 6> words;
  va_list arguments;
  va_start(arguments, number);
  for (long& word : words) word = va_arg(arguments, long);
  va_end(arguments);
  const auto call = [&] {
    return next_syscall.get()(number, words[0], words[1], words[2], words[3], words[4], words[5]);
  };
  if (!kernel_needs_help() || std::find(kBareCalls.begin(), kBareCalls.end(), number) == kBareCalls.end())
    return call();
  // Whatever is a pointer among them. Of an io_uring only what is registered by this call, or named by it, is known.
  return retried(-1L, call, [&] {
    bool served = false;
    for (const long word : words) served = make_ready({out(reinterpret_cast<void*>(word), 256)}) || served;
    if (number == SYS_io_uring_register)
      served = make_vectors_ready(reinterpret_cast<const iovec*>(words[2]), static_cast<std::size_t>(words[3]), true) ||
               served;
    if (number == SYS_getrandom)
      served = make_ready({out(reinterpret_cast<void*>(words[0]), static_cast<std::size_t>(words[1]))}) || served;
    return served;
  });
}
