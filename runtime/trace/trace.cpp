// SPDX-License-Identifier: Apache-2.0
#include "runtime/trace/trace.hpp"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

namespace uhmm::trace {
namespace {

// An unfinished event is given up once this many newer ones exist: its writer can't be merely between two instructions.
constexpr std::uint64_t kPatience = 1024;

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint32_t thread_id() {
  thread_local std::uint32_t id = 0;
  if (id == 0) id = static_cast<std::uint32_t>(gettid());
  return id;
}

}  // namespace

void EventRing::record(const uhmm_event& event) {
  uhmm_event copy = event;
  if (copy.time_ns == 0) copy.time_ns = now_ns();
  if (copy.thread == 0) copy.thread = thread_id();
  const std::uint64_t number = newest_.fetch_add(1, std::memory_order_acq_rel) + 1;
  copy.number = number;

  Slot& slot = slots_[number % kCapacity];
  std::uint64_t turn = slot.turn.load(std::memory_order_relaxed);
  const bool free = turn % 2 == 0 && turn < 2 * number;
  if (free && slot.turn.compare_exchange_strong(turn, 2 * number - 1, std::memory_order_acquire)) {
    // Released one by one: a reader that sees any of the new words also sees the turn above, so that it never takes a
    // mixture for an event. Ordered stores, not a fence, because the thread sanitizer does not know fences.
    const auto words = std::bit_cast<Words>(copy);
    for (std::size_t i = 0; i < kWords; ++i) slot.words[i].store(words[i], std::memory_order_release);
    slot.turn.store(2 * number, std::memory_order_release);
  } else {
    std::uint64_t before = given_up_.load(std::memory_order_relaxed);
    if (before < number) given_up_.compare_exchange_strong(before, number, std::memory_order_release);
  }
  if (listened_.load(std::memory_order_relaxed)) ring();
}

void EventRing::ring() {
  bell_.fetch_add(1, std::memory_order_release);
  bell_.notify_one();
}

EventRing::Found EventRing::try_read(std::uint64_t number, uhmm_event& out) const {
  const Slot& slot = slots_[number % kCapacity];
  const std::uint64_t turn = slot.turn.load(std::memory_order_acquire);
  if (turn < 2 * number) return Found::Writing;
  if (turn > 2 * number) return Found::Gone;
  Words words;
  for (std::size_t i = 0; i < kWords; ++i) words[i] = slot.words[i].load(std::memory_order_acquire);
  if (slot.turn.load(std::memory_order_relaxed) != turn) return Found::Gone;
  out = std::bit_cast<uhmm_event>(words);
  return Found::Event;
}

std::size_t EventRing::read(std::uint64_t& cursor, uhmm_event* out, std::size_t capacity) const {
  std::size_t count = 0;
  std::uint64_t newest = this->newest();
  std::uint64_t number = std::max(cursor, newest > kCapacity ? newest - kCapacity : 0) + 1;
  for (; count < capacity && number <= newest; ++number) {
    switch (try_read(number, out[count])) {
      case Found::Event:
        cursor = number;
        ++count;
        break;
      case Found::Writing:
        if (number <= given_up_.load(std::memory_order_acquire) || newest - number >= kPatience) break;
        return count;
      case Found::Gone:
        // Writers went round: catch up at once instead of chasing them slot by slot.
        newest = this->newest();
        number = std::max(number, newest > kCapacity ? newest - kCapacity : 0);
        break;
    }
  }
  return count;
}

void Counters::snapshot(uhmm_stats& out) const {
#define UHMM_X(name, field) out.field = get(Counter::name);
  UHMM_COUNTER_LIST(UHMM_X)
#undef UHMM_X
#define UHMM_X(name, field)                       \
  for (unsigned i = 0; i < UHMM_CAUSE_COUNT; ++i) \
    out.field[i] = by_cause_[index(CauseCounter::name)][i].load(std::memory_order_relaxed);
  UHMM_CAUSE_COUNTER_LIST(UHMM_X)
#undef UHMM_X
}

}  // namespace uhmm::trace
