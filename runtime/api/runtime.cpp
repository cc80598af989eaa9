// SPDX-License-Identifier: Apache-2.0
#include "runtime/api/runtime.hpp"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "backends/soft/soft_device.hpp"
#include "runtime/api/config.hpp"
#include "runtime/api/gpu.hpp"
#include "runtime/base/arena.hpp"
#include "runtime/base/epoch.hpp"
#include "runtime/engine/fork_heir.hpp"
#include "runtime/engine/kernel_access.hpp"
#include "runtime/engine/range_end.hpp"
#include "runtime/engine/signal_faults.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::api {
namespace {

enum class State : int { Off, Starting, On, Stopping, Forked };
std::atomic<State> state{State::Off};
Runtime* runtime = nullptr;

// Forks between their two handlers: the runtime doesn't end meanwhile.
std::atomic<std::uint32_t> forks{0};
thread_local bool gate_closed = false;
std::atomic<std::uint32_t> visits{0};  // the runtime doesn't end meanwhile, either

void prepare_fork() {
  if (os::spawning_in_this_thread()) return;
  engine::finish_inheriting();
  forks.fetch_add(1);
  gate_closed = state.load() == State::On;
  if (gate_closed) runtime->before_fork();
}
void parent_after_fork() {
  if (os::spawning_in_this_thread()) return;
  if (gate_closed) runtime->after_fork_in_parent();
  forks.fetch_sub(1);
}
void child_after_fork() {
  if (os::spawning_in_this_thread()) return;
  Arena::instance().forget_after_fork();
  forks.store(0);
  visits.store(0);
  if (gate_closed) runtime->after_fork_in_child();
  if (state.load() == State::Off) return;
  // The parent's runtime is left where it is: its locks may be held by threads that are not here.
  runtime = nullptr;
  engine::kernel_faults_unserved.store(false);
  runtime_epoch.fetch_add(1);
  log::forget_after_fork();
  os::forget_thread_id();
  state.store(State::Forked);
}

void install_fork_handlers() {
  static std::atomic<bool> installed{false};
  if (!installed.exchange(true)) pthread_atfork(prepare_fork, parent_after_fork, child_after_fork);
}

// More than fork() and its handlers need, above and below.
constexpr std::uint64_t kStackOfFork = std::uint64_t{256} << 10;

void destroy_soft(backend::Device* device) { soft::destroy(device); }

}  // namespace

Runtime::Runtime()
    : forks(context),
      faults(context),
      streams(context),
      devices(context, faults, streams),
      notifier(context.events),
      reporter(context),
      acquired(Arena::instance().resource()) {
  context.forks = &forks;
}

