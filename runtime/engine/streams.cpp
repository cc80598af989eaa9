// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/streams.hpp"

#include <cstring>

#include "runtime/base/arena.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {
namespace {

Status no_stream(std::uint64_t id) { return fail(UHMM_ERR_NOT_FOUND, "there is no stream %lu", id); }
Status no_fence(std::uint64_t id) { return fail(UHMM_ERR_NOT_FOUND, "there is no fence %lu", id); }

void complete(Fence* fence, uhmm_status status, const char* detail) {
  fence->status = status;
  save_detail(fence->detail, detail);
  fence->done.store(1);
  fence->done.notify_all();
  release(fence);
}

}  // namespace

void release(Fence* fence) {
  if (fence->references.fetch_sub(1) == 1) destroy_in_arena(fence);
}

Streams::Streams(Context& context)
    : context_(context), streams_(Arena::instance().resource()), fences_(Arena::instance().resource()) {}

Streams::Created Streams::create_stream(DeviceIndex device) {
  if (const Status there = with_device(context_, device, [](Device&) { return Status{}; }); !there.ok())
    return {there, 0};
  Stream* stream = make_in_arena<Stream>();
  if (stream == nullptr) return {fail(UHMM_ERR_NO_MEMORY, "no memory for a stream"), 0};
  stream->streams = this;
  stream->device = device;
  const std::scoped_lock lock(mutex_);
  // A device that is being removed has ended its streams.
  if (refused_[device.value]) {
    destroy_in_arena(stream);
    return {fail(UHMM_ERR_BUSY, "device %u is being removed", device.processor()), 0};
  }
  stream->id = next_id_++;
  try {
    streams_.emplace(stream->id, stream);
  } catch (const std::bad_alloc&) {
    destroy_in_arena(stream);
    return {fail(UHMM_ERR_NO_MEMORY, "no memory for a stream"), 0};
  }
  if (const Status started = stream->thread.start("uhmm-stream", run, stream); !started.ok()) {
    streams_.erase(stream->id);
    destroy_in_arena(stream);
    return {started, 0};
  }
  return {{}, stream->id};
}

void Streams::end_stream(Stream* stream) {
  Op* stop = make_in_arena<Op>();
  while (stop == nullptr) stop = make_in_arena<Op>();  // ending must not fail
  {
    const std::scoped_lock lock(stream->mutex);
    (stream->last != nullptr ? stream->last->next : stream->first) = stop;
    stream->last = stop;
  }
  stream->bell.fetch_add(1);
  stream->bell.notify_all();
  stream->thread.join();
  destroy_in_arena(stream);
}

Status Streams::destroy_stream(std::uint64_t id) {
  Stream* stream = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = streams_.find(id);
    if (found == streams_.end()) return no_stream(id);
    stream = found->second;
    streams_.erase(found);
  }
  end_stream(stream);
  return {};
}

void Streams::end_streams(std::uint32_t device) {
  for (;;) {
    Stream* stream = nullptr;
    {
      const std::scoped_lock lock(mutex_);
      for (auto it = streams_.begin(); it != streams_.end(); ++it) {
        if (device != kMaxDevices && it->second->device.value != device) continue;
        stream = it->second;
        streams_.erase(it);
        break;
      }
    }
    if (stream == nullptr) break;
    end_stream(stream);
  }
  if (device != kMaxDevices) return;
  const std::scoped_lock lock(mutex_);
  for (auto& [id, fence] : fences_) release(fence);
  fences_.clear();
}

void Streams::refuse_streams(DeviceIndex device) {
  {
    const std::scoped_lock lock(mutex_);
    refused_[device.value] = true;
  }
  end_streams(device.value);
}

void Streams::allow_streams(DeviceIndex device) {
  const std::scoped_lock lock(mutex_);
  refused_[device.value] = false;
}

void Streams::forget_threads() {
  for (auto& [id, stream] : streams_) stream->thread.forget();
}

