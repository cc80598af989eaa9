// SPDX-License-Identifier: Apache-2.0
// The doubles' streams, events, copies and kernels, and what every call begins with.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "tests/driver_double/core.hpp"

namespace uhmm::driver_double {

int Core::create_stream(Stream** stream) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  auto made = std::make_unique<Stream>();
  *stream = made.get();
  streams_[made.get()] = std::move(made);
  return kOk;
}

int Core::destroy_stream(Stream* stream) {
  // What a copy that is under way comes to is nobody's any more.
  if (const int error = synchronize(stream); error != kOk && error != kInvalid) return error;
  const std::scoped_lock lock(mutex_);
  for (const auto& [key, event] : events_)
    if (event->stream == stream) *event = {};
  return streams_.erase(stream) != 0 ? kOk : kInvalidHandle;
}

int Core::create_event(Event** event) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  auto made = std::make_unique<Event>();
  *event = made.get();
  events_[made.get()] = std::move(made);
  return kOk;
}

int Core::destroy_event(Event* event) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  return events_.erase(event) != 0 ? kOk : kInvalidHandle;
}

int Core::look_for_faults() {
  if (sticky_ != kOk) return sticky_;
  for (const auto& [key, stream] : streams_) {
    if (stream->executor == nullptr) continue;
    const Executor::Fault fault = stream->executor->fault();
    if (fault.signal == 0) continue;
    sticky_ = fault.signal == SIGSEGV || fault.signal == SIGBUS ? kIllegalAddress : kLaunchFailure;
  }
  return sticky_;
}

int Core::tell_executors(Executor::Request request) {
  for (const auto& [key, stream] : streams_)
    if (stream->executor != nullptr) (void)stream->executor->perform(request);
  return look_for_faults();
}

int Core::start_executor(Stream* stream) {
  stream->executor = std::make_unique<Executor>(file_);
  if (!stream->executor->start()) {
    stream->executor.reset();
    return kNoMemory;
  }
  for (const auto& [address, bytes] : reservations_)
    (void)stream->executor->perform({Executor::Action::Close, address, bytes, 0});
  for (const auto& [address, mapping] : mappings_)
    if (mapping.accessible)
      (void)stream->executor->perform({Executor::Action::Open, address, mapping.bytes, mapping.chunk->offset});
  return kOk;
}

std::byte* Core::find(std::uint64_t address, std::uint64_t* contiguous) {
  auto found = mappings_.upper_bound(address);
  if (found == mappings_.begin()) return nullptr;
  --found;
  const std::uint64_t offset = address - found->first;
  if (offset >= found->second.bytes || !found->second.accessible) return nullptr;
  *contiguous = found->second.bytes - offset;
  return found->second.chunk->here + offset;
}

int Core::perform(const Copy& copy) {
  auto* host = static_cast<std::byte*>(copy.host);
  for (std::uint64_t done = 0; done < copy.bytes;) {
    std::uint64_t part = 0;
    std::byte* device = find(copy.device + done, &part);
    if (device == nullptr) return kInvalid;
    part = std::min(part, copy.bytes - done);
    switch (copy.kind) {
      case Copy::Kind::In: std::memcpy(device, host + done, part); break;
      case Copy::Kind::Out: std::memcpy(host + done, device, part); break;
      case Copy::Kind::Fill: std::memset(device, copy.value, part); break;
    }
    done += part;
  }
  return kOk;
}

int Core::advance(std::unique_lock<std::mutex>& lock, Stream* stream, std::uint64_t launches, bool wait) {
  for (;;) {
    if (const int error = look_for_faults(); error != kOk) return error;
    if (streams_.find(stream) == streams_.end()) return kInvalidHandle;
    const std::uint64_t completed = stream->executor != nullptr ? stream->executor->completed() : 0;
    if (completed >= launches) break;
    if (!wait) return kNotReady;
    Executor* executor = stream->executor.get();
    lock.unlock();
    executor->doze(completed);
    lock.lock();
  }
  if (stream->executor != nullptr && stream->executor->completed() != stream->executor->launched()) return kOk;
  int result = kOk;
  for (const Copy& copy : stream->copies)
    if (result == kOk) result = perform(copy);
  stream->copies.clear();
  return result;
}

int Core::synchronize(Stream* stream) {
  if (const int error = check(); error != kOk) return error;
  std::unique_lock lock(mutex_);
  if (streams_.find(stream) == streams_.end()) return kInvalidHandle;
  return advance(lock, stream, stream->executor != nullptr ? stream->executor->launched() : 0, true);
}

