// SPDX-License-Identifier: Apache-2.0
// The composition root: what uhmm_init() makes. One at a time, in the arena.
#pragma once

#include <list>
#include <memory_resource>

#include "runtime/engine/device_table.hpp"
#include "runtime/engine/fork_keeper.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/reporter.hpp"
#include "runtime/trace/notifier.hpp"

namespace uhmm::api {

struct Acquired {
  ByteRange bytes;
  std::uint32_t processor = 0;
  uhmm_access access = UHMM_ACCESS_READ;
  bool ready = false;  // else uhmm_acquire() is still at work
};

class Runtime {
 public:
  Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Status start(const uhmm_config& config);
  // DATA_LOST if something could not be brought back; the rest is done all the same.
  Status stop();

  Status add_device(const uhmm_device_desc& desc, std::uint32_t* processor);
  // As configured: the vendor that is named, or the one that has a GPU.
  Status add_gpu();

  // Around fork(): nothing leaves system memory, and what is away comes home or is written down for the child; then on
  // again, or over in the child.
  void before_fork();
  void after_fork_in_parent();
  void after_fork_in_child();

  engine::Context context;
  engine::ForkKeeper forks;
  engine::FaultService faults;
  engine::Streams streams;
  engine::DeviceTable devices;
  trace::Notifier notifier;
  engine::Reporter reporter;
  // Taken on worker threads only: initialisation, shutdown, devices, pools.
  RankedMutex<LockRank::Lifecycle> lifecycle;
  // Not the lifecycle's: who removes a device waits for kernels, and they may wait for a release.
  RankedMutex<LockRank::Acquires> acquires_mutex;
  std::pmr::list<Acquired> acquired;  // guarded by acquires_mutex
};

// The runtime, or nullptr with the thread's detail set and *why filled.
Runtime* running(uhmm_status* why);

// For callers that the program did not ask for a call, and that may meet its shutdown: the runtime stays as long as
// this is there. nullptr: none is running, which says nothing in the thread's detail.
class Visit {
 public:
  Visit();
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit();
  Runtime* runtime() const { return runtime_; }

 private:
  Runtime* runtime_ = nullptr;
};

// Every public call begins with one: refuses calls in the wrong state.
#define UHMM_RUNTIME(name)                                               \
  uhmm_status name##_why_ = UHMM_OK;                                     \
  ::uhmm::api::Runtime* const name = ::uhmm::api::running(&name##_why_); \
  if (name == nullptr) return name##_why_

// No exception leaves the library.
template <typename Body>
uhmm_status barrier(Body&& body) noexcept {
  try {
    return Status(body()).code();
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "out of memory").code();
  } catch (...) {
    return fail(UHMM_ERR_SYSTEM, "unexpected exception").code();
  }
}

// Argument checks that many calls share.
Status check_range(const void* address, std::size_t length, ByteRange* out);
Status check_processor(uhmm_processor processor, bool cpu_allowed);

}  // namespace uhmm::api