Status Streams::push(std::uint64_t id, Op* op) {
  if (op == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for queued work");
  const std::scoped_lock lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end()) {
    destroy_op(op);
    return no_stream(id);
  }
  Stream& stream = *found->second;
  {
    const std::scoped_lock queue_lock(stream.mutex);
    (stream.last != nullptr ? stream.last->next : stream.first) = op;
    stream.last = op;
  }
  stream.bell.fetch_add(1);
  stream.bell.notify_all();
  return {};
}

void Streams::destroy_op(Op* op) {
  if (op->args != nullptr) Arena::instance().deallocate(op->args, op->launch.args_bytes, 16);
  if (op->fence != nullptr) release(op->fence);
  destroy_in_arena(op);
}

Streams::Created Streams::record(std::uint64_t stream) {
  Fence* fence = make_in_arena<Fence>();
  Op* op = make_in_arena<Op>();
  if (fence == nullptr || op == nullptr) {
    destroy_in_arena(fence);
    destroy_in_arena(op);
    return {fail(UHMM_ERR_NO_MEMORY, "no memory for a fence"), 0};
  }
  fence->references.store(2);  // the table's and the operation's
  op->kind = Kind::Record;
  op->fence = fence;
  if (const Status pushed = push(stream, op); !pushed.ok()) {
    release(fence);
    return {pushed, 0};
  }
  const std::scoped_lock lock(mutex_);
  const std::uint64_t id = next_id_++;
  try {
    fences_.emplace(id, fence);
  } catch (const std::bad_alloc&) {
    release(fence);
    return {fail(UHMM_ERR_NO_MEMORY, "no memory for a fence"), 0};
  }
  return {{}, id};
}

Status Streams::forget_fence(std::uint64_t id) {
  const std::scoped_lock lock(mutex_);
  const auto found = fences_.find(id);
  if (found == fences_.end()) return no_fence(id);
  release(found->second);
  fences_.erase(found);
  return {};
}

Streams::Pending Streams::find_fence(std::uint64_t id) {
  const std::scoped_lock lock(mutex_);
  const auto found = fences_.find(id);
  if (found == fences_.end()) return {no_fence(id), nullptr};
  found->second->references.fetch_add(1);
  return {{}, found->second};
}

Status Streams::wait_fence(std::uint64_t stream, std::uint64_t fence) {
  const Pending pending = find_fence(fence);
  if (!pending.status.ok()) return pending.status;
  Op* op = make_in_arena<Op>();
  if (op == nullptr) {
    release(pending.fence);
    return fail(UHMM_ERR_NO_MEMORY, "no memory for queued work");
  }
  op->kind = Kind::Wait;
  op->fence = pending.fence;
  return push(stream, op);
}

Streams::Pending Streams::finish(std::uint64_t stream) {
  Fence* fence = make_in_arena<Fence>();
  Op* op = make_in_arena<Op>();
  if (fence == nullptr || op == nullptr) {
    destroy_in_arena(fence);
    destroy_in_arena(op);
    return {fail(UHMM_ERR_NO_MEMORY, "no memory for a fence"), nullptr};
  }
  fence->references.store(2);
  op->kind = Kind::Record;
  op->takes_error = true;
  op->fence = fence;
  const Status pushed = push(stream, op);
  if (!pushed.ok()) {
    release(fence);
    return {pushed, nullptr};
  }
  return {{}, fence};
}

Status Streams::launch(std::uint64_t id, const backend::Launch& launch) {
  DeviceIndex device;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = streams_.find(id);
    if (found == streams_.end()) return no_stream(id);
    device = found->second->device;
  }
  UHMM_TRY(with_device(context_, device, [&](Device& healthy) { return healthy.check_kernel(launch.kernel); }));
  Op* op = make_in_arena<Op>();
  if (op != nullptr) {
    op->kind = Kind::Launch;
    op->launch = launch;
    if (launch.args_bytes != 0) {
      op->args = Arena::instance().allocate(launch.args_bytes, 16);
      if (op->args == nullptr) {
        op->launch.args_bytes = 0;
        destroy_op(op);
        return fail(UHMM_ERR_NO_MEMORY, "no memory for a launch's arguments");
      }
      std::memcpy(op->args, launch.args, launch.args_bytes);
    }
    op->launch.args = op->args;
  }
  return push(id, op);
}

