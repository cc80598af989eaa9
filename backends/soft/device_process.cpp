// SPDX-License-Identifier: Apache-2.0
#include "backends/soft/device_process.hpp"

#include <pthread.h>
#include <stdio.h>
#include <stdio_ext.h>

#include <cstring>

#include "runtime/os/bare.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::soft {
namespace {

// Where ExitContext (crash.cpp) and stdout's buffer lie, at the far end of the first thread's stack.
constexpr std::size_t kExitContextBytes = 4096;
constexpr std::size_t kOutputBytes = 16 << 10;
constexpr std::uint64_t kStartNs = 5'000'000'000;

struct ThreadStart {
  const DeviceProcess* process = nullptr;
  std::uint32_t thread = 0;
};

// The C library allocates a thread's vector of dynamic thread-local blocks on the heap, in memory that the program may
// register and attach later. The thread moves it to its own stack. Only this library's layout is known; elsewhere the
// vector stays where it is, which matters only to kernels that use thread-local variables of dlopened libraries.
#if defined(__x86_64__) && defined(__GLIBC__)
struct ThreadVector {
  static constexpr std::size_t kMostEntries = 510;
  struct Entry {
    std::uint64_t words[2];
  };
  Entry copy[kMostEntries + 2];

  void move_here() {
    Entry* vector = nullptr;
    asm volatile("movq %%fs:8, %0" : "=r"(vector));
    const std::uint64_t entries = vector[-1].words[0];
    if (entries > kMostEntries) return;
    std::memcpy(copy, vector - 1, (entries + 2) * sizeof(Entry));
    asm volatile("movq %0, %%fs:8" : : "r"(copy + 1) : "memory");
  }
};
#else
struct ThreadVector {
  void move_here() {}
};
#endif

int mirror(const DeviceProcess& process, const Mailbox& mailbox, ByteRange range) {
  constexpr int kFileTimeoutMs = 10'000;
  char byte = 0;
  os::Message message;
  const int error = os::receive_message(process.files, &byte, sizeof(byte), kFileTimeoutMs, &message);
  if (error != 0) return error;
  if (message.fd < 0) return 9;  // EBADF: no descriptor was free for it
  os::trust_memory(range);
  const int mapped = os::map_shared_fixed(range, message.fd, mailbox.offset, mailbox.readable, mailbox.writable);
  os::bare::close(message.fd);
  return mapped;
}

int perform(const DeviceProcess& process, const Mailbox& mailbox, ByteRange range) {
  switch (mailbox.operation) {
    case Operation::Mirror: return mirror(process, mailbox, range);
    case Operation::MapInaccessible:
      os::trust_memory(range);
      return os::map_file_fixed(range, process.memory_file, range.begin.value, false);
    case Operation::MakeAccessible: return os::make_accessible(range);
    case Operation::Remove: return os::map_nothing_fixed(range);  // not a hole: a library might map something there
    case Operation::DropPageTable: return os::drop_page_tables(range);
  }
  return 22;  // EINVAL
}

[[noreturn]] void serve_mailbox(const DeviceProcess& process, Mailbox& mailbox) {
  constexpr auto kPosted = static_cast<std::uint32_t>(MailboxState::Posted);
  for (;;) {
    const std::uint32_t state = mailbox.state.load(std::memory_order_acquire);
    if (state != kPosted) {
      os::futex_wait_shared(mailbox.state, state);
      continue;
    }
    mailbox.error = 0;
    mailbox.succeeded = 0;
    for (std::uint32_t i = 0; i < mailbox.count && i < kRequestRanges; ++i) {
      const ByteRange range{VirtAddr{mailbox.ranges[i].begin}, VirtAddr{mailbox.ranges[i].end}};
      mailbox.error = perform(process, mailbox, range);
      if (mailbox.error != 0) break;
      ++mailbox.succeeded;
    }
    mailbox.state.store(static_cast<std::uint32_t>(MailboxState::Done), std::memory_order_release);
    os::futex_wake_shared(mailbox.state, 1);
  }
}

void* thread_main(void* argument) {
  const ThreadStart start = *static_cast<const ThreadStart*>(argument);
  const DeviceProcess& process = *start.process;
  Control& control = *process.control;
  ThreadVector vector;
  vector.move_here();
  const bool is_worker = start.thread >= control.mailboxes;
  const std::uint32_t index = is_worker ? start.thread - control.mailboxes : start.thread;
  arm_crash_reports(control, process.area.alternate(start.thread), is_worker ? index : kMostWorkers);
  char name[16] = {};
  std::snprintf(name, sizeof(name), is_worker ? "%.6s-work%u" : "%.6s-ctl%u", process.name, index % 1000);
  os::name_thread(name);
  control.started.fetch_add(1, std::memory_order_acq_rel);
  os::futex_wake_shared(control.started, 1);
  if (is_worker) run_worker(control, index);
  // On the CPU of the threads that use this mailbox: waking a thread of the same CPU costs a tenth of waking one on an
  // idle CPU, and the caller sleeps meanwhile.
  os::pin_to_cpus(std::span(process.control_cpus + std::size_t{index} * 64, process.control_cpu_count[index]));
  serve_mailbox(process, control.mailbox[index]);
}

int start_thread(const ThreadStart* start) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  int error = pthread_attr_setstack(&attributes, start->process->area.stack(start->thread), kStackBytes);
  pthread_t handle{};
  if (error == 0) error = pthread_create(&handle, &attributes, thread_main, const_cast<ThreadStart*>(start));
  pthread_attr_destroy(&attributes);
  return error;
}

