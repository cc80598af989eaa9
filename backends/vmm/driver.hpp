// SPDX-License-Identifier: Apache-2.0
// A GPU's driver library as the few operations a device needs, the same for every vendor. The library is opened at run
// time: one binary works with CUDA's driver, with HIP's, or with neither.
//
// Statuses: BUSY (not finished yet), DEVICE_FULL (no physical memory left), DEVICE_LOST (the context has ended, by an
// access to an unmapped address for example), FORKED (a child of the process that started the driver, or its end),
// PERMISSION, NOT_SUPPORTED, and SYSTEM for everything else. The detail names the driver's call and its error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/base/status.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::vmm {

enum class Vendor : std::uint8_t { Cuda, Hip };
const char* vendor_name(Vendor vendor);

// Where physical memory lies. Host: pinned system memory that the GPU reaches over the bus.
enum class Place : std::uint8_t { Device, Host };

struct Facts {
  char name[64] = {};
  int version = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t memory_free = 0;
  std::uint64_t granularity = 0;    // of physical memory and its mappings
  bool host_chunks = false;         // create() knows Place::Host
  bool reaches_registered = false;  // registered host memory has the program's addresses on the GPU
  std::uint32_t processors = 0;
};

// Handles of the driver.
using Chunk = std::uint64_t;
using Stream = void*;
using Event = void*;

struct Work {
  const void* function = nullptr;
  std::uint32_t grid[3] = {1, 1, 1};
  std::uint32_t block[3] = {1, 1, 1};
  std::uint32_t shared_bytes = 0;
  const void* args = nullptr;  // the kernel's parameters in one piece, as the driver lays them out
  std::size_t args_bytes = 0;
};

class Driver {
 public:
  Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  virtual ~Driver() = default;

  // As dlopen() gave it.
  virtual void* library() const = 0;
  virtual Result<std::uint32_t> device_count() = 0;
  // Start to use a device of the library. Once per Driver until close().
  virtual Status open(std::uint32_t ordinal, Facts* facts) = 0;
  // `broken`: the context has ended; what the process had in it is gone and the device starts anew.
  virtual void close(bool broken) = 0;
  // The calling thread's next calls are about this device. Before any of those below.
  virtual Status enter() = 0;

  // Addresses. `hint`: where they should begin; another place is an answer too, the caller compares.
  virtual Result<std::uint64_t> reserve(std::uint64_t bytes, std::uint64_t hint) = 0;
  virtual Status unreserve(std::uint64_t address, std::uint64_t bytes) = 0;
  // Physical memory, and its mapping as a whole at a reserved address, readable and writable by kernels.
  virtual Result<Chunk> create(std::uint64_t bytes, Place place) = 0;
  virtual void release(Chunk chunk) = 0;
  virtual Status map(std::uint64_t address, std::uint64_t bytes, Chunk chunk) = 0;
  // Waits for nothing: who may still use it is the caller's affair.
  virtual Status unmap(std::uint64_t address, std::uint64_t bytes) = 0;

  // Pinned system memory for copies.
  virtual Result<void*> host_allocate(std::uint64_t bytes) = 0;
  virtual void host_free(void* memory) = 0;
  // The program's own memory, pinned, and reached by kernels at its own addresses.
  virtual Status host_register(void* memory, std::uint64_t bytes) = 0;
  virtual void host_unregister(void* memory) = 0;

  virtual Result<Stream> create_stream() = 0;
  virtual void destroy_stream(Stream stream) = 0;
  virtual Status synchronize(Stream stream) = 0;
  virtual Result<Event> create_event() = 0;
  virtual void destroy_event(Event event) = 0;
  virtual Status record(Event event, Stream stream) = 0;
  virtual Status query(Event event) = 0;  // BUSY: what it was recorded after has not ended
  virtual Status wait(Event event) = 0;

  // In stream order; host memory is pinned and stays as it is until the stream has come so far.
  virtual Status copy_in(std::uint64_t to, const void* from, std::uint64_t bytes, Stream stream) = 0;
  virtual Status copy_out(void* to, std::uint64_t from, std::uint64_t bytes, Stream stream) = 0;
  virtual Status zero(std::uint64_t address, std::uint64_t bytes, Stream stream) = 0;
  virtual Status launch(const Work& work, Stream stream) = 0;
};

// Opens the vendor's library (nullptr: by its usual name) and finds its functions. Errors: NOT_SUPPORTED (this build
// has no header of it; the library is not there, or lacks a function: an old driver), NO_DEVICE, PERMISSION, SYSTEM.
// User threads only.
Result<Driver*> open_driver(Vendor vendor, const char* library);
void destroy_driver(Driver* driver);

}  // namespace uhmm::vmm