Status Streams::check(const MigrateRequest& request) {
  UHMM_TRY(check_registered(context_, request.bytes));
  const Operation operation(context_);
  if (request.to != UHMM_CPU && context_.slot(DeviceIndex{request.to - 1}).device == nullptr)
    return fail(UHMM_ERR_NO_DEVICE, "there is no device %u", request.to);
  return {};
}

Status Streams::migrate(std::uint64_t stream, const MigrateRequest& request) {
  UHMM_TRY(check(request));
  Op* op = make_in_arena<Op>();
  if (op != nullptr) {
    op->kind = Kind::Migrate;
    op->request = request;
  }
  return push(stream, op);
}

Status Streams::soon(const MigrateRequest& request) {
  UHMM_TRY(check(request));
  struct Later : WorkerPool::Work {
    Context* context = nullptr;
    MigrateRequest request;
  };
  Later* later = make_in_arena<Later>();
  if (later == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for queued work");
  later->context = &context_;
  later->request = request;
  later->run = [](WorkerPool::Work& work) {
    auto& self = static_cast<Later&>(work);
    (void)engine::migrate(*self.context, self.request);
    destroy_in_arena(&self);
  };
  context_.workers.post(*later);
  return {};
}

void Streams::run(void* argument) {
  WorkerPool::enter_runtime_thread();
  auto& stream = *static_cast<Stream*>(argument);
  for (;;) {
    const std::uint32_t bell = stream.bell.load();
    Op* op = nullptr;
    {
      const std::scoped_lock lock(stream.mutex);
      op = stream.first;
      if (op != nullptr) {
        stream.first = op->next;
        if (stream.first == nullptr) stream.last = nullptr;
      }
    }
    if (op == nullptr) {
      stream.bell.wait(bell);
      continue;
    }
    const bool stop = op->kind == Kind::Stop;
    if (!stop) stream.streams->execute(stream, *op);
    destroy_op(op);
    if (stop) return;
  }
}

void Streams::execute(Stream& stream, Op& op) {
  Status status;
  switch (op.kind) {
    case Kind::Launch: status = run_launch(stream, op.launch); break;
    case Kind::Migrate: {
      status = engine::migrate(context_, op.request).status;
      // A prefetch is a hint: what can't be done is no error.
      if (op.request.cause == UHMM_CAUSE_PREFETCH_USER) status = {};
      break;
    }
    case Kind::Wait: op.fence->done.wait(0); break;
    case Kind::Record:
      complete(op.fence, stream.error, stream.detail);
      op.fence = nullptr;  // complete() gave the operation's reference back
      if (op.takes_error) {
        stream.error = UHMM_OK;
        stream.detail[0] = '\0';
      }
      break;
    case Kind::Stop: break;
  }
  if (!status.ok() && stream.error == UHMM_OK) {
    stream.error = status.code();
    save_detail(stream.detail);
  }
}

Status Streams::run_launch(Stream& stream, const backend::Launch& launch) {
  const std::uint64_t started = os::now_ns();
  // Removing a device waits for its streams: it stays while this runs.
  Device* device = nullptr;
  UHMM_TRY(begin_device_work(context_, stream.device, &device));
  Status status;
  Result<backend::Ticket> ticket = device->launch(launch);
  status = ticket.ok() ? device->wait(*ticket) : ticket.status();
  // Asked before the device may be removed.
  const bool died = !status.ok() && device->lost();
  end_device_work(context_, stream.device, *device);
  if (died) {
    // Whoever sees the error finds the device's state and its pages' states settled.
    char detail[kDetailBytes];
    save_detail(detail);
    handle_device_death(context_, stream.device);
    set_detail(detail);
  }
  const VirtAddr function{reinterpret_cast<std::uint64_t>(launch.kernel)};
  context_.record(UHMM_EVENT_LAUNCH, UHMM_CAUSE_USER, {function, function}, 0, stream.device.processor(),
                  os::now_ns() - started);
  return status;
}

}  // namespace uhmm::engine