Status Runtime::start(const uhmm_config& config) {
  context.config = config;
  static_assert(static_cast<std::uint32_t>(os::Rung::Signal) == UHMM_FAULTS_SIGNAL);
  const unsigned wishes = os::kFollowMap | os::kFollowForks |
                          ((config.flags & UHMM_CONFIG_DEVICE_ENTRIES) != 0 ? unsigned{os::kMarkAbsent} : 0);
  Result<os::Userfaultfd> uffd = os::Userfaultfd::open(static_cast<os::Rung>(config.fault_rung), wishes);
  if (!uffd.ok()) return uffd.status();
  context.uffd = std::move(*uffd);
  UHMM_TRY(context.changes.listen(context));
  context.config.fault_rung = static_cast<std::uint32_t>(context.uffd.rung());
  if (!context.uffd.features().write_protect && !context.uffd.features().move)
    return fail(UHMM_ERR_NOT_SUPPORTED, "this kernel's userfaultfd has neither write protection (5.7) nor MOVE (6.8)");
  context.use_move = context.uffd.features().move && (config.flags & UHMM_CONFIG_NO_MOVE) == 0;
  UHMM_TRY(context.process.open());
  const std::uint32_t workers = std::min<std::uint32_t>(std::max(2u, os::usable_cpu_count()), 8);
  if (context.use_move)
    UHMM_TRY(context.staging.open(context.uffd, config.staging_memory, workers + config.service_threads + 8));
  UHMM_TRY(context.workers.start(workers));
  UHMM_TRY(context.news.start());
  // Ahead of those who read news of forks.
  UHMM_TRY(forks.start());
  UHMM_TRY(faults.start(config.service_threads));
  constexpr const char* kRungText[] = {"?", "userfaultfd(2)", "/dev/userfaultfd", "userfaultfd(2), user mode only",
                                       "SIGBUS"};
  log::write(log::Level::Info, "CPU faults come by %s", kRungText[context.config.fault_rung]);
  if (!context.uffd.features().kernel_mode)
    log::write(
        log::Level::Warning,
        "only user-mode faults are served here: system calls on device-resident buffers fail with EFAULT, unless the "
        "program is run by `uhmm run` (give access to /dev/userfaultfd or set vm.unprivileged_userfaultfd=1)");
  if (context.uffd.rung() == os::Rung::Signal) {
    const auto serve = [](void* its, const os::SignalledFault& fault) {
      return engine::serve_signalled_fault(*static_cast<engine::Context*>(its), fault);
    };
    if (const int error = os::FaultSignal::install(serve, &context); error != 0)
      return fail_errno("handling SIGBUS", error);
  }
  if (config.gpus != 0) UHMM_TRY(context.workers.call([this]() -> Status { return add_gpu(); }));
  for (std::uint32_t i = 0; i < config.soft_devices; ++i) {
    uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
    desc.flags = (config.flags & UHMM_CONFIG_COHERENT) != 0 ? UHMM_DEVICE_COHERENT : 0;
    const Status added = context.workers.call([this, desc]() -> Status {
      std::uint32_t ignored = 0;
      return add_device(desc, &ignored);
    });
    UHMM_TRY(added);
  }
  if ((config.flags & UHMM_CONFIG_NO_REPORT) == 0 && !reporter.start().ok()) {
    char why[kDetailBytes];
    save_detail(why);
    log::write(log::Level::Info, "`uhmm maps` can't ask this process: %s", why);
  }
  return {};
}

Status Runtime::add_device(const uhmm_device_desc& desc, std::uint32_t* processor) {
  const std::scoped_lock lock(lifecycle);
  Result<DeviceIndex> index = devices.free_slot();
  if (!index.ok()) return index.status();
  if (desc.kind != UHMM_DEVICE_SOFT) {
    UHMM_TRY(api::add_gpu(*this, *index, desc));
    *processor = index->processor();
    return {};
  }
  soft::Options options;
  std::snprintf(options.name, sizeof(options.name), "soft%u", index->value);
  options.processor = index->processor();
  options.memory_bytes = desc.memory_bytes != 0 ? (desc.memory_bytes + kBlockBytes - 1) & ~(kBlockBytes - 1)
                                                : context.config.device_memory;
  options.coherent = (desc.flags & UHMM_DEVICE_COHERENT) != 0;
  options.workers = desc.workers != 0 ? desc.workers : context.config.device_workers;
  options.link_latency_ns = desc.link_latency_ns != 0 ? desc.link_latency_ns : context.config.link_latency_ns;
  options.link_bytes_per_sec =
      desc.link_bytes_per_sec != 0 ? desc.link_bytes_per_sec : context.config.link_bytes_per_sec;
  backend::Device* device = soft::create(options);
  if (device == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a device");
  if (const Status added = devices.add(*index, device, options.memory_bytes, destroy_soft); !added.ok()) {
    soft::destroy(device);
    return added;
  }
  *processor = index->processor();
  return {};
}

Status Runtime::add_gpu() {
  Result<uhmm_device_kind> kind = choose_gpu(context.config);
  if (!kind.ok()) return kind.status();
  uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  desc.kind = *kind;
  std::uint32_t ignored = 0;
  return add_device(desc, &ignored);
}

Status Runtime::stop() {
  reporter.stop();
  // A start that failed before there were workers has nothing to bring back, and nobody to do it.
  Status status;
  if (context.workers.thread_count() != 0)
    status = context.workers.call([this]() -> Status {
      const std::scoped_lock lock(lifecycle);
      for (engine::DeviceSlot& slot : context.slots) slot.holds_end.store(true);
      streams.end_streams(kMaxDevices);
      Status result = engine::unregister_all(context);
      for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
        if (context.slots[i].device == nullptr) continue;
        const Status removed = devices.remove(DeviceIndex{i});
        if (result.ok()) result = removed;
      }
      return result;
    });
  if (context.uffd.rung() == os::Rung::Signal) os::FaultSignal::remove();
  notifier.stop();
  // A fork may be under way that nobody was asked about: its news has to be read until nothing is watched.
  context.news.begin();
  faults.stop();
  forks.stop();
  context.news.end();
  context.news.stop();
  context.accesses.stop();
  context.workers.stop();
  context.staging.close();
  context.process.close();
  context.uffd.close();
  return status;
}

