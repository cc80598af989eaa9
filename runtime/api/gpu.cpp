// SPDX-License-Identifier: Apache-2.0
#include "runtime/api/gpu.hpp"

#include <cstdio>

#include "backends/vmm/vmm_device.hpp"
#include "runtime/api/config.hpp"
#include "runtime/os/system_memory.hpp"

namespace uhmm::api {
namespace {

bool uses_environment(const uhmm_config& config) { return (config.flags & UHMM_CONFIG_NO_ENV) == 0; }

vmm::Vendor vendor_of(std::uint32_t kind) { return kind == UHMM_DEVICE_CUDA ? vmm::Vendor::Cuda : vmm::Vendor::Hip; }

// How many GPUs the vendor's driver has; a status where it can't be used.
Result<std::uint32_t> count_gpus(const uhmm_config& config, uhmm_device_kind kind) {
  Result<vmm::Driver*> driver = vmm::open_driver(vendor_of(kind), driver_library(kind, uses_environment(config)));
  if (!driver.ok()) return driver.status();
  Result<std::uint32_t> count = (*driver)->device_count();
  vmm::destroy_driver(*driver);
  return count;
}

}  // namespace

Result<uhmm_device_kind> choose_gpu(const uhmm_config& config) {
  if ((config.flags & UHMM_CONFIG_GPU_CUDA) != 0) return UHMM_DEVICE_CUDA;
  if ((config.flags & UHMM_CONFIG_GPU_HIP) != 0) return UHMM_DEVICE_HIP;
  const Result<std::uint32_t> cuda = count_gpus(config, UHMM_DEVICE_CUDA);
  char cuda_says[kDetailBytes];
  save_detail(cuda_says);
  const Result<std::uint32_t> hip = count_gpus(config, UHMM_DEVICE_HIP);
  const bool has_cuda = cuda.ok() && cuda.value() != 0;
  const bool has_hip = hip.ok() && hip.value() != 0;
  if (has_cuda && has_hip)
    return fail(UHMM_ERR_CONFIG, "there are GPUs of two vendors: UHMM_GPU_KIND has to name cuda or hip");
  if (has_cuda) return UHMM_DEVICE_CUDA;
  if (has_hip) return UHMM_DEVICE_HIP;
  char hip_says[kDetailBytes];
  save_detail(hip_says);
  // A driver that is there and can't be used says more than one that isn't.
  const bool cuda_is_absent = cuda.status().code() == UHMM_ERR_NOT_SUPPORTED;
  const Status status = cuda_is_absent && !hip.ok() ? hip.status() : cuda.status();
  return fail(status.ok() ? UHMM_ERR_NO_DEVICE : status.code(), "no GPU can be used: %.110s; %.110s", cuda_says,
              hip_says);
}

Status add_gpu(Runtime& runtime, DeviceIndex index, const uhmm_device_desc& desc) {
  // A fault would be served in a signal handler of the program's, where no driver may be called.
  if (runtime.context.uffd.rung() == os::Rung::Signal)
    return fail(UHMM_ERR_NOT_SUPPORTED, "a GPU can't be used with the rung `signal`");
  for (const engine::DeviceSlot& slot : runtime.context.slots)
    if (slot.device != nullptr && slot.capabilities.kind != UHMM_DEVICE_SOFT)
      return fail(UHMM_ERR_NOT_SUPPORTED,
                  "%s is in use: one GPU can be, for two can't have different memory at one address",
                  slot.capabilities.name);
  vmm::Options options;
  options.vendor = vendor_of(desc.kind);
  std::snprintf(options.name, sizeof(options.name), "%s%u", desc.kind == UHMM_DEVICE_CUDA ? "cuda" : "hip", 0u);
  const uhmm_config& config = runtime.context.config;
  if (const char* library = driver_library(static_cast<uhmm_device_kind>(desc.kind), uses_environment(config)))
    std::snprintf(options.library, sizeof(options.library), "%s", library);
  options.memory_bytes = (desc.memory_bytes + kBlockBytes - 1) & ~(kBlockBytes - 1);
  // Everything registered has to be reachable at once, so what doesn't fit must fit elsewhere.
  options.spill_bytes = os::system_memory().total / 2;
  backend::Device* device = vmm::create(options);
  if (device == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a device");
  const Status added = runtime.devices.add(index, device, 0, vmm::destroy);
  if (!added.ok()) {
    char why[kDetailBytes];
    save_detail(why);
    vmm::destroy(device);
    set_detail(why);
  }
  return added;
}

}  // namespace uhmm::api
