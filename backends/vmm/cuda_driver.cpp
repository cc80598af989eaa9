// SPDX-License-Identifier: Apache-2.0
// CUDA's driver API behind the neutral operations.
#include <cuda.h>

#include <cstdio>

#include "backends/vmm/cuda_symbols.hpp"
#include "backends/vmm/library.hpp"
#include "runtime/base/arena.hpp"

namespace uhmm::vmm {
namespace {

// The first with CU_MEM_LOCATION_TYPE_HOST_NUMA and everything else that is asked for.
constexpr int kOldestVersion = 11020;

class CudaDriver final : public Driver {
 public:
  Status load(const char* name) {
    const Symbol symbols[] = {
#define UHMM_TEXT_OF(x) #x
#define UHMM_TEXT(x) UHMM_TEXT_OF(x)
#define UHMM_X(function) {UHMM_TEXT(function), reinterpret_cast<void**>(&call_.function)},
        UHMM_CUDA_SYMBOLS(UHMM_X)
#undef UHMM_X
    };
    UHMM_TRY(library_.open(Vendor::Cuda, name != nullptr ? name : "libcuda.so.1", symbols, std::size(symbols)));
    UHMM_TRY(said(call_.cuDriverGetVersion(&version_), "cuDriverGetVersion"));
    if (version_ < kOldestVersion)
      return fail(UHMM_ERR_NOT_SUPPORTED, "the CUDA driver speaks version %d.%d, %d.%d is the oldest that will do",
                  version_ / 1000, version_ % 1000 / 10, kOldestVersion / 1000, kOldestVersion % 1000 / 10);
    return said(call_.cuInit(0), "cuInit");
  }

  void* library() const override { return library_.handle(); }

  Result<std::uint32_t> device_count() override {
    int count = 0;
    UHMM_TRY(said(call_.cuDeviceGetCount(&count), "cuDeviceGetCount"));
    return static_cast<std::uint32_t>(count);
  }

