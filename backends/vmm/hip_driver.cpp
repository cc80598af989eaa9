// SPDX-License-Identifier: Apache-2.0
// HIP behind the neutral operations.
#define __HIP_PLATFORM_AMD__ 1  // NOLINT(bugprone-reserved-identifier): HIP's headers ask for it
#define __HIP_PLATFORM_HCC__ 1  // NOLINT(bugprone-reserved-identifier): and older ones for this
#include <hip/hip_runtime_api.h>

#include <cstdio>

#include "backends/vmm/hip_symbols.hpp"
#include "backends/vmm/library.hpp"
#include "runtime/base/arena.hpp"

namespace uhmm::vmm {
namespace {

// As ROCm 6 lays it out (and CUDA does). The header of ROCm 5 has another order, but the library of ROCm 5 has nothing
// behind these functions: what runs is newer than what this may have been built with.
struct AllocationProperties {
  std::int32_t type = 1;  // pinned
  std::int32_t handle_type = 0;
  hipMemLocation location{};
  void* unused = nullptr;
  std::uint8_t compression = 0;
  std::uint8_t rdma = 0;
  std::uint16_t usage = 0;
};

class HipDriver final : public Driver {
 public:
  Status load(const char* name) {
    const Symbol symbols[] = {
#define UHMM_X(function) {#function, reinterpret_cast<void**>(&call_.function)},
#define UHMM_Y(function, type) UHMM_X(function)
        UHMM_HIP_SYMBOLS(UHMM_X, UHMM_Y)
#undef UHMM_Y
#undef UHMM_X
    };
    // The name without a number comes with development packages only.
    constexpr const char* kNames[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"};
    Status found = UHMM_ERR_NOT_SUPPORTED;
    for (const char* usual : kNames) {
      found = library_.open(Vendor::Hip, name != nullptr ? name : usual, symbols, std::size(symbols));
      if (found.ok() || name != nullptr || library_.handle() != nullptr) break;
    }
    UHMM_TRY(found);
    UHMM_TRY(said(call_.hipInit(0), "hipInit"));
    return said(call_.hipDriverGetVersion(&version_), "hipDriverGetVersion");
  }

  void* library() const override { return library_.handle(); }

  Result<std::uint32_t> device_count() override {
    int count = 0;
    UHMM_TRY(said(call_.hipGetDeviceCount(&count), "hipGetDeviceCount"));
    return static_cast<std::uint32_t>(count);
  }

  Status open(std::uint32_t ordinal, Facts* facts) override {
    ordinal_ = static_cast<int>(ordinal);
    UHMM_TRY(enter());
    *facts = {};
    facts->version = version_;
    UHMM_TRY(said(call_.hipDeviceGetName(facts->name, sizeof(facts->name), ordinal_), "hipDeviceGetName"));
    std::size_t total = 0;
    UHMM_TRY(said(call_.hipDeviceTotalMem(&total, ordinal_), "hipDeviceTotalMem"));
    std::size_t left = 0;
    UHMM_TRY(said(call_.hipMemGetInfo(&left, &total), "hipMemGetInfo"));
    facts->memory_bytes = total;
    facts->memory_free = left;
    const AllocationProperties properties = properties_of(Place::Device);
    std::size_t granularity = 0;
    UHMM_TRY(
        said(call_.hipMemGetAllocationGranularity(&granularity, as_hip(properties), hipMemAllocationGranularityMinimum),
             "hipMemGetAllocationGranularity"));
    facts->granularity = granularity;
    // Older versions know no physical memory on the host, and say so here.
    const AllocationProperties on_host = properties_of(Place::Host);
    facts->host_chunks = call_.hipMemGetAllocationGranularity(&granularity, as_hip(on_host),
                                                              hipMemAllocationGranularityMinimum) == hipSuccess;
    // Registered memory has the program's addresses on every GPU that HIP knows.
    facts->reaches_registered = true;
    int processors = 0;
    (void)call_.hipDeviceGetAttribute(&processors, hipDeviceAttributeMultiprocessorCount, ordinal_);
    facts->processors = static_cast<std::uint32_t>(processors);
    return {};
  }

  void close(bool broken) override {
    if (broken && enter().ok()) (void)call_.hipDeviceReset();
  }

  Status enter() override { return said(call_.hipSetDevice(ordinal_), "hipSetDevice"); }

  Result<std::uint64_t> reserve(std::uint64_t bytes, std::uint64_t hint) override {
    void* address = nullptr;
    UHMM_TRY(said(call_.hipMemAddressReserve(&address, bytes, kBlockBytes, pointer(hint), 0), "hipMemAddressReserve"));
    return reinterpret_cast<std::uint64_t>(address);
  }
  Status unreserve(std::uint64_t address, std::uint64_t bytes) override {
    return said(call_.hipMemAddressFree(pointer(address), bytes), "hipMemAddressFree");
  }

  Result<Chunk> create(std::uint64_t bytes, Place place) override {
    const AllocationProperties properties = properties_of(place);
    hipMemGenericAllocationHandle_t handle = nullptr;
    UHMM_TRY(said(call_.hipMemCreate(&handle, bytes, as_hip(properties), 0), "hipMemCreate"));
    return reinterpret_cast<Chunk>(handle);
  }
  void release(Chunk chunk) override { (void)call_.hipMemRelease(handle_of(chunk)); }

  Status map(std::uint64_t address, std::uint64_t bytes, Chunk chunk) override {
    UHMM_TRY(said(call_.hipMemMap(pointer(address), bytes, 0, handle_of(chunk), 0), "hipMemMap"));
    hipMemAccessDesc access{};
    access.location.type = hipMemLocationTypeDevice;
    access.location.id = ordinal_;
    access.flags = hipMemAccessFlagsProtReadWrite;
    const Status allowed = said(call_.hipMemSetAccess(pointer(address), bytes, &access, 1), "hipMemSetAccess");
    if (!allowed.ok()) (void)call_.hipMemUnmap(pointer(address), bytes);
    return allowed;
  }
  Status unmap(std::uint64_t address, std::uint64_t bytes) override {
    return said(call_.hipMemUnmap(pointer(address), bytes), "hipMemUnmap");
  }

  Result<void*> host_allocate(std::uint64_t bytes) override {
    void* memory = nullptr;
    UHMM_TRY(said(call_.hipHostMalloc(&memory, bytes, hipHostMallocPortable), "hipHostMalloc"));
    return memory;
  }
  void host_free(void* memory) override { (void)call_.hipHostFree(memory); }
  Status host_register(void* memory, std::uint64_t bytes) override {
    return said(call_.hipHostRegister(memory, bytes, hipHostRegisterPortable | hipHostRegisterMapped),
                "hipHostRegister");
  }
  void host_unregister(void* memory) override { (void)call_.hipHostUnregister(memory); }

  Result<Stream> create_stream() override {
    hipStream_t stream = nullptr;
    UHMM_TRY(said(call_.hipStreamCreateWithFlags(&stream, hipStreamNonBlocking), "hipStreamCreateWithFlags"));
    return Stream{stream};
  }
  void destroy_stream(Stream stream) override { (void)call_.hipStreamDestroy(static_cast<hipStream_t>(stream)); }
  Status synchronize(Stream stream) override {
    return said(call_.hipStreamSynchronize(static_cast<hipStream_t>(stream)), "hipStreamSynchronize");
  }
  Result<Event> create_event() override {
    hipEvent_t event = nullptr;
    UHMM_TRY(said(call_.hipEventCreateWithFlags(&event, hipEventDisableTiming | hipEventBlockingSync),
                  "hipEventCreateWithFlags"));
    return Event{event};
  }
  void destroy_event(Event event) override { (void)call_.hipEventDestroy(static_cast<hipEvent_t>(event)); }
  Status record(Event event, Stream stream) override {
    return said(call_.hipEventRecord(static_cast<hipEvent_t>(event), static_cast<hipStream_t>(stream)),
                "hipEventRecord");
  }
  Status query(Event event) override {
    return said(call_.hipEventQuery(static_cast<hipEvent_t>(event)), "hipEventQuery");
  }
  Status wait(Event event) override {
    return said(call_.hipEventSynchronize(static_cast<hipEvent_t>(event)), "hipEventSynchronize");
  }

  Status copy_in(std::uint64_t to, const void* from, std::uint64_t bytes, Stream stream) override {
    return said(call_.hipMemcpyHtoDAsync(pointer(to), const_cast<void*>(from), bytes, static_cast<hipStream_t>(stream)),
                "hipMemcpyHtoDAsync");
  }
  Status copy_out(void* to, std::uint64_t from, std::uint64_t bytes, Stream stream) override {
    return said(call_.hipMemcpyDtoHAsync(to, pointer(from), bytes, static_cast<hipStream_t>(stream)),
                "hipMemcpyDtoHAsync");
  }
  Status zero(std::uint64_t address, std::uint64_t bytes, Stream stream) override {
    return said(call_.hipMemsetD8Async(pointer(address), 0, bytes, static_cast<hipStream_t>(stream)),
                "hipMemsetD8Async");
  }
  Status launch(const Work& work, Stream stream) override {
    std::size_t bytes = work.args_bytes;
    void* extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, const_cast<void*>(work.args), HIP_LAUNCH_PARAM_BUFFER_SIZE,
                     &bytes, HIP_LAUNCH_PARAM_END};
    auto* function = static_cast<hipFunction_t>(const_cast<void*>(work.function));
    return said(call_.hipModuleLaunchKernel(function, work.grid[0], work.grid[1], work.grid[2], work.block[0],
                                            work.block[1], work.block[2], work.shared_bytes,
                                            static_cast<hipStream_t>(stream), nullptr, bytes != 0 ? extra : nullptr),
                "hipModuleLaunchKernel");
  }

