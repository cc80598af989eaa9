// SPDX-License-Identifier: Apache-2.0
// Public calls about devices and pools.
#include <cstring>

#include "runtime/api/runtime.hpp"

using namespace uhmm;
using api::Runtime;

namespace {

// Runs on a worker with the lifecycle lock.
template <typename Body>
uhmm_status with_lifecycle(Runtime* rt, Body body) {
  return rt->context.workers
      .call([rt, body]() mutable -> Status {
        const std::scoped_lock lock(rt->lifecycle);
        return body();
      })
      .code();
}

template <typename Struct>
Status check_struct(const Struct* given, const char* name) {
  if (given == nullptr) return fail(UHMM_ERR_INVALID, "%s is NULL", name);
  if (given->size < sizeof(Struct))
    return fail(UHMM_ERR_INVALID, "%s.size is %zu, at least %zu is needed", name, given->size, sizeof(Struct));
  return {};
}

}  // namespace

extern "C" {

uhmm_status uhmm_device_count(uint32_t* count) { return uhmm_device_list(nullptr, 0, count); }

uhmm_status uhmm_device_list(uhmm_processor* ids, uint32_t capacity, uint32_t* count) {
  UHMM_RUNTIME(rt);
  if (count == nullptr || (ids == nullptr && capacity != 0))
    return fail(UHMM_ERR_INVALID, count == nullptr ? "count is NULL" : "ids is NULL").code();
  struct List {
    Status status;
    std::uint32_t count = 0;
    uhmm_processor ids[kMaxDevices];
  };
  const List list = rt->context.workers.call([rt]() -> List {
    List found;
    const engine::Operation operation(rt->context);
    for (std::uint32_t i = 0; i < kMaxDevices; ++i)
      if (rt->context.slots[i].device != nullptr) found.ids[found.count++] = i + 1;
    return found;
  });
  for (std::uint32_t i = 0; i < list.count && i < capacity; ++i) ids[i] = list.ids[i];
  *count = list.count;
  return UHMM_OK;
}

uhmm_status uhmm_device_get_info(uhmm_processor device, uhmm_device_info* out) {
  UHMM_RUNTIME(rt);
  if (const Status good = check_struct(out, "uhmm_device_info"); !good.ok()) return good.code();
  if (const Status good = api::check_processor(device, false); !good.ok()) return good.code();
  struct Answer {
    Status status;
    uhmm_device_info info;
  };
  const Answer answer = rt->context.workers.call([rt, device]() -> Answer {
    Answer found{};
    const engine::Operation operation(rt->context);
    engine::DeviceSlot& slot = rt->context.slot(DeviceIndex{device - 1});
    if (slot.device == nullptr) {
      found.status = fail(UHMM_ERR_NO_DEVICE, "there is no device %u", device);
      return found;
    }
    uhmm_device_info& info = found.info;
    info.device = device;
    info.kind = slot.capabilities.kind;
    const bool lost = slot.lost.load();
    info.flags = (slot.capabilities.coherent ? UHMM_DEVICE_COHERENT : 0) |
                 (slot.capabilities.faulting ? UHMM_DEVICE_FAULTING : 0) | (lost ? UHMM_DEVICE_IS_LOST : 0);
    info.workers = slot.capabilities.workers;
    info.memory_bytes = slot.memory.capacity() << kPageShift;
    info.memory_free = info.memory_bytes - (slot.current_pages.load() << kPageShift);
    info.page_bytes = kPageBytes;
    info.process_id = lost ? 0 : slot.device->capabilities().process_id;
    std::memcpy(info.name, slot.capabilities.name, sizeof(info.name));
    if (lost) std::memcpy(info.lost_reason, slot.lost_reason, sizeof(info.lost_reason));
    return found;
  });
  if (!answer.status.ok()) return answer.status.code();
  const std::size_t size = out->size;
  *out = answer.info;
  out->size = size;
  return UHMM_OK;
}

uhmm_status uhmm_device_add(const uhmm_device_desc* desc, uhmm_processor* out) {
  UHMM_RUNTIME(rt);
  if (const Status good = check_struct(desc, "uhmm_device_desc"); !good.ok()) return good.code();
  if (out == nullptr) return fail(UHMM_ERR_INVALID, "out is NULL").code();
  const bool gpu = desc->kind == UHMM_DEVICE_CUDA || desc->kind == UHMM_DEVICE_HIP;
  if (!gpu && desc->kind != UHMM_DEVICE_SOFT)
    return fail(UHMM_ERR_INVALID, "unknown kind of device %u", desc->kind).code();
  if ((desc->flags & ~(gpu ? 0u : UHMM_DEVICE_COHERENT)) != 0 || desc->reserved != 0)
    return fail(UHMM_ERR_INVALID, "unknown flags %#x", desc->flags).code();
  if ((desc->memory_bytes != 0 && desc->memory_bytes < kBlockBytes) || desc->memory_bytes > (std::uint64_t{1} << 46) ||
      desc->workers > 256)
    return fail(UHMM_ERR_INVALID, "memory_bytes is 2 MiB to 64 TiB, workers at most 256").code();
  struct Answer {
    Status status;
    std::uint32_t processor = 0;
  };
  const Answer answer = rt->context.workers.call([rt, copy = *desc]() -> Answer {
    Answer added;
    added.status = rt->add_device(copy, &added.processor);
    return added;
  });
  if (answer.status.ok()) *out = answer.processor;
  return answer.status.code();
}

uhmm_status uhmm_device_remove(uhmm_processor device) {
  UHMM_RUNTIME(rt);
  if (const Status good = api::check_processor(device, false); !good.ok()) return good.code();
  return with_lifecycle(rt, [rt, device] { return rt->devices.remove(DeviceIndex{device - 1}); });
}

uhmm_status uhmm_device_restart(uhmm_processor device) {
  UHMM_RUNTIME(rt);
  if (const Status good = api::check_processor(device, false); !good.ok()) return good.code();
  return with_lifecycle(rt, [rt, device] { return rt->devices.restart(DeviceIndex{device - 1}); });
}

uhmm_status uhmm_pool_create(const uhmm_pool_desc* desc, uhmm_pool* out) {
  UHMM_RUNTIME(rt);
  if (const Status good = check_struct(desc, "uhmm_pool_desc"); !good.ok()) return good.code();
  if (out == nullptr || desc->bytes == 0 || desc->flags != 0)
    return fail(UHMM_ERR_INVALID, out == nullptr ? "out is NULL" : "bytes is 0, or unknown flags").code();
  uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
  if (desc->ops != nullptr) {
    if (const Status good = check_struct(desc->ops, "uhmm_pool_ops"); !good.ok()) return good.code();
    ops = *desc->ops;
  }
  if (const Status good = api::check_processor(desc->device, false); !good.ok()) return good.code();
  const auto created = rt->context.workers.call([rt, copy = *desc, ops]() {
    const std::scoped_lock lock(rt->lifecycle);
    return rt->devices.create_pool(copy, ops);
  });
  if (created.status.ok()) *out = created.id;
  return created.status.code();
}

uhmm_status uhmm_pool_destroy(uhmm_pool pool) {
  UHMM_RUNTIME(rt);
  return with_lifecycle(rt, [rt, pool] { return rt->devices.destroy_pool(pool); });
}

uhmm_status uhmm_range_set_pool(const void* address, uhmm_pool pool) {
  UHMM_RUNTIME(rt);
  return with_lifecycle(rt, [rt, at = VirtAddr{address}, pool] { return rt->devices.set_pool(at, pool); });
}

}  // extern "C"