void Runtime::before_fork() {
  // The whole wait happens on a worker: this thread's stack may be on a device itself.
  const char on_stack = 0;
  const VirtAddr here = VirtAddr{&on_stack}.page_floor();
  const auto prepare = [this, here]() -> Status {
    context.fork_gate.close();
    // Contents that are on their way after their mapping would be missing; who brings them may be waiting at the gate.
    if (context.changes.pending()) {
      if (context.fork_gate.open()) engine::retry_device_faults(context);
      return UHMM_ERR_BUSY;
    }
    forks.bring_home({here - kStackOfFork, here + kStackOfFork});
    (void)forks.prepare();
    return {};
  };
  do context.changes.wait(context.uffd);
  while (!context.workers.call(prepare).ok());
}

void Runtime::after_fork_in_parent() {
  // Not on a worker: all of them may be waiting at the gate.
  forks.finish_in_parent();
  if (!context.fork_gate.open()) return;
  // The devices are told by a worker: this thread's stack may be on one.
  (void)context.workers.call([this]() -> Status {
    engine::retry_device_faults(context);
    return {};
  });
}

void Runtime::after_fork_in_child() {
  engine::inherit(forks);
  forks.forget_in_child();
  context.news.forget_thread();
  os::FaultSignal::forget_threads();
  faults.forget_threads();
  context.workers.forget_threads();
  context.accesses.forget_threads();
  streams.forget_threads();
  notifier.forget_thread();
  reporter.forget_thread();
  for (engine::DeviceSlot& slot : context.slots)
    if (slot.device != nullptr) slot.device->abandon_after_fork();
  // Descriptors of the parent's memory, of no use here. Its mappings stay its own: they are not inherited.
  context.uffd.close();
  context.process.close();
  engine::WorkerPool::leave_runtime_thread();
}

Runtime* running(uhmm_status* why) {
  const State now = state.load(std::memory_order_acquire);
  if (now == State::On && !os::in_device_process()) {
    // Memory that the program has unmapped is registered no more.
    if (!engine::WorkerPool::on_runtime_thread()) runtime->context.changes.wait(runtime->context.uffd);
    return runtime;
  }
  if (now == State::Forked || os::in_device_process())
    *why = fail(UHMM_ERR_FORKED,
                "this process was forked from one that uses uhmm: it has plain copies of the memory, and uhmm_init "
                "starts a runtime of its own")
               .code();
  else
    *why = fail(UHMM_ERR_NOT_INITIALIZED, "uhmm_init was not called, failed, or uhmm_shutdown was called").code();
  return nullptr;
}

Visit::Visit() {
  visits.fetch_add(1);
  if (state.load() == State::On && !os::in_device_process()) runtime_ = api::runtime;
}

Visit::~Visit() { visits.fetch_sub(1); }

