// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/fault_signal.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace uhmm::os {
namespace {

std::atomic<FaultSignal::Serve> serve{nullptr};
std::atomic<void*> serve_context{nullptr};
std::atomic<std::uint32_t> inside{0};  // handlers that may have read `serve`
struct sigaction before {};

// To whoever handled the signal before us.
void pass_on(int number, siginfo_t* info, void* context) {
  if ((before.sa_flags & SA_SIGINFO) == 0 && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) {
    // The access is repeated, and ends the program as it would have without us. What was sent is sent again.
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    (void)sigaction(number, &standard, nullptr);
    if (info->si_code <= 0) (void)syscall(SYS_tgkill, getpid(), static_cast<pid_t>(syscall(SYS_gettid)), number);
    return;
  }
  // With the mask that it asked for.
  sigset_t mask = static_cast<ucontext_t*>(context)->uc_sigmask;
  sigorset(&mask, &mask, &before.sa_mask);
  if ((before.sa_flags & SA_NODEFER) == 0) (void)sigaddset(&mask, number);
  (void)pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  if ((before.sa_flags & SA_SIGINFO) != 0)
    before.sa_sigaction(number, info, context);
  else
    before.sa_handler(number);
}

void on_signal(int number, siginfo_t* info, void* context) {
  const int error = errno;
  bool served = false;
  inside.fetch_add(1);
  // BUS_ADRERR: by an access. Poisoned pages have another code, and what a process sends has none of these.
  if (const FaultSignal::Serve handler = serve.load(); handler != nullptr && info->si_code == BUS_ADRERR) {
    SignalledFault fault;
    fault.address = VirtAddr{static_cast<std::byte*>(info->si_addr)}.page_floor();
#if defined(__x86_64__)
    const auto code = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR];
    fault.present = (code & 1) != 0;
    fault.is_write = (code & 2) != 0;
#endif
    stack_t stack{};
    fault.on_alternate_stack = sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_ONSTACK) != 0;
    served = handler(serve_context.load(), fault);
  }
  inside.fetch_sub(1);
  if (!served) pass_on(number, info, context);
  errno = error;
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_signal;
}

}  // namespace

int FaultSignal::install(Serve handler, void* context) {
  serve_context.store(context);
  serve.store(handler);
  struct sigaction old {};
  if (sigaction(SIGBUS, nullptr, &old) != 0) return errno;
  if (is_ours(old)) return 0;  // inherited, or left in place
  before = old;
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  // Nobody's handler may run while this one holds the runtime's locks.
  action.sa_flags = SA_SIGINFO;
  (void)sigfillset(&action.sa_mask);
  return sigaction(SIGBUS, &action, nullptr) == 0 ? 0 : errno;
}

void FaultSignal::remove() {
  serve.store(nullptr);
  while (inside.load() != 0) (void)usleep(100);
  struct sigaction now {};
  if (sigaction(SIGBUS, nullptr, &now) == 0 && is_ours(now)) (void)sigaction(SIGBUS, &before, nullptr);
}

void FaultSignal::forget_threads() {
  serve.store(nullptr);
  inside.store(0);
}

}  // namespace uhmm::os
