// SPDX-License-Identifier: Apache-2.0
// Start, windows, death and end of a soft device.
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <thread>

#include "backends/soft/soft_device_impl.hpp"
#include "runtime/base/arena.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/log.hpp"
#include "runtime/os/process.hpp"

namespace uhmm::soft {
namespace {

// Offsets of the memory file are addresses.
constexpr std::uint64_t kFileBytes = std::uint64_t{1} << 47;
// A device's process is a copy of this one. Where an allocator does not take its locks around fork() (sanitizers'), it
// may wait for ever for one that another thread had at that moment; another copy need not. So long each one has.
constexpr int kStartTimeoutsMs[] = {2000, 5000, 10000};
constexpr int kEndTimeoutMs = 10000;

void close_fd(int* fd) {
  if (*fd >= 0) ::close(*fd);
  *fd = -1;
}

const char* signal_text(int number) {
  const char* name = sigabbrev_np(number);
  return name != nullptr ? name : "?";
}

}  // namespace

backend::Device* create(const Options& options) { return make_in_arena<SoftDevice>(options); }

void destroy(backend::Device* device) { destroy_in_arena(static_cast<SoftDevice*>(device)); }

SoftDevice::SoftDevice(const Options& options) : options_(options), windows_(Arena::instance().resource()) {
  options_.name[sizeof(options_.name) - 1] = '\0';
  std::uint32_t cpus[1024];
  const std::size_t count = os::allowed_cpus(cpus);
  const std::uint32_t wanted = options.workers != 0 ? options.workers : static_cast<std::uint32_t>(count);
  const std::uint32_t mailboxes = std::min<std::uint32_t>(kMostMailboxes, static_cast<std::uint32_t>(count));
  area_.threads = mailboxes + std::min(wanted, kMostWorkers);

  // CPU number i of the allowed ones uses mailbox i mod n, whose control thread runs on those CPUs.
  for (std::uint32_t cpu = 0; cpu < std::size(mailbox_of_cpu_); ++cpu)
    mailbox_of_cpu_[cpu] = static_cast<std::uint8_t>(cpu % mailboxes);
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t mailbox = i % mailboxes;
    if (cpus[i] < std::size(mailbox_of_cpu_)) mailbox_of_cpu_[cpus[i]] = static_cast<std::uint8_t>(mailbox);
    std::uint32_t& used = process_.control_cpu_count[mailbox];
    if (used < 64) process_.control_cpus[mailbox * 64 + used++] = cpus[i];
  }

  std::memcpy(capabilities_.name, options_.name, sizeof(capabilities_.name));
  capabilities_.kind = UHMM_DEVICE_SOFT;
  capabilities_.coherent = options.coherent;
  capabilities_.faulting = true;
  capabilities_.mirrors = true;
  capabilities_.memory_bytes = options.memory_bytes;
  capabilities_.workers = area_.threads - mailboxes;
}

SoftDevice::~SoftDevice() {
  do_close();
  if (control_ != nullptr) munmap(control_, sizeof(Control));
  if (area_.base != nullptr) munmap(area_.base, area_.bytes());
}

// ------------------------------------------------------------------------ start

Status SoftDevice::do_open() {
  if (open_now()) return fail(UHMM_ERR_ALREADY, "device %s is open", options_.name);
  do_close();
  Status status;
  char detail[kDetailBytes];
  for (const int timeout_ms : kStartTimeoutsMs) {
    status = prepare_memory();
    if (status.ok()) status = kernels_.record();
    if (status.ok()) status = start_process(timeout_ms);
    if (status.ok()) return {};
    std::snprintf(detail, sizeof(detail), "%s", last_detail());
    stop_process();
    release_incarnation();
    if (status.code() != UHMM_ERR_TIMEOUT) break;
    log::write(log::Level::Warning, "device %s: %s", options_.name, detail);
  }
  return fail(status.code(), "device %s could not be started: %s", options_.name, detail);
}