Status check_range(const void* address, std::size_t length, ByteRange* out) {
  const VirtAddr begin{address};
  if (address == nullptr || length == 0)
    return fail(UHMM_ERR_INVALID, address == nullptr ? "the address is NULL" : "the length is 0");
  if (begin.value + length < begin.value || begin.value + length > kUserSpaceEnd)
    return fail(UHMM_ERR_INVALID, "[%p, +%zu) wraps or lies beyond user space", address, length);
  *out = {begin, begin + length};
  return {};
}

Status check_processor(uhmm_processor processor, bool cpu_allowed) {
  if (processor > UHMM_MAX_DEVICES || (processor == UHMM_CPU && !cpu_allowed))
    return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", processor);
  return {};
}

}  // namespace uhmm::api

using namespace uhmm;
using uhmm::api::State;

extern "C" {

uhmm_status uhmm_init(const uhmm_config* config) {
  return api::barrier([&]() -> Status {
    if (os::in_device_process()) return fail(UHMM_ERR_FORKED, "a kernel can't start the runtime");
    State expected = State::Off;
    State forked = State::Forked;
    if (!api::state.compare_exchange_strong(expected, State::Starting) &&
        !api::state.compare_exchange_strong(forked, State::Starting))
      return fail(UHMM_ERR_ALREADY, "the runtime is running, starting or stopping");
    engine::finish_inheriting();
    Result<uhmm_config> resolved = api::resolve_config(config);
    Status status = resolved.status();
    if (status.ok()) {
      const bool use_environment = (resolved->flags & UHMM_CONFIG_NO_ENV) == 0;
      Result<log::Level> level = api::resolve_log_level(use_environment);
      status = level.status();
      if (status.ok()) {
        log::start(*level);
        api::install_fork_handlers();
        auto* made = make_in_arena<api::Runtime>();
        if (made == nullptr) {
          status = fail(UHMM_ERR_NO_MEMORY, "no memory for the runtime");
        } else {
          status = made->start(*resolved);
          if (status.ok()) {
            api::runtime = made;
            engine::kernel_faults_unserved.store(!made->context.uffd.features().kernel_mode);
          } else {
            char detail[kDetailBytes];
            save_detail(detail);
            (void)made->stop();
            destroy_in_arena(made);
            set_detail(detail);
          }
        }
        if (!status.ok()) log::stop();
      }
    }
    api::state.store(status.ok() ? State::On : State::Off);
    return status;
  });
}

uhmm_status uhmm_shutdown(void) {
  return api::barrier([&]() -> Status {
    uhmm_status why = UHMM_OK;
    if (api::running(&why) == nullptr) return why;
    State expected = State::On;
    if (!api::state.compare_exchange_strong(expected, State::Stopping))
      return fail(UHMM_ERR_NOT_INITIALIZED, "another thread is shutting the runtime down");
    while (api::forks.load() != 0 || api::visits.load() != 0) std::this_thread::yield();
    engine::kernel_faults_unserved.store(false);
    runtime_epoch.fetch_add(1);
    const Status status = api::runtime->stop();
    destroy_in_arena(api::runtime);
    api::runtime = nullptr;
    log::stop();
    api::state.store(State::Off);
    return status;
  });
}

uhmm_status uhmm_get_config(uhmm_config* out) {
  UHMM_RUNTIME(rt);
  if (out == nullptr || out->size < sizeof(uhmm_config))
    return fail(UHMM_ERR_INVALID, "a uhmm_config with its size set is needed").code();
  const std::size_t size = out->size;
  *out = rt->context.config;
  out->size = size;
  return UHMM_OK;
}

uint32_t uhmm_version(void) { return UHMM_VERSION; }

const char* uhmm_version_string(void) {
#define UHMM_TEXT_OF(x) #x
#define UHMM_TEXT(x) UHMM_TEXT_OF(x)
  return UHMM_TEXT(UHMM_VERSION_MAJOR) "." UHMM_TEXT(UHMM_VERSION_MINOR) "." UHMM_TEXT(UHMM_VERSION_PATCH);
}

}  // extern "C"
