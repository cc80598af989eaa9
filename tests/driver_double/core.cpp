// SPDX-License-Identifier: Apache-2.0
#include "tests/driver_double/core.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace uhmm::driver_double {
namespace {

constexpr int kFill = 0xa5;  // what fresh physical memory holds: nothing that anybody may rely on

}  // namespace

const char* error_name(int error) {
  switch (error) {
    case kOk: return "SUCCESS";
    case kInvalid: return "INVALID_VALUE";
    case kNoMemory: return "OUT_OF_MEMORY";
    case kNotInitialized: return "NOT_INITIALIZED";
    case kNoDevice: return "NO_DEVICE";
    case kBadDevice: return "INVALID_DEVICE";
    case kInvalidContext: return "INVALID_CONTEXT";
    case kInvalidHandle: return "INVALID_HANDLE";
    case kNotReady: return "NOT_READY";
    case kIllegalAddress: return "ILLEGAL_ADDRESS";
    case kLaunchFailure: return "LAUNCH_FAILED";
    case kNotPermitted: return "NOT_PERMITTED";
    case kNotSupported: return "NOT_SUPPORTED";
    default: return "UNKNOWN";
  }
}

Core& Core::instance() {
  static Core core;
  return core;
}

void Core::set(Setting setting, std::uint64_t value) {
  const std::scoped_lock lock(mutex_);
  settings_[static_cast<std::size_t>(setting)] = value;
}

Census Core::census() {
  const std::scoped_lock lock(mutex_);
  Census out;
  out.reservations = reservations_.size();
  out.chunks = chunks_.size();
  out.mappings = mappings_.size();
  out.streams = streams_.size();
  out.events = events_.size();
  out.pinned = allocated_.size() + registered_.size();
  for (const auto& [key, stream] : streams_) out.executors += stream->executor != nullptr ? 1 : 0;
  out.device_bytes = device_bytes_;
  out.host_bytes = host_bytes_;
  out.pageable_copies = pageable_copies_;
  return out;
}

void Core::reset() {
  (void)restart();
  const std::scoped_lock lock(mutex_);
  for (const auto& [address, bytes] : reservations_) (void)munmap(reinterpret_cast<void*>(address), bytes);
  reservations_.clear();
  retained_ = 0;
  initialized_ = false;
  pageable_copies_ = 0;
  constexpr std::uint64_t kDefaults[] = {
#define UHMM_X(name, fallback, meaning) (fallback),
      UHMM_DOUBLE_SETTINGS(UHMM_X)
#undef UHMM_X
  };
  std::copy(std::begin(kDefaults), std::end(kDefaults), std::begin(settings_));
}

int Core::initialize() {
  const std::scoped_lock lock(mutex_);
  if (get(Setting::NoPermission) != 0) return kNotPermitted;
  if (get(Setting::Devices) == 0) return kNoDevice;
  initialized_ = true;
  process_ = getpid();
  return kOk;
}

int Core::device_count(int* count) {
  const std::scoped_lock lock(mutex_);
  if (!initialized_ || process_ != getpid()) return kNotInitialized;
  *count = static_cast<int>(get(Setting::Devices));
  return kOk;
}

int Core::check_device(int ordinal) {
  int count = 0;
  if (const int error = device_count(&count); error != kOk) return error;
  return ordinal >= 0 && ordinal < count ? kOk : kBadDevice;
}

int Core::retain(int ordinal) {
  if (const int error = check_device(ordinal); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  if (file_ < 0) {
    file_ = static_cast<int>(syscall(SYS_memfd_create, "gpu-double", MFD_CLOEXEC));
    if (file_ >= 0 && file_ < 3) file_ = fcntl(file_, F_DUPFD_CLOEXEC, 3);
    constexpr off_t kMost = off_t{1} << 40;
    if (file_ < 0 || ftruncate(file_, kMost) != 0) return kNoMemory;
  }
  ++retained_;
  return kOk;
}

int Core::release() {
  {
    const std::scoped_lock lock(mutex_);
    if (retained_ == 0) return kInvalidContext;
    if (--retained_ != 0) return kOk;
  }
  return restart();
}

// The context ends: everything of it but the reservations, which belong to the process.
int Core::restart() {
  const std::scoped_lock lock(mutex_);
  if (process_ != getpid()) return kNotInitialized;
  streams_.clear();
  events_.clear();
  mappings_.clear();
  for (const auto& [key, chunk] : chunks_) {
    (void)munmap(chunk->here, chunk->bytes);
    (void)fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(chunk->offset),
                    static_cast<off_t>(chunk->bytes));
    free_.emplace(chunk->bytes, chunk->offset);
  }
  chunks_.clear();
  for (const auto& [address, bytes] : allocated_) (void)munmap(reinterpret_cast<void*>(address), bytes);
  allocated_.clear();
  registered_.clear();
  device_bytes_ = 0;
  host_bytes_ = 0;
  sticky_ = kOk;
  return kOk;
}