[[noreturn]] UHMM_NO_SANITIZE void refuse(const DeviceProcess& process, Status status, const char* detail) {
  Hello hello{};
  hello.status = static_cast<std::uint32_t>(status.code());
  std::snprintf(hello.detail, sizeof(hello.detail), "%s", detail);
  (void)os::send_message(process.socket, &hello, sizeof(hello), -1);
  os::exit_now(1);
}

UHMM_NO_SANITIZE void greet(const DeviceProcess& process, const os::Userfaultfd& uffd) {
  const os::UffdFeatures& features = uffd.features();
  Hello hello{};
  hello.ok = 1;
  hello.move = features.move;
  hello.poison = features.poison;
  hello.write_protect = features.write_protect;
  hello.shared_missing = features.shared_missing;
  hello.shared_minor = features.shared_minor;
  hello.shared_write_protect = features.shared_write_protect;
  hello.kernel_mode = features.kernel_mode;
  hello.continue_protected = features.continue_protected;
  if (os::send_message(process.socket, &hello, sizeof(hello), uffd.fd()) != 0) os::exit_now(1);
}

}  // namespace

UHMM_NO_SANITIZE void device_process_main(void* argument) {
  const DeviceProcess process = *static_cast<const DeviceProcess*>(argument);
  const PrivateArea& area = process.area;
  if (os::make_accessible({VirtAddr{area.first_stack()}, VirtAddr{area.first_stack_top()}}) != 0) os::exit_now(1);

  // What libraries map from now on must not be where the program maps something later that is attached here.
  os::confine_mappings({VirtAddr{area.library()}, VirtAddr{area.library() + kLibraryBytes}});

  // While there is still privilege: faults of system calls are then served as well.
  auto uffd = os::Userfaultfd::open();
  if (!uffd) refuse(process, uffd.status(), last_detail());
  const int keep[] = {process.memory_file, process.program_pidfd, process.files, process.socket, uffd->fd()};
  os::close_other_descriptors(keep);
  os::drop_privileges();

  // What the program had not written yet is its own to write; what kernels print must not wait in a heap buffer for a
  // flush that never comes.
  __fpurge(stdout);
  __fpurge(stderr);
  (void)setvbuf(stdout, reinterpret_cast<char*>(area.first_stack()) + kExitContextBytes, _IOLBF, kOutputBytes);

  install_crash_reports(*process.control, area);
  ThreadStart starts[kMostMailboxes + kMostWorkers];
  for (std::uint32_t thread = 0; thread < area.threads; ++thread) {
    starts[thread] = {&process, thread};
    int error =
        os::make_accessible({VirtAddr{area.alternate(thread)}, VirtAddr{area.alternate(thread) + kAlternateBytes}});
    if (error == 0)
      error = os::make_accessible({VirtAddr{area.stack(thread)}, VirtAddr{area.stack(thread) + kStackBytes}});
    if (error == 0) error = start_thread(&starts[thread]);
    if (error != 0) refuse(process, fail_errno("starting a thread of the device", error), last_detail());
  }
  // A lock that some thread of the program held at the moment of the copy can stop a thread here for ever: with
  // sanitizers older than 2023, whose allocators are not prepared for fork().
  const std::uint64_t deadline = os::now_ns() + kStartNs;
  for (std::uint32_t up; (up = process.control->started.load(std::memory_order_acquire)) != area.threads;) {
    if (os::now_ns() > deadline)
      refuse(process, UHMM_ERR_TIMEOUT, "its threads hang at their start: a lock was held when the process was copied");
    os::futex_wait_shared(process.control->started, up, 100'000'000);
  }
  char name[16] = {};
  std::snprintf(name, sizeof(name), "%.6s-dev", process.name);
  os::name_thread(name);
  greet(process, uffd.value());
  uffd->close();

  os::wait_any(process.program_pidfd, process.socket);
  os::exit_now(0);
}

}  // namespace uhmm::soft
