// SPDX-License-Identifier: Apache-2.0
#include "backends/vmm/copy_lanes.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace uhmm::vmm {

struct CopyLanes::Taken {
  explicit Taken(CopyLanes& all) : lanes(all), lane(all.take()) {}
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;
  ~Taken() { lanes.give_back(lane); }
  CopyLanes& lanes;
  Lane& lane;
};

Status CopyLanes::open(Driver& driver) {
  for (Lane& lane : lanes_) {
    Result<void*> buffer = driver.host_allocate(2 * kHalfBytes);
    if (!buffer.ok()) return buffer.status();
    lane.buffer = static_cast<std::byte*>(*buffer);
    Result<Stream> stream = driver.create_stream();
    if (!stream.ok()) return stream.status();
    lane.stream = *stream;
    for (Event& sent : lane.sent) {
      Result<Event> event = driver.create_event();
      if (!event.ok()) return event.status();
      sent = *event;
    }
  }
  return {};
}

void CopyLanes::close(Driver& driver) {
  for (Lane& lane : lanes_) {
    for (Event sent : lane.sent)
      if (sent != nullptr) driver.destroy_event(sent);
    if (lane.stream != nullptr) driver.destroy_stream(lane.stream);
    if (lane.buffer != nullptr) driver.host_free(lane.buffer);
    lane = {};
  }
}

CopyLanes::Lane& CopyLanes::take() {
  for (std::uint32_t busy = busy_.load();;) {
    const auto first = static_cast<std::uint32_t>(std::countr_one(busy));
    if (first >= kLanes) {
      busy_.wait(busy);
      busy = busy_.load();
    } else if (busy_.compare_exchange_weak(busy, busy | 1u << first)) {
      return lanes_[first];
    }
  }
}

void CopyLanes::give_back(Lane& lane) {
  busy_.fetch_and(~(1u << (&lane - lanes_.data())));
  busy_.notify_one();
}

Status CopyLanes::settle(Driver& driver, Lane& lane, unsigned half) {
  if (!lane.pending[half]) return {};
  lane.pending[half] = false;
  return driver.wait(lane.sent[half]);
}

// A copy whose end can't be learned might still read or write the buffer when others use it: then the device is of no
// use any more.
Status CopyLanes::finish(Driver& driver, Lane& lane) {
  constexpr int kMostTries = 4;
  lane.pending[0] = lane.pending[1] = false;
  Status status;
  for (int tries = 0; tries < kMostTries; ++tries) {
    status = driver.synchronize(lane.stream);
    if (status.ok() || status.code() == UHMM_ERR_DEVICE_LOST || status.code() == UHMM_ERR_FORKED) return status;
  }
  char why[kDetailBytes];
  save_detail(why);
  return fail(UHMM_ERR_DEVICE_LOST, "copies don't end: %s", why);
}

Status CopyLanes::copy_in(Driver& driver, std::uint64_t to, const std::byte* from, std::uint64_t bytes) {
  const Taken taken(*this);
  Lane& lane = taken.lane;
  Status status;
  unsigned half = 0;
  for (std::uint64_t done = 0; done < bytes && status.ok(); half ^= 1) {
    const std::uint64_t part = std::min<std::uint64_t>(bytes - done, kHalfBytes);
    std::byte* buffer = lane.buffer + half * kHalfBytes;
    status = settle(driver, lane, half);
    if (!status.ok()) break;
    std::memcpy(buffer, from + done, part);
    status = driver.copy_in(to + done, buffer, part, lane.stream);
    if (status.ok()) status = driver.record(lane.sent[half], lane.stream);
    lane.pending[half] = status.ok();
    done += part;
  }
  // Also after a failure.
  const Status arrived = finish(driver, lane);
  return status.ok() || arrived.code() == UHMM_ERR_DEVICE_LOST ? arrived : status;
}

Status CopyLanes::copy_out(Driver& driver, std::byte* to, std::uint64_t from, std::uint64_t bytes) {
  const Taken taken(*this);
  Lane& lane = taken.lane;
  Status status;
  std::uint64_t asked = 0;
  const auto ask = [&](unsigned half) -> Status {
    const std::uint64_t part = std::min<std::uint64_t>(bytes - asked, kHalfBytes);
    if (part == 0) return {};
    UHMM_TRY(driver.copy_out(lane.buffer + half * kHalfBytes, from + asked, part, lane.stream));
    UHMM_TRY(driver.record(lane.sent[half], lane.stream));
    lane.pending[half] = true;
    asked += part;
    return {};
  };
  status = ask(0);
  unsigned half = 0;
  for (std::uint64_t done = 0; done < bytes && status.ok(); half ^= 1) {
    status = ask(half ^ 1);
    if (!status.ok()) break;
    status = settle(driver, lane, half);
    if (!status.ok()) break;
    const std::uint64_t part = std::min<std::uint64_t>(bytes - done, kHalfBytes);
    std::memcpy(to + done, lane.buffer + half * kHalfBytes, part);
    done += part;
  }
  if (!status.ok())
    if (const Status ended = finish(driver, lane); ended.code() == UHMM_ERR_DEVICE_LOST) return ended;
  lane.pending[0] = lane.pending[1] = false;
  return status;
}

Status CopyLanes::zero(Driver& driver, std::uint64_t address, std::uint64_t bytes) {
  const Taken taken(*this);
  const Status asked = driver.zero(address, bytes, taken.lane.stream);
  const Status done = finish(driver, taken.lane);
  return asked.ok() || done.code() == UHMM_ERR_DEVICE_LOST ? done : asked;
}

}  // namespace uhmm::vmm
