// SPDX-License-Identifier: Apache-2.0
// Public calls about streams, fences and kernels.
#include <algorithm>
#include <array>

#include "runtime/api/runtime.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

using namespace uhmm;
using api::Runtime;
using engine::MigrateRequest;
using engine::Streams;
using engine::Want;

namespace {

// Sleeps on the calling thread with no lock held. TIMEOUT, or the fence's status with its detail.
Status wait_for(engine::Fence* fence, std::uint64_t timeout_ns) {
  const std::uint64_t start = os::now_ns();
  while (fence->done.load() == 0) {
    const std::uint64_t passed = os::now_ns() - start;
    if (passed >= timeout_ns) return fail(UHMM_ERR_TIMEOUT, "the fence is not complete after %lu ns", timeout_ns);
    if (timeout_ns == UINT64_MAX)
      fence->done.wait(0);
    else
      os::futex_wait_for(fence->done, 0, timeout_ns - passed);
  }
  if (fence->status != UHMM_OK) set_detail(fence->detail);
  return fence->status;
}

void give_back(Runtime* rt, engine::Fence* fence) {
  (void)rt->context.workers.call([fence]() -> Status {
    engine::release(fence);
    return {};
  });
}

// Waits, gives the fence back, and keeps the wait's status and detail.
uhmm_status wait_and_release(Runtime* rt, const Streams::Pending& pending, std::uint64_t timeout_ns) {
  if (!pending.status.ok()) return pending.status.code();
  const Status waited = wait_for(pending.fence, timeout_ns);
  char detail[kDetailBytes];
  save_detail(detail);
  give_back(rt, pending.fence);
  if (!waited.ok()) set_detail(detail);
  return waited.code();
}

uhmm_status queue_migration(void* address, std::size_t length, uhmm_processor to, uhmm_stream stream, Want want,
                            uhmm_cause cause) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (const Status good = api::check_range(address, length, &bytes); !good.ok()) return good.code();
  if (const Status good = api::check_processor(to, true); !good.ok()) return good.code();
  const MigrateRequest request{bytes, to, want, cause};
  return rt->context.workers
      .call([rt, stream, request]() -> Status {
        if (stream == 0 && request.cause == UHMM_CAUSE_PREFETCH_USER) return rt->streams.soon(request);
        return rt->streams.migrate(stream, request);
      })
      .code();
}

}  // namespace

extern "C" {

uhmm_status uhmm_stream_create(uhmm_processor device, uhmm_stream* out) {
  UHMM_RUNTIME(rt);
  if (out == nullptr) return fail(UHMM_ERR_INVALID, "out is NULL").code();
  if (const Status good = api::check_processor(device, false); !good.ok()) return good.code();
  const Streams::Created created =
      rt->context.workers.call([rt, device]() { return rt->streams.create_stream(DeviceIndex{device - 1}); });
  if (created.status.ok()) *out = created.id;
  return created.status.code();
}

uhmm_status uhmm_stream_synchronize(uhmm_stream stream) {
  UHMM_RUNTIME(rt);
  const Streams::Pending pending = rt->context.workers.call([rt, stream]() { return rt->streams.finish(stream); });
  return wait_and_release(rt, pending, UINT64_MAX);
}

uhmm_status uhmm_stream_destroy(uhmm_stream stream) {
  UHMM_RUNTIME(rt);
  const uhmm_status finished = uhmm_stream_synchronize(stream);
  if (finished == UHMM_ERR_NOT_FOUND) return finished;
  char detail[kDetailBytes];
  save_detail(detail);
  const Status ended = rt->context.workers.call([rt, stream]() { return rt->streams.destroy_stream(stream); });
  if (!ended.ok()) return ended.code();
  if (finished != UHMM_OK) set_detail(detail);
  return finished;
}

uhmm_status uhmm_fence_record(uhmm_stream stream, uhmm_fence* out) {
  UHMM_RUNTIME(rt);
  if (out == nullptr) return fail(UHMM_ERR_INVALID, "out is NULL").code();
  const Streams::Created created = rt->context.workers.call([rt, stream]() { return rt->streams.record(stream); });
  if (created.status.ok()) *out = created.id;
  return created.status.code();
}

uhmm_status uhmm_stream_wait_fence(uhmm_stream stream, uhmm_fence fence) {
  UHMM_RUNTIME(rt);
  return rt->context.workers.call([rt, stream, fence]() { return rt->streams.wait_fence(stream, fence); }).code();
}

uhmm_status uhmm_fence_wait(uhmm_fence fence, uint64_t timeout_ns) {
  UHMM_RUNTIME(rt);
  const Streams::Pending pending = rt->context.workers.call([rt, fence]() { return rt->streams.find_fence(fence); });
  return wait_and_release(rt, pending, timeout_ns);
}

uhmm_status uhmm_fence_destroy(uhmm_fence fence) {
  UHMM_RUNTIME(rt);
  return rt->context.workers.call([rt, fence]() { return rt->streams.forget_fence(fence); }).code();
}

uhmm_status uhmm_migrate_async(void* address, size_t length, uhmm_processor to, uhmm_stream stream) {
  return queue_migration(address, length, to, stream, Want::Move, UHMM_CAUSE_USER);
}

uhmm_status uhmm_prefetch(void* address, size_t length, uhmm_processor to, uhmm_stream stream) {
  return queue_migration(address, length, to, stream, Want::Duplicate, UHMM_CAUSE_PREFETCH_USER);
}

uhmm_status uhmm_launch(uhmm_stream stream, const uhmm_launch_desc* desc) {
  UHMM_RUNTIME(rt);
  if (desc == nullptr || desc->size < sizeof(*desc))
    return fail(UHMM_ERR_INVALID, "a uhmm_launch_desc with its size set is needed").code();
  if (desc->kernel == nullptr) return fail(UHMM_ERR_INVALID, "the kernel is NULL").code();
  if (desc->args_size > UHMM_MAX_ARGS_BYTES || (desc->args == nullptr && desc->args_size != 0) || desc->flags != 0)
    return fail(UHMM_ERR_INVALID, "args_size is %zu (at most %u, with args), flags %#x (0)", desc->args_size,
                UHMM_MAX_ARGS_BYTES, desc->flags)
        .code();
  struct Copy {
    backend::Launch launch;
    std::array<std::byte, UHMM_MAX_ARGS_BYTES> args;
  } copy;
  copy.launch.kernel = desc->kernel;
  copy.launch.args_bytes = desc->args_size;
  for (int i = 0; i < 3; ++i) {
    copy.launch.grid[i] = std::max(1u, desc->grid[i]);
    copy.launch.block[i] = std::max(1u, desc->block[i]);
  }
  copy.launch.shared_bytes = desc->shared_bytes;
  std::copy_n(static_cast<const std::byte*>(desc->args), desc->args_size, copy.args.data());
  return rt->context.workers
      .call([rt, stream, copy]() -> Status {
        backend::Launch launch = copy.launch;
        launch.args = copy.args.data();
        return rt->streams.launch(stream, launch);
      })
      .code();
}

}  // extern "C"