Status SoftDevice::prepare_memory() {
  if (control_ == nullptr) {
    void* control = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (control == MAP_FAILED) return fail_errno("memory for the control segment", errno);
    control_ = static_cast<Control*>(control);
  }
  if (area_.base == nullptr) {
    // Aligned so that a crash handler finds the record at the beginning of its alternate stack.
    const std::size_t bytes = area_.bytes();
    void* area = mmap(nullptr, bytes + kAlternateBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return fail_errno("address space for the device's stacks", errno);
    auto* start = static_cast<std::byte*>(area);
    const std::size_t skip =
        (kAlternateBytes - reinterpret_cast<std::uintptr_t>(start) % kAlternateBytes) % kAlternateBytes;
    if (skip != 0) munmap(start, skip);
    if (skip != kAlternateBytes) munmap(start + skip + bytes, kAlternateBytes - skip);
    area_.base = start + skip;
    (void)madvise(area_.base, bytes, MADV_NOHUGEPAGE);
  }
  prepare_control();

  struct rlimit limit {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < kFileBytes)
    return fail(
        UHMM_ERR_NOT_SUPPORTED,
        "the limit on file sizes is %llu bytes and device memory is a (sparse) file of 2^47: run with `ulimit -f "
        "unlimited`",
        static_cast<unsigned long long>(limit.rlim_cur));
  char name[80];
  std::snprintf(name, sizeof(name), "uhmm-%s", options_.name);
  memory_file_ = os::make_memory_file(name, kFileBytes);
  if (memory_file_ < 0) return fail_errno("the device's memory file", errno);
  return {};
}

void SoftDevice::prepare_control() {
  // Nothing but these fields: threads that wait for launches of the lost incarnation still look at the slots.
  Control& control = *control_;
  control.mailboxes = std::min(area_.threads - capabilities_.workers, kMostMailboxes);
  control.workers = capabilities_.workers;
  control.processor = options_.processor;
  control.started.store(0);
  control.sleepers.store(0);
  control.ready.store(0);
  control.last_words.taken.store(0);
  control.last_words.kind.store(static_cast<std::uint32_t>(EndKind::None));
  for (auto& mailbox : control.mailbox) mailbox.state.store(static_cast<std::uint32_t>(MailboxState::Idle));
  for (auto& record : control.worker) record.kernel.store(0);
  for (auto& slot : control.slot) {
    const std::uint32_t generation = slot.state.load() >> 1;
    slot.next.store(std::uint64_t{generation} << kCellBits | kIdle);
    slot.state.store(generation << 1 | 1);
  }
  control.unfinished.store(0);
}

Status SoftDevice::start_process(int timeout_ms) {
  program_pidfd_ = os::open_own_pidfd();
  if (program_pidfd_ < 0) return fail_errno("pidfd_open", errno);
  int ends[2] = {-1, -1};
  if (const int error = os::make_channel(ends); error != 0) return fail_errno("a socket pair for the device", error);
  socket_ = ends[0];
  int files[2] = {-1, -1};
  if (const int error = os::make_channel(files); error != 0) {
    ::close(ends[1]);
    return fail_errno("a socket pair for files", error);
  }
  files_ = files[0];

  process_.control = control_;
  process_.area = area_;
  process_.memory_file = memory_file_;
  process_.program_pidfd = program_pidfd_;
  process_.files = files[1];
  process_.socket = ends[1];
  std::snprintf(process_.name, sizeof(process_.name), "%.6s", options_.name);

  // The helper that forks runs on the first thread's stack, in this process.
  const std::size_t stack_bytes = kFirstStackBytes;
  os::SpawnedProcess spawned;
  (void)madvise(control_, sizeof(Control), MADV_DOFORK);
  int error = mprotect(area_.first_stack(), stack_bytes, PROT_READ | PROT_WRITE) == 0 ? 0 : errno;
  if (error == 0) error = os::spawn_process(device_process_main, &process_, area_.first_stack_top(), &spawned);
  (void)madvise(area_.first_stack(), stack_bytes, MADV_DONTNEED);
  (void)mprotect(area_.first_stack(), stack_bytes, PROT_NONE);
  // Neither the program's own children nor other devices get to see it.
  (void)madvise(control_, sizeof(Control), MADV_DONTFORK);
  ::close(files[1]);
  ::close(ends[1]);
  if (error != 0) return fail_errno("creating its process", error);
  death_pidfd_ = spawned.pidfd;
  UHMM_TRY(receive_hello(spawned.pid, timeout_ms));

  capabilities_.process_id = spawned.pid;
  capabilities_.read_only_maps = uffd_.features().shared_write_protect && uffd_.features().continue_protected;
  ++incarnation_;
  failed_slot_ = kSlots;
  reason_[0] = '\0';
  state_.store(State::Open, std::memory_order_release);
  return {};
}

Status SoftDevice::receive_hello(pid_t pid, int timeout_ms) {
  Hello hello{};
  os::Message message;
  const int error = os::receive_message(socket_, &hello, sizeof(hello), timeout_ms, &message);
  if (error == ETIMEDOUT) return fail(UHMM_ERR_TIMEOUT, "its process did not answer within %d s", timeout_ms / 1000);
  if (error == EPIPE || error == ECONNRESET) return fail(UHMM_ERR_SYSTEM, "it ended while starting");
  if (error != 0) return fail_errno("its first message", error);
  os::UffdFeatures features;
  features.move = hello.move;
  features.poison = hello.poison;
  features.write_protect = hello.write_protect;
  features.shared_missing = hello.shared_missing;
  features.shared_minor = hello.shared_minor;
  features.shared_write_protect = hello.shared_write_protect;
  features.kernel_mode = hello.kernel_mode;
  features.continue_protected = hello.continue_protected;
  auto uffd = os::Userfaultfd::adopt(message.fd, features);
  if (message.size != sizeof(hello) || message.sender != pid || message.user != getuid())
    return fail(UHMM_ERR_PERMISSION, "its first message is not from the process that was started");
  hello.detail[sizeof(hello.detail) - 1] = '\0';
  if (hello.ok == 0) return fail(static_cast<uhmm_status>(hello.status), "%s", hello.detail);
  if (uffd.fd() < 0) return fail(UHMM_ERR_SYSTEM, "it sent no userfaultfd");
  if (!features.shared_missing || !features.shared_minor)
    return fail(UHMM_ERR_NOT_SUPPORTED, "userfaultfd has no minor faults on shared memory here (Linux 5.14 and later)");
  uffd_ = std::move(uffd);
  return {};
}

unsigned SoftDevice::fault_modes() const {
  unsigned modes = os::kMissing | os::kMinor;
  if (uffd_.features().shared_write_protect) modes |= os::kWriteProtect;
  return modes;
}

// -------------------------------------------------------------------------- end

void SoftDevice::stop_process() {
  if (death_pidfd_ < 0) return;
  // Nothing in it is worth an orderly end: all state is the program's.
  os::kill_process(death_pidfd_);
  (void)os::process_ended(death_pidfd_, kEndTimeoutMs);
}

void SoftDevice::release_incarnation() {
  for (const MappedWindow& window : windows_) munmap(window.host, window.range.bytes());
  forget_incarnation();
}

void SoftDevice::forget_incarnation() {
  windows_.clear();
  uffd_.close();
  close_fd(&socket_);
  close_fd(&files_);
  close_fd(&program_pidfd_);
  close_fd(&death_pidfd_);
  close_fd(&memory_file_);
  capabilities_.process_id = 0;
}

void SoftDevice::do_close() {
  state_.store(State::Closed, std::memory_order_release);
  stop_process();
  if (control_ != nullptr) wake_waiters();
  release_incarnation();
}

void SoftDevice::do_abandon_after_fork() {
  // The socket above all: the device process takes its end for the program's end or exec.
  state_.store(State::Closed, std::memory_order_release);
  // Neither windows nor the control segment are inherited: there is nothing to unmap.
  forget_incarnation();
  control_ = nullptr;
}

// ------------------------------------------------------------------------ death

bool SoftDevice::still_alive(bool hurry) {
  const State state = state_.load(std::memory_order_acquire);
  if (state == State::Closed || state == State::Lost) return false;
  hurry = hurry || control_->last_words.kind.load(std::memory_order_acquire) != 0;
  if (!os::process_ended(death_pidfd_, hurry ? 1000 : 0)) return true;
  note_death();
  return false;
}

void SoftDevice::note_death() {
  State expected = State::Open;
  if (state_.compare_exchange_strong(expected, State::Dying, std::memory_order_acq_rel)) {
    compose_reason();
    state_.store(State::Lost, std::memory_order_release);
    wake_waiters();
    return;
  }
  await_reason();
}

void SoftDevice::await_reason() const {
  while (state_.load(std::memory_order_acquire) == State::Dying) std::this_thread::yield();
}

void SoftDevice::compose_reason() {
  const LastWords& words = control_->last_words;
  const auto kind = static_cast<EndKind>(words.kind.load(std::memory_order_acquire));
  char kernel[144] = {};
  if (kind != EndKind::None && words.kernel != 0) {
    kernels_.describe(words.kernel, kernel);
    failed_slot_ = words.slot;
    failed_generation_ = words.generation;
    if (words.kernel == reinterpret_cast<std::uint64_t>(&access_kernel))
      std::snprintf(kernel, sizeof(kernel), "for a read or write by the program");
  }
  const char* who = kernel[0] != '\0' ? "kernel " : "the device process";
  if (kind == EndKind::Signal) {
    char where[40] = {};
    const bool of_an_access = words.number == SIGSEGV || words.number == SIGBUS;
    if (of_an_access)
      std::snprintf(where, sizeof(where), " at address 0x%llx,", static_cast<unsigned long long>(words.address));
    std::snprintf(reason_, sizeof(reason_), "%s%.88s crashed: SIG%.8s%s instruction 0x%llx", who, kernel,
                  signal_text(words.number), of_an_access ? where : ",",
                  static_cast<unsigned long long>(words.instruction));
    return;
  }
  if (kind == EndKind::Exit) {
    std::snprintf(reason_, sizeof(reason_), "%s%s called exit(%d)", who, kernel, words.number);
    return;
  }
  if (kind == EndKind::Sanitizer) {
    std::snprintf(reason_, sizeof(reason_), "%s%s was ended by a sanitizer, whose report is on stderr", who, kernel);
    return;
  }
  // No last words: _exit() or a signal that can't be caught. Name what was running.
  int running = 0;
  for (std::uint32_t i = 0; i < capabilities_.workers; ++i) {
    const std::uint64_t address = control_->worker[i].kernel.load(std::memory_order_relaxed);
    if (address == 0) continue;
    if (++running == 1) kernels_.describe(address, kernel);
  }
  char how[56] = "ended without a report (killed, or _exit was called)";
  int status = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {  // the kernel tells once init has reaped it
    if (os::ended_status(death_pidfd_, &status)) {
      if (WIFSIGNALED(status))
        std::snprintf(how, sizeof(how), "was killed by SIG%s", signal_text(WTERMSIG(status)));
      else
        std::snprintf(how, sizeof(how), "ended by _exit(%d)", WEXITSTATUS(status));
      break;
    }
    usleep(1000);
  }
  std::snprintf(reason_, sizeof(reason_), "the device process %s while %s%.80s ran", how,
                running == 0 ? "no kernel" : "kernel ", kernel);
}

void SoftDevice::wake_waiters() {
  for (auto& mailbox : control_->mailbox) os::futex_wake_shared(mailbox.state, ~0u);
  for (auto& slot : control_->slot)
    if (slot.waiters.load(std::memory_order_seq_cst) != 0) os::futex_wake_shared(slot.state, ~0u);
  os::futex_wake_shared(control_->finished_bell, ~0u);
}

void SoftDevice::do_handle_death(std::span<char> reason) {
  if (open_now()) {
    if (!os::process_ended(death_pidfd_, 1000)) stop_process();
    note_death();
  }
  await_reason();
  if (!reason.empty()) std::snprintf(reason.data(), reason.size(), "%s", reason_);
}

Status SoftDevice::lost_status(uhmm_status code) const {
  await_reason();
  if (state_.load(std::memory_order_acquire) == State::Closed)
    return fail(UHMM_ERR_DEVICE_LOST, "device %s is closed", options_.name);
  return fail(code, "device %s: %s", options_.name, reason_);
}

// ---------------------------------------------------------------------- windows

void SoftDevice::uncovered(ByteRange range, std::pmr::vector<ByteRange>* out) const {
  VirtAddr cursor = range.begin;
  while (cursor < range.end) {
    VirtAddr next = range.end;
    bool covered = false;
    for (const MappedWindow& window : windows_) {
      if (window.range.contains(cursor)) {
        cursor = window.range.end;
        covered = true;
        break;
      }
      if (window.range.begin > cursor) next = std::min(next, window.range.begin);
    }
    if (covered) continue;
    out->push_back({cursor, next});
    cursor = next;
  }
}

Status SoftDevice::do_attach(std::span<backend::Window> windows) {
  if (!open_now()) return lost_status();
  Status status;
  const std::size_t before = windows_.size();
  try {
    status = attach_locked(windows);
  } catch (const std::bad_alloc&) {
    status = fail(UHMM_ERR_NO_MEMORY, "no memory for the list of windows");
  }
  if (status.ok()) return {};
  while (windows_.size() > before) {
    munmap(windows_.back().host, windows_.back().range.bytes());
    windows_.pop_back();
  }
  for (backend::Window& window : windows) window.host = nullptr;
  return status;
}

Status SoftDevice::attach_locked(std::span<backend::Window> windows) {
  std::pmr::vector<ByteRange> fresh(Arena::instance().resource());
  for (backend::Window& window : windows) {
    uncovered(window.range, &fresh);
    windows_.reserve(windows_.size() + 1);
    void* host = mmap(nullptr, window.range.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_file_,
                      static_cast<off_t>(window.range.begin.value));
    if (host == MAP_FAILED) return fail_errno("address space for a window to device memory", errno);
    // No other process may hold device memory, nor may a core dump read it.
    (void)madvise(host, window.range.bytes(), MADV_DONTFORK);
    (void)madvise(host, window.range.bytes(), MADV_DONTDUMP);
    window.host = static_cast<std::byte*>(host);
    windows_.push_back({window.range, window.host});
  }
  // No access before faults are reported: a kernel that runs ahead must not find silent zeros.
  std::size_t mapped = 0;
  Status status = request(Operation::MapInaccessible, fresh, &mapped);
  for (std::size_t i = 0; status.ok() && i < fresh.size(); ++i) {
    const int error = uffd_.register_range(fresh[i], fault_modes());
    if (error != 0) status = page_table_error("registering for faults", fresh[i], error);
  }
  if (status.ok()) status = request(Operation::MakeAccessible, fresh);
  if (status.ok()) return {};
  char detail[kDetailBytes];
  std::snprintf(detail, sizeof(detail), "%s", last_detail());
  (void)request(Operation::Remove, std::span<const ByteRange>(fresh).first(mapped));
  set_detail(detail);
  return status;
}

void SoftDevice::do_detach(const backend::Window& window, ByteRange owned) {
  const auto entry = std::find_if(windows_.begin(), windows_.end(), [&](const MappedWindow& other) {
    return other.host == window.host && other.range == window.range;
  });
  if (entry == windows_.end()) return;  // it ended with an earlier incarnation
  munmap(entry->host, entry->range.bytes());
  windows_.erase(entry);
  if (owned.empty() || !open_now()) return;
  (void)request(Operation::Remove, {&owned, 1});
  // A kernel that waits for a fault there finds nothing mapped now, and crashes.
  uffd_.wake(owned);
  (void)os::punch_file(memory_file_, owned);
}

Status SoftDevice::do_reserve_split() {
  try {
    windows_.reserve(windows_.size() + 1);
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "no memory for the list of windows");
  }
  return {};
}

void SoftDevice::do_split(const backend::Window& window, const backend::Window& lower, const backend::Window& upper) {
  const auto entry = std::find_if(windows_.begin(), windows_.end(), [&](const MappedWindow& other) {
    return other.host == window.host && other.range == window.range;
  });
  if (entry == windows_.end()) return;  // it ended with an earlier incarnation
  *entry = {lower.range, lower.host};
  windows_.push_back({upper.range, upper.host});
}

}  // namespace uhmm::soft