  Status open(std::uint32_t ordinal, Facts* facts) override {
    UHMM_TRY(said(call_.cuDeviceGet(&device_, static_cast<int>(ordinal)), "cuDeviceGet"));
    UHMM_TRY(said(call_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain"));
    const Status ready = learn(facts);
    if (!ready.ok()) close(false);
    return ready;
  }

  void close(bool broken) override {
    if (context_ == nullptr) return;
    context_ = nullptr;
    if (broken) (void)call_.cuDevicePrimaryCtxReset(device_);
    (void)call_.cuDevicePrimaryCtxRelease(device_);
  }

  Status enter() override { return said(call_.cuCtxSetCurrent(context_), "cuCtxSetCurrent"); }

  Result<std::uint64_t> reserve(std::uint64_t bytes, std::uint64_t hint) override {
    CUdeviceptr address = 0;
    UHMM_TRY(said(call_.cuMemAddressReserve(&address, bytes, kBlockBytes, hint, 0), "cuMemAddressReserve"));
    return std::uint64_t{address};
  }
  Status unreserve(std::uint64_t address, std::uint64_t bytes) override {
    return said(call_.cuMemAddressFree(address, bytes), "cuMemAddressFree");
  }

  Result<Chunk> create(std::uint64_t bytes, Place place) override {
    const CUmemAllocationProp properties = properties_of(place);
    CUmemGenericAllocationHandle handle = 0;
    UHMM_TRY(said(call_.cuMemCreate(&handle, bytes, &properties, 0), "cuMemCreate"));
    return Chunk{handle};
  }
  void release(Chunk chunk) override { (void)call_.cuMemRelease(chunk); }

  Status map(std::uint64_t address, std::uint64_t bytes, Chunk chunk) override {
    UHMM_TRY(said(call_.cuMemMap(address, bytes, 0, chunk, 0), "cuMemMap"));
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device_;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    const Status allowed = said(call_.cuMemSetAccess(address, bytes, &access, 1), "cuMemSetAccess");
    if (!allowed.ok()) (void)call_.cuMemUnmap(address, bytes);
    return allowed;
  }
  Status unmap(std::uint64_t address, std::uint64_t bytes) override {
    return said(call_.cuMemUnmap(address, bytes), "cuMemUnmap");
  }

  Result<void*> host_allocate(std::uint64_t bytes) override {
    void* memory = nullptr;
    UHMM_TRY(said(call_.cuMemHostAlloc(&memory, bytes, CU_MEMHOSTALLOC_PORTABLE), "cuMemHostAlloc"));
    return memory;
  }
  void host_free(void* memory) override { (void)call_.cuMemFreeHost(memory); }
  Status host_register(void* memory, std::uint64_t bytes) override {
    constexpr unsigned kFlags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
    return said(call_.cuMemHostRegister(memory, bytes, kFlags), "cuMemHostRegister");
  }
  void host_unregister(void* memory) override { (void)call_.cuMemHostUnregister(memory); }

  Result<Stream> create_stream() override {
    CUstream stream = nullptr;
    UHMM_TRY(said(call_.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
    return Stream{stream};
  }
  void destroy_stream(Stream stream) override { (void)call_.cuStreamDestroy(static_cast<CUstream>(stream)); }
  Status synchronize(Stream stream) override {
    return said(call_.cuStreamSynchronize(static_cast<CUstream>(stream)), "cuStreamSynchronize");
  }
  Result<Event> create_event() override {
    CUevent event = nullptr;
    UHMM_TRY(said(call_.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC), "cuEventCreate"));
    return Event{event};
  }
  void destroy_event(Event event) override { (void)call_.cuEventDestroy(static_cast<CUevent>(event)); }
  Status record(Event event, Stream stream) override {
    return said(call_.cuEventRecord(static_cast<CUevent>(event), static_cast<CUstream>(stream)), "cuEventRecord");
  }
  Status query(Event event) override { return said(call_.cuEventQuery(static_cast<CUevent>(event)), "cuEventQuery"); }
  Status wait(Event event) override {
    return said(call_.cuEventSynchronize(static_cast<CUevent>(event)), "cuEventSynchronize");
  }

  Status copy_in(std::uint64_t to, const void* from, std::uint64_t bytes, Stream stream) override {
    return said(call_.cuMemcpyHtoDAsync(to, from, bytes, static_cast<CUstream>(stream)), "cuMemcpyHtoDAsync");
  }
  Status copy_out(void* to, std::uint64_t from, std::uint64_t bytes, Stream stream) override {
    return said(call_.cuMemcpyDtoHAsync(to, from, bytes, static_cast<CUstream>(stream)), "cuMemcpyDtoHAsync");
  }
  Status zero(std::uint64_t address, std::uint64_t bytes, Stream stream) override {
    return said(call_.cuMemsetD8Async(address, 0, bytes, static_cast<CUstream>(stream)), "cuMemsetD8Async");
  }
  Status launch(const Work& work, Stream stream) override {
    std::size_t bytes = work.args_bytes;
    void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, const_cast<void*>(work.args), CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     CU_LAUNCH_PARAM_END};
    auto* function = static_cast<CUfunction>(const_cast<void*>(work.function));
    return said(call_.cuLaunchKernel(function, work.grid[0], work.grid[1], work.grid[2], work.block[0], work.block[1],
                                     work.block[2], work.shared_bytes, static_cast<CUstream>(stream), nullptr,
                                     bytes != 0 ? extra : nullptr),
                "cuLaunchKernel");
  }

 private:
  Status said(CUresult result, const char* call) const {
    if (result == CUDA_SUCCESS) return {};
    const char* name = nullptr;
    (void)call_.cuGetErrorName(result, &name);
    return driver_status(Vendor::Cuda, static_cast<int>(result), name, call);
  }
  int attribute(CUdevice_attribute which) const {
    int value = 0;
    return call_.cuDeviceGetAttribute(&value, which, device_) == CUDA_SUCCESS ? value : 0;
  }
  CUmemAllocationProp properties_of(Place place) const {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device_;
#if CUDA_VERSION >= 12020
    if (place == Place::Host) {
      properties.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA;
      properties.location.id = 0;
    }
#endif
    return properties;
  }

  Status learn(Facts* facts) {
    UHMM_TRY(enter());
    if (attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0)
      return fail(UHMM_ERR_NOT_SUPPORTED, "this GPU or driver has no virtual memory management");
    *facts = {};
    facts->version = version_;
    UHMM_TRY(said(call_.cuDeviceGetName(facts->name, sizeof(facts->name), device_), "cuDeviceGetName"));
    std::size_t total = 0;
    UHMM_TRY(said(call_.cuDeviceTotalMem(&total, device_), "cuDeviceTotalMem"));
    std::size_t left = 0;
    UHMM_TRY(said(call_.cuMemGetInfo(&left, &total), "cuMemGetInfo"));
    facts->memory_bytes = total;
    facts->memory_free = left;
    const CUmemAllocationProp properties = properties_of(Place::Device);
    std::size_t granularity = 0;
    UHMM_TRY(said(call_.cuMemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                  "cuMemGetAllocationGranularity"));
    facts->granularity = granularity;
#if CUDA_VERSION >= 12020
    facts->host_chunks = attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) != 0;
#endif
    facts->reaches_registered = attribute(CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM) != 0;
    facts->processors = static_cast<std::uint32_t>(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT));
    return {};
  }

  struct Calls {
#define UHMM_X(function) decltype(&::function) function = nullptr;
    UHMM_CUDA_SYMBOLS(UHMM_X)
#undef UHMM_X
  };

  Library library_;
  Calls call_;
  int version_ = 0;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

}  // namespace

Result<Driver*> open_cuda(const char* library) {
  auto* driver = make_in_arena<CudaDriver>();
  if (driver == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a driver's functions");
  if (const Status loaded = driver->load(library); !loaded.ok()) {
    destroy_in_arena(driver);
    return loaded;
  }
  return static_cast<Driver*>(driver);
}

}  // namespace uhmm::vmm