int Core::check() {
  const std::scoped_lock lock(mutex_);
  if (!initialized_ || process_ != getpid()) return kNotInitialized;
  if (retained_ == 0) return kInvalidContext;
  return look_for_faults();
}

int Core::memory_info(std::size_t* left, std::size_t* total) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  *total = get(Setting::DeviceMemory);
  *left = *total - std::min<std::uint64_t>(*total, device_bytes_);
  return kOk;
}

// -------------------------------------------------------------------------------------------------------------
// addresses

bool Core::reserved(std::uint64_t address, std::uint64_t bytes) const {
  auto found = reservations_.upper_bound(address);
  if (found == reservations_.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second;
}

int Core::reserve(std::uint64_t* address, std::uint64_t bytes, std::uint64_t alignment, std::uint64_t hint) {
  if (const int error = check(); error != kOk) return error;
  if (bytes == 0 || bytes % kGranularity != 0 || (alignment & (alignment - 1)) != 0) return kInvalid;
  const std::scoped_lock lock(mutex_);
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const bool raw = get(Setting::RawCalls) != 0;
  const auto take = [&](std::uint64_t at, std::uint64_t length) {
    if (raw) return static_cast<std::uint64_t>(syscall(SYS_mmap, at, length, PROT_NONE, kFlags, -1, 0));
    return reinterpret_cast<std::uint64_t>(mmap(reinterpret_cast<void*>(at), length, PROT_NONE, kFlags, -1, 0));
  };
  const auto give = [&](std::uint64_t at, std::uint64_t length) {
    if (length == 0) return;
    if (raw)
      (void)syscall(SYS_munmap, at, length);
    else
      (void)munmap(reinterpret_cast<void*>(at), length);
  };
  constexpr std::uint64_t kBad = ~std::uint64_t{4095};
  std::uint64_t place = kBad;
  if (hint != 0 && get(Setting::HonourHints) != 0) {
    place = take(hint, bytes);
    if (place != hint && place < kBad) {
      give(place, bytes);
      place = kBad;
    }
    if (place == hint && hint % kGranularity != 0) {
      give(place, bytes);
      place = kBad;
    }
  }
  if (place >= kBad) {
    const std::uint64_t wide = take(0, bytes + kGranularity);
    if (wide >= kBad) return kNoMemory;
    place = (wide + kGranularity - 1) & ~(kGranularity - 1);
    give(wide, place - wide);
    give(place + bytes, wide + kGranularity - place);
  }
  for (const auto& [begin, length] : reservations_)
    if (begin < place + bytes && place < begin + length) return kInvalid;
  reservations_[place] = bytes;
  *address = place;
  return tell_executors({Executor::Action::Close, place, bytes, 0});
}

int Core::unreserve(std::uint64_t address, std::uint64_t bytes) {
  const std::scoped_lock lock(mutex_);
  if (process_ != getpid()) return kNotInitialized;
  const auto found = reservations_.find(address);
  if (found == reservations_.end() || found->second != bytes) return kInvalid;
  const auto mapped = mappings_.lower_bound(address);
  if (mapped != mappings_.end() && mapped->first < address + bytes) return kInvalid;
  if (get(Setting::RawCalls) != 0)
    (void)syscall(SYS_munmap, address, bytes);
  else
    (void)munmap(reinterpret_cast<void*>(address), bytes);
  reservations_.erase(found);
  return kOk;
}

// ------------------------------------------------------------------------------------------------------- physical
// memory

int Core::create(Chunk** chunk, std::uint64_t bytes, bool on_host) {
  if (const int error = check(); error != kOk) return error;
  if (bytes == 0 || bytes % kGranularity != 0) return kInvalid;
  if (get(Setting::Vmm) == 0) return kNotSupported;
  const std::scoped_lock lock(mutex_);
  if (on_host && get(Setting::HostChunks) == 0) return kNotSupported;
  std::uint64_t& used = on_host ? host_bytes_ : device_bytes_;
  if (used + bytes > get(on_host ? Setting::HostMemory : Setting::DeviceMemory)) return kNoMemory;
  auto made = std::make_unique<Chunk>();
  made->bytes = bytes;
  made->on_host = on_host;
  if (const auto hole = free_.find(bytes); hole != free_.end()) {
    made->offset = hole->second;
    free_.erase(hole);
  } else {
    made->offset = file_end_;
    file_end_ += bytes;
  }
  void* here = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, static_cast<off_t>(made->offset));
  if (here == MAP_FAILED) return kNoMemory;
  made->here = static_cast<std::byte*>(here);
  std::memset(made->here, kFill, bytes);
  used += bytes;
  *chunk = made.get();
  chunks_[made.get()] = std::move(made);
  return kOk;
}