int Core::record(Event* event, Stream* stream) {
  if (const int error = check(); error != kOk) return error;
  const std::scoped_lock lock(mutex_);
  if (events_.find(event) == events_.end() || streams_.find(stream) == streams_.end()) return kInvalidHandle;
  *event = {stream, stream->executor != nullptr ? stream->executor->launched() : 0};
  return kOk;
}

int Core::query(Event* event) {
  if (const int error = check(); error != kOk) return error;
  std::unique_lock lock(mutex_);
  if (events_.find(event) == events_.end()) return kInvalidHandle;
  return event->stream == nullptr ? kOk : advance(lock, event->stream, event->launches, false);
}

int Core::wait(Event* event) {
  if (const int error = check(); error != kOk) return error;
  std::unique_lock lock(mutex_);
  if (events_.find(event) == events_.end()) return kInvalidHandle;
  return event->stream == nullptr ? kOk : advance(lock, event->stream, event->launches, true);
}

// Pinned memory is read and written when the stream gets there, so whoever doesn't wait sees it. Pageable memory is
// copied before the call returns, and the driver's lock is held for as long as that takes.
int Core::enqueue(Stream* stream, const Copy& copy) {
  if (const int error = check(); error != kOk) return error;
  std::unique_lock lock(mutex_);
  if (streams_.find(stream) == streams_.end()) return kInvalidHandle;
  std::uint64_t part = 0;
  if (find(copy.device, &part) == nullptr) return kInvalid;
  const bool later = copy.kind == Copy::Kind::Fill || is_pinned(copy.host, copy.bytes);
  if (later) {
    stream->copies.push_back(copy);
    return kOk;
  }
  if (const int error = advance(lock, stream, stream->executor != nullptr ? stream->executor->launched() : 0, true);
      error != kOk)
    return error;
  ++pageable_copies_;
  return perform(copy);
}

int Core::launch(Stream* stream, const void* function, const std::uint32_t (&grid)[3], const void* args,
                 std::size_t bytes) {
  if (const int error = check(); error != kOk) return error;
  std::unique_lock lock(mutex_);
  if (streams_.find(stream) == streams_.end() || function == nullptr) return kInvalidHandle;
  if (bytes > UHMM_MAX_ARGS_BYTES || grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535)
    return kInvalid;
  if (!stream->copies.empty())
    if (const int error = advance(lock, stream, stream->executor != nullptr ? stream->executor->launched() : 0, true);
        error != kOk)
      return error;
  if (stream->executor == nullptr)
    if (const int error = start_executor(stream); error != kOk) return error;
  if (!stream->executor->launch(function, grid, args, bytes)) {
    const int error = look_for_faults();
    return error != kOk ? error : kLaunchFailure;
  }
  return kOk;
}

// ------------------------------------------------------------------------------------------------------ counting calls

namespace {

struct Calls {
  std::mutex mutex;
  std::vector<std::string> names;
  std::map<std::string, std::uint64_t> counts;
  std::string failing;
  std::uint64_t left = 0;
  int error = kOk;
  bool failed = false;
};
Calls& calls() {
  static Calls all;
  return all;
}

}  // namespace

Known::Known(const char* function) {
  const std::scoped_lock lock(calls().mutex);
  calls().names.emplace_back(function);
}

int begin_call(const char* function) {
  Calls& all = calls();
  const std::scoped_lock lock(all.mutex);
  ++all.counts[function];
  if (all.left == 0 || all.failing != function || --all.left != 0) return kOk;
  all.failed = true;
  return all.error;
}

const Control* control() {
  static const Control made = [] {
    Control out;
    out.set = [](Setting setting, std::uint64_t value) { Core::instance().set(setting, value); };
    out.fail_call = [](const char* function, std::uint64_t n, int error) {
      Calls& all = calls();
      const std::scoped_lock lock(all.mutex);
      all.failing = function;
      all.left = n;
      all.error = error;
      all.failed = false;
      return std::find(all.names.begin(), all.names.end(), function) != all.names.end();
    };
    out.failed = [] {
      const std::scoped_lock lock(calls().mutex);
      return calls().failed;
    };
    out.calls = [](const char* function) {
      const std::scoped_lock lock(calls().mutex);
      return calls().counts[function];
    };
    out.function = [](std::size_t index) -> const char* {
      const std::scoped_lock lock(calls().mutex);
      return index < calls().names.size() ? calls().names[index].c_str() : nullptr;
    };
    out.census = [] { return Core::instance().census(); };
    out.tell_of_copies = [](void (*listener)(bool begins)) { Executor::on_copy = listener; };
    out.reset = [] {
      Core::instance().reset();
      const std::scoped_lock lock(calls().mutex);
      calls().counts.clear();
      calls().left = 0;
      calls().failed = false;
    };
    return out;
  }();
  return &made;
}

}  // namespace uhmm::driver_double
