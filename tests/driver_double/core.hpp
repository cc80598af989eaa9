// SPDX-License-Identifier: Apache-2.0
// What the doubles of CUDA's and HIP's driver have in common: a GPU without a GPU. Its memory is a memory file; a
// stream that runs kernels is a process, made as a copy of the program, in which what is mapped on the device lies at
// the device's addresses and what is reserved can't be touched. So a kernel sees what was copied to the device and
// nothing else, and a kernel that touches an unmapped address ends the context, as on a GPU. Kernels are functions of
// the program (uhmm_kernel), called once per block of the grid.
//
// Errors are the drivers' own numbers, which CUDA and HIP share.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/driver_double/control.hpp"
#include "tests/driver_double/executor.hpp"

namespace uhmm::driver_double {

enum Error : int {
  kOk = 0,
  kInvalid = 1,
  kNoMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kBadDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotReady = 600,
  kIllegalAddress = 700,
  kAlreadyRegistered = 712,
  kNotRegistered = 713,
  kLaunchFailure = 719,
  kNotPermitted = 800,
  kNotSupported = 801,
};
const char* error_name(int error);

struct Chunk {
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;   // in the memory file
  std::byte* here = nullptr;  // where this process sees it
  bool on_host = false;
  int mappings = 0;
  bool released = false;
};

struct Mapping {
  std::uint64_t bytes = 0;
  Chunk* chunk = nullptr;
  bool accessible = false;
};

// A copy that waits for its turn in a stream.
struct Copy {
  enum class Kind { In, Out, Fill } kind = Kind::In;
  std::uint64_t device = 0;
  void* host = nullptr;
  std::uint64_t bytes = 0;
  unsigned char value = 0;
};

struct Stream {
  std::list<Copy> copies;
  std::unique_ptr<Executor> executor;  // from the first launch on
};

struct Event {
  Stream* stream = nullptr;
  std::uint64_t launches = 0;  // of the stream that have to end
};

class Core {
 public:
  static Core& instance();

  void set(Setting setting, std::uint64_t value);
  std::uint64_t get(Setting setting) const { return settings_[static_cast<std::size_t>(setting)]; }
  Census census();
  void reset();

  int initialize();
  int device_count(int* count);
  int check_device(int ordinal);
  int retain(int ordinal);
  int release();
  int restart();
  // What every call of the context begins with.
  int check();
  int memory_info(std::size_t* left, std::size_t* total);

  int reserve(std::uint64_t* address, std::uint64_t bytes, std::uint64_t alignment, std::uint64_t hint);
  int unreserve(std::uint64_t address, std::uint64_t bytes);
  int create(Chunk** chunk, std::uint64_t bytes, bool on_host);
  int release(Chunk* chunk);
  int map(std::uint64_t address, std::uint64_t bytes, std::uint64_t offset, Chunk* chunk);
  int set_access(std::uint64_t address, std::uint64_t bytes);
  int unmap(std::uint64_t address, std::uint64_t bytes);

  int host_allocate(void** memory, std::uint64_t bytes);
  int host_free(void* memory);
  int host_register(void* memory, std::uint64_t bytes);
  int host_unregister(void* memory);

  int create_stream(Stream** stream);
  int destroy_stream(Stream* stream);
  int synchronize(Stream* stream);
  int create_event(Event** event);
  int destroy_event(Event* event);
  int record(Event* event, Stream* stream);
  int query(Event* event);
  int wait(Event* event);
  int enqueue(Stream* stream, const Copy& copy);
  int launch(Stream* stream, const void* function, const std::uint32_t (&grid)[3], const void* args, std::size_t bytes);

 private:
  static constexpr std::uint64_t kGranularity = std::uint64_t{2} << 20;

  bool reserved(std::uint64_t address, std::uint64_t bytes) const;
  // The device's byte as this process sees it, with what follows it there; nullptr where nothing can be accessed.
  std::byte* find(std::uint64_t address, std::uint64_t* contiguous);
  bool is_pinned(const void* memory, std::uint64_t bytes) const;
  int perform(const Copy& copy);
  // Waits for the stream's launches up to `launches`, then does its copies. Gives the lock up while it waits.
  int advance(std::unique_lock<std::mutex>& lock, Stream* stream, std::uint64_t launches, bool wait);
  int look_for_faults();
  int tell_executors(Executor::Request request);
  int start_executor(Stream* stream);
  void put(Chunk* chunk);

  std::mutex mutex_;
  std::uint64_t settings_[static_cast<std::size_t>(Setting::kCount)] = {
#define UHMM_X(name, fallback, meaning) (fallback),
      UHMM_DOUBLE_SETTINGS(UHMM_X)
#undef UHMM_X
  };
  bool initialized_ = false;
  int process_ = 0;
  int retained_ = 0;
  int sticky_ = kOk;
  int file_ = -1;
  std::uint64_t file_end_ = 0;
  std::multimap<std::uint64_t, std::uint64_t> free_;  // bytes -> offset
  std::map<std::uint64_t, std::uint64_t> reservations_;
  std::map<std::uint64_t, Mapping> mappings_;
  std::map<Chunk*, std::unique_ptr<Chunk>> chunks_;
  std::map<Stream*, std::unique_ptr<Stream>> streams_;
  std::map<Event*, std::unique_ptr<Event>> events_;
  std::map<std::uint64_t, std::uint64_t> allocated_;   // pinned, by this library
  std::map<std::uint64_t, std::uint64_t> registered_;  // pinned, the program's own
  std::uint64_t device_bytes_ = 0;
  std::uint64_t host_bytes_ = 0;
  std::uint64_t pageable_copies_ = 0;
};

// ------------------------------------------------------------------------------- what each library's functions begin
// with

// Counts the call, and lets it fail if a test has asked for that. kOk: go on.
int begin_call(const char* function);
// Makes a function known by its name before it is called.
struct Known {
  explicit Known(const char* function);
};
const Control* control();

}  // namespace uhmm::driver_double
