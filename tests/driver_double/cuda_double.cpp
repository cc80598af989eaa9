// SPDX-License-Identifier: Apache-2.0
// CUDA's driver API over the double's core.
#include <cuda.h>

#include <cstdio>

#include "backends/vmm/cuda_symbols.hpp"
#include "tests/driver_double/core.hpp"

using namespace uhmm::driver_double;

#define UHMM_EXPORT extern "C" __attribute__((visibility("default")))
#define UHMM_BEGIN(function) \
  if (const int failed_ = begin_call(#function); failed_ != kOk) return static_cast<CUresult>(failed_)

namespace {

#define UHMM_X(function) const Known known_##function(#function);
UHMM_CUDA_SYMBOLS(UHMM_X)
#undef UHMM_X

Core& core() { return Core::instance(); }
CUresult as_result(int error) { return static_cast<CUresult>(error); }
Chunk* as_chunk(CUmemGenericAllocationHandle handle) { return reinterpret_cast<Chunk*>(handle); }
Stream* as_stream(CUstream stream) { return reinterpret_cast<Stream*>(stream); }
Event* as_event(CUevent event) { return reinterpret_cast<Event*>(event); }

int context_address = 0;
thread_local bool current = false;

// What needs a current context.
int in_context() { return current ? core().check() : kInvalidContext; }

}  // namespace

UHMM_EXPORT const Control* uhmm_driver_double_control() { return control(); }

UHMM_EXPORT CUresult CUDAAPI cuInit(unsigned) {
  UHMM_BEGIN(cuInit);
  return as_result(core().initialize());
}
UHMM_EXPORT CUresult CUDAAPI cuDriverGetVersion(int* version) {
  UHMM_BEGIN(cuDriverGetVersion);
  *version = static_cast<int>(core().get(Setting::Version));
  return CUDA_SUCCESS;
}
UHMM_EXPORT CUresult CUDAAPI cuGetErrorName(CUresult error, const char** name) {
  *name = error_name(static_cast<int>(error));
  return CUDA_SUCCESS;
}
UHMM_EXPORT CUresult CUDAAPI cuDeviceGetCount(int* count) {
  UHMM_BEGIN(cuDeviceGetCount);
  return as_result(core().device_count(count));
}
UHMM_EXPORT CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  UHMM_BEGIN(cuDeviceGet);
  *device = ordinal;
  return as_result(core().check_device(ordinal));
}
UHMM_EXPORT CUresult CUDAAPI cuDeviceGetName(char* name, int bytes, CUdevice device) {
  UHMM_BEGIN(cuDeviceGetName);
  (void)std::snprintf(name, static_cast<std::size_t>(bytes), "CUDA double %d", device);
  return as_result(core().check_device(device));
}
UHMM_EXPORT CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  UHMM_BEGIN(cuDeviceTotalMem);
  *bytes = core().get(Setting::DeviceMemory);
  return as_result(core().check_device(device));
}
UHMM_EXPORT CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  UHMM_BEGIN(cuDeviceGetAttribute);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      *value = static_cast<int>(core().get(Setting::Vmm));
      break;
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      *value = static_cast<int>(core().get(Setting::HostChunks));
      break;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 2; break;
    default: *value = 0; break;
  }
  return as_result(core().check_device(device));
}
UHMM_EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  UHMM_BEGIN(cuDevicePrimaryCtxRetain);
  *context = reinterpret_cast<CUcontext>(&context_address);
  return as_result(core().retain(device));
}
UHMM_EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice) {
  UHMM_BEGIN(cuDevicePrimaryCtxRelease);
  return as_result(core().release());
}
UHMM_EXPORT CUresult CUDAAPI cuDevicePrimaryCtxReset(CUdevice) {
  UHMM_BEGIN(cuDevicePrimaryCtxReset);
  return as_result(core().restart());
}
UHMM_EXPORT CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  UHMM_BEGIN(cuCtxSetCurrent);
  current = context != nullptr;
  return CUDA_SUCCESS;
}
UHMM_EXPORT CUresult CUDAAPI cuMemGetInfo(size_t* left, size_t* total) {
  UHMM_BEGIN(cuMemGetInfo);
  return as_result(core().memory_info(left, total));
}
UHMM_EXPORT CUresult CUDAAPI cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                                           CUmemAllocationGranularity_flags) {
  UHMM_BEGIN(cuMemGetAllocationGranularity);
  *granularity = std::size_t{2} << 20;
  return as_result(in_context());
}
UHMM_EXPORT CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment, CUdeviceptr hint,
                                                 unsigned long long) {
  UHMM_BEGIN(cuMemAddressReserve);
  std::uint64_t place = 0;
  const int error = core().reserve(&place, bytes, alignment, hint);
  *address = place;
  return as_result(error);
}
UHMM_EXPORT CUresult CUDAAPI cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  UHMM_BEGIN(cuMemAddressFree);
  return as_result(core().unreserve(address, bytes));
}
UHMM_EXPORT CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                                         const CUmemAllocationProp* properties, unsigned long long) {
  UHMM_BEGIN(cuMemCreate);
  if (const int error = in_context(); error != kOk) return as_result(error);
  if (properties->type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  Chunk* chunk = nullptr;
  const int error = core().create(&chunk, bytes, properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE);
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(chunk);
  return as_result(error);
}
UHMM_EXPORT CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
  UHMM_BEGIN(cuMemRelease);
  return as_result(core().release(as_chunk(handle)));
}
UHMM_EXPORT CUresult CUDAAPI cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                                      CUmemGenericAllocationHandle handle, unsigned long long) {
  UHMM_BEGIN(cuMemMap);
  return as_result(core().map(address, bytes, offset, as_chunk(handle)));
}
UHMM_EXPORT CUresult CUDAAPI cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access,
                                            size_t count) {
  UHMM_BEGIN(cuMemSetAccess);
  if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
  return as_result(core().set_access(address, bytes));
}
UHMM_EXPORT CUresult CUDAAPI cuMemUnmap(CUdeviceptr address, size_t bytes) {
  UHMM_BEGIN(cuMemUnmap);
  return as_result(core().unmap(address, bytes));
}
UHMM_EXPORT CUresult CUDAAPI cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  UHMM_BEGIN(cuMemHostAlloc);
  if (const int error = in_context(); error != kOk) return as_result(error);
  return as_result(core().host_allocate(memory, bytes));
}
UHMM_EXPORT CUresult CUDAAPI cuMemFreeHost(void* memory) {
  UHMM_BEGIN(cuMemFreeHost);
  return as_result(core().host_free(memory));
}
UHMM_EXPORT CUresult CUDAAPI cuMemHostRegister(void* memory, size_t bytes, unsigned) {
  UHMM_BEGIN(cuMemHostRegister);
  return as_result(core().host_register(memory, bytes));
}
UHMM_EXPORT CUresult CUDAAPI cuMemHostUnregister(void* memory) {
  UHMM_BEGIN(cuMemHostUnregister);
  return as_result(core().host_unregister(memory));
}
UHMM_EXPORT CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned) {
  UHMM_BEGIN(cuStreamCreate);
  if (const int error = in_context(); error != kOk) return as_result(error);
  Stream* made = nullptr;
  const int error = core().create_stream(&made);
  *stream = reinterpret_cast<CUstream>(made);
  return as_result(error);
}
UHMM_EXPORT CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
  UHMM_BEGIN(cuStreamDestroy);
  return as_result(core().destroy_stream(as_stream(stream)));
}
UHMM_EXPORT CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
  UHMM_BEGIN(cuStreamSynchronize);
  return as_result(core().synchronize(as_stream(stream)));
}
UHMM_EXPORT CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned) {
  UHMM_BEGIN(cuEventCreate);
  if (const int error = in_context(); error != kOk) return as_result(error);
  Event* made = nullptr;
  const int error = core().create_event(&made);
  *event = reinterpret_cast<CUevent>(made);
  return as_result(error);
}
UHMM_EXPORT CUresult CUDAAPI cuEventDestroy(CUevent event) {
  UHMM_BEGIN(cuEventDestroy);
  return as_result(core().destroy_event(as_event(event)));
}
UHMM_EXPORT CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  UHMM_BEGIN(cuEventRecord);
  return as_result(core().record(as_event(event), as_stream(stream)));
}
UHMM_EXPORT CUresult CUDAAPI cuEventQuery(CUevent event) {
  UHMM_BEGIN(cuEventQuery);
  return as_result(core().query(as_event(event)));
}
UHMM_EXPORT CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  UHMM_BEGIN(cuEventSynchronize);
  return as_result(core().wait(as_event(event)));
}
UHMM_EXPORT CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  UHMM_BEGIN(cuMemcpyHtoDAsync);
  if (const int error = in_context(); error != kOk) return as_result(error);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::In, to, const_cast<void*>(from), bytes, 0}));
}
UHMM_EXPORT CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  UHMM_BEGIN(cuMemcpyDtoHAsync);
  if (const int error = in_context(); error != kOk) return as_result(error);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::Out, from, to, bytes, 0}));
}
UHMM_EXPORT CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
  UHMM_BEGIN(cuMemsetD8Async);
  if (const int error = in_context(); error != kOk) return as_result(error);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::Fill, address, nullptr, bytes, value}));
}
UHMM_EXPORT CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx,
                                            unsigned by, unsigned bz, unsigned, CUstream stream, void** params,
                                            void** extra) {
  UHMM_BEGIN(cuLaunchKernel);
  if (const int error = in_context(); error != kOk) return as_result(error);
  if (params != nullptr || bx * by * bz == 0 || bx * by * bz > 1024) return CUDA_ERROR_INVALID_VALUE;
  const void* args = nullptr;
  std::size_t bytes = 0;
  for (; extra != nullptr && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) args = extra[1];
    if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const std::size_t*>(extra[1]);
  }
  return as_result(core().launch(as_stream(stream), function, {x, y, z}, args, bytes));
}
