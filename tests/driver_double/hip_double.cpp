// SPDX-License-Identifier: Apache-2.0
// HIP over the double's core.
#define __HIP_PLATFORM_AMD__ 1  // NOLINT(bugprone-reserved-identifier): HIP's headers ask for it
#define __HIP_PLATFORM_HCC__ 1  // NOLINT(bugprone-reserved-identifier): and older ones for this
#include <hip/hip_runtime_api.h>

#include <cstdio>

#include "backends/vmm/hip_symbols.hpp"
#include "tests/driver_double/core.hpp"

using namespace uhmm::driver_double;

#define UHMM_EXPORT extern "C" __attribute__((visibility("default")))
#define UHMM_BEGIN(function) \
  if (const int failed_ = begin_call(#function); failed_ != kOk) return static_cast<hipError_t>(failed_)

namespace {

#define UHMM_X(function) const Known known_##function(#function);
#define UHMM_Y(function, type) UHMM_X(function)
UHMM_HIP_SYMBOLS(UHMM_X, UHMM_Y)
#undef UHMM_Y
#undef UHMM_X

Core& core() { return Core::instance(); }
hipError_t as_result(int error) { return static_cast<hipError_t>(error); }
std::uint64_t number(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }
Chunk* as_chunk(hipMemGenericAllocationHandle_t handle) { return reinterpret_cast<Chunk*>(handle); }
Stream* as_stream(hipStream_t stream) { return reinterpret_cast<Stream*>(stream); }
Event* as_event(hipEvent_t event) { return reinterpret_cast<Event*>(event); }

// HIP has no contexts that a program makes: a device is in use from the first call that needs it.
int in_use() {
  if (const int error = core().check(); error != kInvalidContext) return error;
  return core().retain(0);
}

// As ROCm 6 lays it out.
struct AllocationProperties {
  std::int32_t type;
  std::int32_t handle_type;
  hipMemLocation location;
};

}  // namespace

UHMM_EXPORT const Control* uhmm_driver_double_control() { return control(); }

UHMM_EXPORT hipError_t hipInit(unsigned) {
  UHMM_BEGIN(hipInit);
  return as_result(core().initialize());
}
UHMM_EXPORT hipError_t hipDriverGetVersion(int* version) {
  UHMM_BEGIN(hipDriverGetVersion);
  *version = static_cast<int>(core().get(Setting::Version));
  return hipSuccess;
}
UHMM_EXPORT const char* hipGetErrorName(hipError_t error) { return error_name(static_cast<int>(error)); }
UHMM_EXPORT hipError_t hipGetDeviceCount(int* count) {
  UHMM_BEGIN(hipGetDeviceCount);
  return as_result(core().device_count(count));
}
UHMM_EXPORT hipError_t hipDeviceGetName(char* name, int bytes, hipDevice_t device) {
  UHMM_BEGIN(hipDeviceGetName);
  (void)std::snprintf(name, static_cast<std::size_t>(bytes), "HIP double %d", device);
  return as_result(core().check_device(device));
}
UHMM_EXPORT hipError_t hipDeviceTotalMem(size_t* bytes, hipDevice_t device) {
  UHMM_BEGIN(hipDeviceTotalMem);
  *bytes = core().get(Setting::DeviceMemory);
  return as_result(core().check_device(device));
}
UHMM_EXPORT hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int device) {
  UHMM_BEGIN(hipDeviceGetAttribute);
  *value = attribute == hipDeviceAttributeMultiprocessorCount ? 2 : 0;
  return as_result(core().check_device(device));
}
UHMM_EXPORT hipError_t hipSetDevice(int device) {
  UHMM_BEGIN(hipSetDevice);
  return as_result(core().check_device(device));
}
UHMM_EXPORT hipError_t hipDeviceReset() {
  UHMM_BEGIN(hipDeviceReset);
  return as_result(core().restart());
}
UHMM_EXPORT hipError_t hipMemGetInfo(size_t* left, size_t* total) {
  UHMM_BEGIN(hipMemGetInfo);
  if (const int error = in_use(); error != kOk) return as_result(error);
  return as_result(core().memory_info(left, total));
}
UHMM_EXPORT hipError_t hipMemGetAllocationGranularity(size_t* granularity, const hipMemAllocationProp* given,
                                                      hipMemAllocationGranularity_flags) {
  UHMM_BEGIN(hipMemGetAllocationGranularity);
  *granularity = std::size_t{2} << 20;
  const auto* properties = reinterpret_cast<const AllocationProperties*>(given);
  if (properties->location.type != hipMemLocationTypeDevice && core().get(Setting::HostChunks) == 0)
    return hipErrorInvalidValue;
  return as_result(core().get(Setting::Vmm) != 0 ? in_use() : kNotSupported);
}
UHMM_EXPORT hipError_t hipMemAddressReserve(void** address, size_t bytes, size_t alignment, void* hint,
                                            unsigned long long) {
  UHMM_BEGIN(hipMemAddressReserve);
  std::uint64_t place = 0;
  const int error = core().reserve(&place, bytes, alignment, number(hint));
  *address = reinterpret_cast<void*>(place);
  return as_result(error);
}
UHMM_EXPORT hipError_t hipMemAddressFree(void* address, size_t bytes) {
  UHMM_BEGIN(hipMemAddressFree);
  return as_result(core().unreserve(number(address), bytes));
}
UHMM_EXPORT hipError_t hipMemCreate(hipMemGenericAllocationHandle_t* handle, size_t bytes,
                                    const hipMemAllocationProp* given, unsigned long long) {
  UHMM_BEGIN(hipMemCreate);
  const auto* properties = reinterpret_cast<const AllocationProperties*>(given);
  if (properties->type != 1) return hipErrorInvalidValue;
  Chunk* chunk = nullptr;
  const int error = core().create(&chunk, bytes, properties->location.type != hipMemLocationTypeDevice);
  *handle = reinterpret_cast<hipMemGenericAllocationHandle_t>(chunk);
  return as_result(error);
}
UHMM_EXPORT hipError_t hipMemRelease(hipMemGenericAllocationHandle_t handle) {
  UHMM_BEGIN(hipMemRelease);
  return as_result(core().release(as_chunk(handle)));
}
UHMM_EXPORT hipError_t hipMemMap(void* address, size_t bytes, size_t offset, hipMemGenericAllocationHandle_t handle,
                                 unsigned long long) {
  UHMM_BEGIN(hipMemMap);
  return as_result(core().map(number(address), bytes, offset, as_chunk(handle)));
}
UHMM_EXPORT hipError_t hipMemSetAccess(void* address, size_t bytes, const hipMemAccessDesc* access, size_t count) {
  UHMM_BEGIN(hipMemSetAccess);
  if (count != 1 || access->flags != hipMemAccessFlagsProtReadWrite) return hipErrorInvalidValue;
  return as_result(core().set_access(number(address), bytes));
}
UHMM_EXPORT hipError_t hipMemUnmap(void* address, size_t bytes) {
  UHMM_BEGIN(hipMemUnmap);
  return as_result(core().unmap(number(address), bytes));
}
UHMM_EXPORT hipError_t hipHostMalloc(void** memory, size_t bytes, unsigned) {
  UHMM_BEGIN(hipHostMalloc);
  return as_result(core().host_allocate(memory, bytes));
}
UHMM_EXPORT hipError_t hipHostFree(void* memory) {
  UHMM_BEGIN(hipHostFree);
  return as_result(core().host_free(memory));
}
UHMM_EXPORT hipError_t hipHostRegister(void* memory, size_t bytes, unsigned) {
  UHMM_BEGIN(hipHostRegister);
  return as_result(core().host_register(memory, bytes));
}
UHMM_EXPORT hipError_t hipHostUnregister(void* memory) {
  UHMM_BEGIN(hipHostUnregister);
  return as_result(core().host_unregister(memory));
}
UHMM_EXPORT hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned) {
  UHMM_BEGIN(hipStreamCreateWithFlags);
  Stream* made = nullptr;
  const int error = core().create_stream(&made);
  *stream = reinterpret_cast<hipStream_t>(made);
  return as_result(error);
}
UHMM_EXPORT hipError_t hipStreamDestroy(hipStream_t stream) {
  UHMM_BEGIN(hipStreamDestroy);
  return as_result(core().destroy_stream(as_stream(stream)));
}
UHMM_EXPORT hipError_t hipStreamSynchronize(hipStream_t stream) {
  UHMM_BEGIN(hipStreamSynchronize);
  return as_result(core().synchronize(as_stream(stream)));
}
UHMM_EXPORT hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned) {
  UHMM_BEGIN(hipEventCreateWithFlags);
  Event* made = nullptr;
  const int error = core().create_event(&made);
  *event = reinterpret_cast<hipEvent_t>(made);
  return as_result(error);
}
UHMM_EXPORT hipError_t hipEventDestroy(hipEvent_t event) {
  UHMM_BEGIN(hipEventDestroy);
  return as_result(core().destroy_event(as_event(event)));
}
UHMM_EXPORT hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  UHMM_BEGIN(hipEventRecord);
  return as_result(core().record(as_event(event), as_stream(stream)));
}
UHMM_EXPORT hipError_t hipEventQuery(hipEvent_t event) {
  UHMM_BEGIN(hipEventQuery);
  return as_result(core().query(as_event(event)));
}
UHMM_EXPORT hipError_t hipEventSynchronize(hipEvent_t event) {
  UHMM_BEGIN(hipEventSynchronize);
  return as_result(core().wait(as_event(event)));
}
UHMM_EXPORT hipError_t hipMemcpyHtoDAsync(hipDeviceptr_t to, void* from, size_t bytes, hipStream_t stream) {
  UHMM_BEGIN(hipMemcpyHtoDAsync);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::In, number(to), from, bytes, 0}));
}
UHMM_EXPORT hipError_t hipMemcpyDtoHAsync(void* to, hipDeviceptr_t from, size_t bytes, hipStream_t stream) {
  UHMM_BEGIN(hipMemcpyDtoHAsync);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::Out, number(from), to, bytes, 0}));
}
UHMM_EXPORT hipError_t hipMemsetD8Async(hipDeviceptr_t address, unsigned char value, size_t bytes, hipStream_t stream) {
  UHMM_BEGIN(hipMemsetD8Async);
  return as_result(core().enqueue(as_stream(stream), {Copy::Kind::Fill, number(address), nullptr, bytes, value}));
}
UHMM_EXPORT hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned x, unsigned y, unsigned z, unsigned bx,
                                             unsigned by, unsigned bz, unsigned, hipStream_t stream, void** params,
                                             void** extra) {
  UHMM_BEGIN(hipModuleLaunchKernel);
  if (params != nullptr || bx * by * bz == 0 || bx * by * bz > 1024) return hipErrorInvalidValue;
  const void* args = nullptr;
  std::size_t bytes = 0;
  for (; extra != nullptr && *extra != HIP_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == HIP_LAUNCH_PARAM_BUFFER_POINTER) args = extra[1];
    if (*extra == HIP_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const std::size_t*>(extra[1]);
  }
  return as_result(core().launch(as_stream(stream), function, {x, y, z}, args, bytes));
}
