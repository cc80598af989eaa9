// SPDX-License-Identifier: Apache-2.0
// Streams: work in order, one executor thread each. Fences: a point in a stream that others can wait for. All calls run
// on threads of the runtime, except FenceRef::wait(), which only sleeps on a word in the arena.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory_resource>

#include "runtime/engine/memory_calls.hpp"

namespace uhmm::engine {

// Shared between the table, waiters and the stream that completes it.
struct Fence {
  std::atomic<std::uint32_t> references{1};
  std::atomic<std::uint32_t> done{0};
  uhmm_status status = UHMM_OK;  // valid once done
  char detail[kDetailBytes] = {};
};
void release(Fence* fence);

class Streams {
 public:
  explicit Streams(Context& context);
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  struct Created {
    Status status;
    std::uint64_t id = 0;
  };
  Created create_stream(DeviceIndex device);
  // Ends the stream when its work is done; the caller waits on the fence from finish() first.
  Status destroy_stream(std::uint64_t stream);
  Created record(std::uint64_t stream);
  Status forget_fence(std::uint64_t fence);
  Status wait_fence(std::uint64_t stream, std::uint64_t fence);
  // A fence that completes with everything queued so far and carries (and clears) the stream's first error. The caller
  // releases it.
  struct Pending {
    Status status;
    Fence* fence = nullptr;
  };
  Pending finish(std::uint64_t stream);
  Pending find_fence(std::uint64_t fence);

  Status launch(std::uint64_t stream, const backend::Launch& launch);
  Status migrate(std::uint64_t stream, const MigrateRequest& request);
  // The same without a stream: some time soon, on a worker.
  Status soon(const MigrateRequest& request);

  // Ends all streams of a device (kMaxDevices: of all), after their work.
  void end_streams(std::uint32_t device);
  // The device goes: its streams end, and none begins until allow_streams().
  void refuse_streams(DeviceIndex device);
  void allow_streams(DeviceIndex device);
  void forget_threads();

 private:
  enum class Kind : std::uint8_t { Launch, Migrate, Record, Wait, Stop };
  struct Op {
    Op* next = nullptr;
    Kind kind = Kind::Stop;
    bool takes_error = false;  // Record: the fence carries the stream's error away
    backend::Launch launch;
    void* args = nullptr;
    MigrateRequest request;
    Fence* fence = nullptr;
  };
  struct Stream {
    Streams* streams = nullptr;
    std::uint64_t id = 0;
    DeviceIndex device;
    RankedMutex<LockRank::Stream> mutex;
    Op* first = nullptr;
    Op* last = nullptr;
    std::atomic<std::uint32_t> bell{0};
    Thread thread;
    uhmm_status error = UHMM_OK;  // the executor's
    char detail[kDetailBytes] = {};
  };
  using StreamMap = std::pmr::map<std::uint64_t, Stream*>;
  using FenceMap = std::pmr::map<std::uint64_t, Fence*>;

  static void run(void* stream);
  Status check(const MigrateRequest& request);
  Status push(std::uint64_t stream, Op* op);
  void execute(Stream& stream, Op& op);
  Status run_launch(Stream& stream, const backend::Launch& launch);
  void end_stream(Stream* stream);
  static void destroy_op(Op* op);

  Context& context_;
  RankedMutex<LockRank::StreamTable> mutex_;
  StreamMap streams_;
  FenceMap fences_;
  std::array<bool, kMaxDevices> refused_{};
  std::uint64_t next_id_ = 1;
};

}  // namespace uhmm::engine
