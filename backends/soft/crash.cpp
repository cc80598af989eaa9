// SPDX-License-Identifier: Apache-2.0
// The last words of a device process. Runs in signal handlers: system calls and the control segment only.
#include <signal.h>
#include <stdlib.h>

#include "backends/soft/device_process.hpp"
#include "runtime/os/process.hpp"

// Present where the program is built with a sanitizer.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace uhmm::soft {
namespace {

constexpr int kFatalSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP};

// Used by exit() only; a copy that no kernel has a reason to touch.
struct ExitContext {
  Control* control;
  PrivateArea area;
};

UHMM_NO_SANITIZE void wake_host(Control& control) {
  for (auto& mailbox : control.mailbox) os::futex_wake_shared(mailbox.state, ~0u);
  for (auto& slot : control.slot)
    if (slot.waiters.load(std::memory_order_seq_cst) != 0) os::futex_wake_shared(slot.state, ~0u);
  os::futex_wake_shared(control.finished_bell, ~0u);
}

UHMM_NO_SANITIZE void speak(Control& control, std::uint32_t worker, EndKind kind, int number, std::uint64_t address,
                            std::uint64_t instruction) {
  LastWords& words = control.last_words;
  if (words.taken.exchange(1, std::memory_order_acq_rel) != 0) {
    // Someone else is speaking and about to end the process.
    for (;;) os::futex_wait_shared(words.taken, 1);
  }
  words.number = number;
  words.address = address;
  words.instruction = instruction;
  words.kernel = 0;
  words.slot = kSlots;
  words.generation = 0;
  if (worker < kMostWorkers) {
    const WorkerRecord& record = control.worker[worker];
    words.kernel = record.kernel.load(std::memory_order_relaxed);
    if (words.kernel != 0) {
      words.slot = record.slot.load(std::memory_order_relaxed);
      words.generation = record.generation.load(std::memory_order_relaxed);
    }
  }
  words.kind.store(static_cast<std::uint32_t>(kind), std::memory_order_release);
  wake_host(control);
}

UHMM_NO_SANITIZE void on_fatal_signal(int signal, void* siginfo, void* ucontext) {
  std::uint64_t address = 0, instruction = 0;
  os::fatal_details(siginfo, ucontext, &address, &instruction);
  if (const std::uint64_t resume = resume_of_access(instruction);
      resume != 0 && (signal == SIGSEGV || signal == SIGBUS)) {
    os::resume_at(ucontext, resume);
    return;
  }
  // The thread is on its alternate stack, which begins with its record.
  const auto here = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  const auto* record = reinterpret_cast<const ThreadRecord*>(here & ~(std::uint64_t{kAlternateBytes} - 1));
  // A thread that a kernel made itself has no such stack; reading there may end the process, which is the plan anyway.
  if (record->magic == ThreadRecord::kMagic)
    speak(*record->control, record->worker, EndKind::Signal, signal, address, instruction);
  os::exit_now(128 + signal);
}

UHMM_NO_SANITIZE std::uint32_t worker_of(const ExitContext& context, const void* frame) {
  const std::uint32_t thread = context.area.thread_of(frame);
  const std::uint32_t first_worker = context.control->mailboxes;
  return thread >= first_worker && thread < context.area.threads ? thread - first_worker : kMostWorkers;
}

// exit() in a kernel: the program's own exit handlers must not run in this process.
void on_exit_called(int status, void* argument) {
  const auto* context = static_cast<const ExitContext*>(argument);
  speak(*context->control, worker_of(*context, __builtin_frame_address(0)), EndKind::Exit, status, 0, 0);
  os::exit_now(status);
}

// A sanitizer that found something, or failed itself, ends the process past exit() and signals. It has said why.
const ExitContext* sanitizer_context = nullptr;
UHMM_NO_SANITIZE void on_sanitizer_death() {
  const ExitContext& context = *sanitizer_context;
  speak(*context.control, worker_of(context, __builtin_frame_address(0)), EndKind::Sanitizer, 0, 0, 0);
}

}  // namespace

void install_crash_reports(Control& control, const PrivateArea& area) {
  os::take_over_signals(kFatalSignals, on_fatal_signal);
  // In the area: it must survive whatever gets attached.
  auto* context = reinterpret_cast<ExitContext*>(area.first_stack());
  *context = {&control, area};
  (void)on_exit(on_exit_called, context);
  if (__sanitizer_set_death_callback != nullptr) {
    sanitizer_context = context;
    __sanitizer_set_death_callback(on_sanitizer_death);
  }
}

void arm_crash_reports(Control& control, std::byte* alternate_stack, std::uint32_t worker) {
  auto* record = reinterpret_cast<ThreadRecord*>(alternate_stack);
  *record = {ThreadRecord::kMagic, &control, worker};
  constexpr std::size_t kRecordBytes = 256;
  os::thread_signals(kFatalSignals, alternate_stack + kRecordBytes, kAlternateBytes - kRecordBytes);
}

}  // namespace uhmm::soft
