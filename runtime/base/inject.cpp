// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/inject.hpp"

#include <chrono>
#include <cstddef>
#include <thread>

namespace uhmm::inject {
namespace {

constexpr auto kPoints = static_cast<std::size_t>(Point::kCount);
std::atomic<std::uint64_t> remaining[kPoints];
std::atomic<bool> has_fired[kPoints];
std::atomic<bool> shaking{false};
std::atomic<std::uint32_t> shake_state{0};

constexpr std::uint32_t kLongestSleepNs = 400'000;
constexpr std::uint32_t kLongestSpin = 20'000;

// An integer hash (after C. Wellons, "lowbias32"): neighbouring inputs give unrelated outputs.
std::uint32_t mixed(std::uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Mostly nothing: a point is passed thousands of times a second.
void take_a_moment() {
  const std::uint32_t random = mixed(shake_state.fetch_add(0x9e3779b9u, std::memory_order_relaxed));
  const std::uint32_t length = random >> 8;
  switch (random % 8) {
    case 0: std::this_thread::yield(); break;
    case 1: std::this_thread::sleep_for(std::chrono::nanoseconds(length % kLongestSleepNs)); break;
    case 2:
      for (std::uint32_t i = length % kLongestSpin; i != 0; --i) std::atomic_signal_fence(std::memory_order_seq_cst);
      break;
    default: break;
  }
}

}  // namespace

namespace detail {

// Constant-initialised: the arena asks before main.
constinit std::atomic<bool> active{false};

bool consume(Point point) {
  if (shaking.load(std::memory_order_relaxed)) take_a_moment();
  const auto index = static_cast<std::size_t>(point);
  std::uint64_t left = remaining[index].load(std::memory_order_relaxed);
  do {
    if (left == 0) return false;
  } while (!remaining[index].compare_exchange_weak(left, left - 1, std::memory_order_acq_rel));
  if (left != 1) return false;
  has_fired[index].store(true, std::memory_order_release);
  return true;
}

}  // namespace detail

const char* name(Point point) {
  switch (point) {
#define UHMM_X(name) \
  case Point::name: return #name;
    UHMM_INJECT_LIST(UHMM_X)
#undef UHMM_X
    case Point::kCount: break;
  }
  return "?";
}

void arm(Point point, std::uint64_t n) {
  const auto index = static_cast<std::size_t>(point);
  has_fired[index].store(false, std::memory_order_release);
  remaining[index].store(n, std::memory_order_release);
  // Stays true after the point fired: only tests arm anything, and a reset here would race with another arm().
  if (n != 0) detail::active.store(true, std::memory_order_release);
}

bool fired(Point point) { return has_fired[static_cast<std::size_t>(point)].load(std::memory_order_acquire); }

void disarm_all() {
  detail::active.store(shaking.load(), std::memory_order_release);
  for (std::size_t i = 0; i < kPoints; ++i) {
    remaining[i].store(0, std::memory_order_release);
    has_fired[i].store(false, std::memory_order_release);
  }
}

void shake(std::uint32_t seed) {
  shake_state.store(seed);
  shaking.store(true);
  detail::active.store(true);
}

void stop_shaking() { shaking.store(false); }

}  // namespace uhmm::inject