void Core::put(Chunk* chunk) {
  if (!chunk->released || chunk->mappings != 0) return;
  (void)munmap(chunk->here, chunk->bytes);
  (void)fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(chunk->offset),
                  static_cast<off_t>(chunk->bytes));
  free_.emplace(chunk->bytes, chunk->offset);
  (chunk->on_host ? host_bytes_ : device_bytes_) -= chunk->bytes;
  chunks_.erase(chunk);
}

int Core::release(Chunk* chunk) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto found = chunks_.find(chunk);
  if (found == chunks_.end() || chunk->released) return kInvalid;
  chunk->released = true;
  put(chunk);
  return kOk;
}

int Core::map(std::uint64_t address, std::uint64_t bytes, std::uint64_t offset, Chunk* chunk) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto found = chunks_.find(chunk);
  // Whole chunks at their beginning, at the granularity, inside one reservation.
  if (found == chunks_.end() || offset != 0 || bytes != chunk->bytes || address % kGranularity != 0 ||
      !reserved(address, bytes))
    return kInvalid;
  const auto after = mappings_.lower_bound(address);
  if (after != mappings_.end() && after->first < address + bytes) return kInvalid;
  if (after != mappings_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.bytes > address) return kInvalid;
  }
  mappings_[address] = {bytes, chunk, false};
  ++chunk->mappings;
  return kOk;
}

int Core::set_access(std::uint64_t address, std::uint64_t bytes) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto found = mappings_.find(address);
  if (found == mappings_.end() || found->second.bytes != bytes) return kInvalid;
  found->second.accessible = true;
  return tell_executors({Executor::Action::Open, address, bytes, found->second.chunk->offset});
}

// Whoever uses it meanwhile is not waited for.
int Core::unmap(std::uint64_t address, std::uint64_t bytes) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto found = mappings_.find(address);
  if (found == mappings_.end() || found->second.bytes != bytes) return kInvalid;
  Chunk* chunk = found->second.chunk;
  mappings_.erase(found);
  const int told = tell_executors({Executor::Action::Close, address, bytes, 0});
  --chunk->mappings;
  put(chunk);
  return told;
}

int Core::host_allocate(void** memory, std::uint64_t bytes) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return kNoMemory;
  allocated_[reinterpret_cast<std::uint64_t>(place)] = bytes;
  *memory = place;
  return kOk;
}

int Core::host_free(void* memory) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto found = allocated_.find(reinterpret_cast<std::uint64_t>(memory));
  if (found == allocated_.end()) return kInvalid;
  (void)munmap(memory, found->second);
  allocated_.erase(found);
  return kOk;
}

int Core::host_register(void* memory, std::uint64_t bytes) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  if (bytes == 0 || reserved(address, 1)) return kInvalid;
  for (const auto& [begin, length] : registered_)
    if (begin < address + bytes && address < begin + length) return kAlreadyRegistered;
  registered_[address] = bytes;
  return kOk;
}

int Core::host_unregister(void* memory) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  return registered_.erase(reinterpret_cast<std::uint64_t>(memory)) != 0 ? kOk : kNotRegistered;
}

bool Core::is_pinned(const void* memory, std::uint64_t bytes) const {
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  for (const auto* ranges : {&allocated_, &registered_}) {
    auto found = ranges->upper_bound(address);
    if (found == ranges->begin()) continue;
    --found;
    if (address + bytes <= found->first + found->second) return true;
  }
  return false;
}

}  // namespace uhmm::driver_double