 private:
  Status said(hipError_t result, const char* call) const {
    if (result == hipSuccess) return {};
    return driver_status(Vendor::Hip, static_cast<int>(result), call_.hipGetErrorName(result), call);
  }
  static void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }
  static hipMemGenericAllocationHandle_t handle_of(Chunk chunk) {
    return reinterpret_cast<hipMemGenericAllocationHandle_t>(chunk);
  }
  static const hipMemAllocationProp* as_hip(const AllocationProperties& properties) {
    return reinterpret_cast<const hipMemAllocationProp*>(&properties);
  }
  AllocationProperties properties_of(Place place) const {
    constexpr int kHost = 2;  // hipMemLocationTypeHost, unknown to older headers
    AllocationProperties properties;
    properties.location.type = place == Place::Host ? static_cast<hipMemLocationType>(kHost) : hipMemLocationTypeDevice;
    properties.location.id = place == Place::Host ? 0 : ordinal_;
    return properties;
  }

  struct Calls {
#define UHMM_X(function) decltype(&::function) function = nullptr;
#define UHMM_Y(function, type) std::add_pointer_t<std::remove_pointer_t<type>> function = nullptr;
    UHMM_HIP_SYMBOLS(UHMM_X, UHMM_Y)
#undef UHMM_Y
#undef UHMM_X
  };

  Library library_;
  Calls call_;
  int version_ = 0;
  int ordinal_ = 0;
};

}  // namespace

Result<Driver*> open_hip(const char* library) {
  auto* driver = make_in_arena<HipDriver>();
  if (driver == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a driver's functions");
  if (const Status loaded = driver->load(library); !loaded.ok()) {
    destroy_in_arena(driver);
    return loaded;
  }
  return static_cast<Driver*>(driver);
}

}  // namespace uhmm::vmm
