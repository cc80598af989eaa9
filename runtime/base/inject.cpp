// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/inject.hpp"

#include <cstddef>

namespace uhmm::inject {
namespace {

constexpr auto kPoints = static_cast<std::size_t>(Point::kCount);
std::atomic<std::uint64_t> remaining[kPoints];
std::atomic<bool> has_fired[kPoints];

}  // namespace

namespace detail {

// Constant-initialised: the arena asks before main.
constinit std::atomic<bool> armed{false};

bool consume(Point point) {
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
  if (n != 0) detail::armed.store(true, std::memory_order_release);
}

bool fired(Point point) { return has_fired[static_cast<std::size_t>(point)].load(std::memory_order_acquire); }

void disarm_all() {
  detail::armed.store(false, std::memory_order_release);
  for (std::size_t i = 0; i < kPoints; ++i) {
    remaining[i].store(0, std::memory_order_release);
    has_fired[i].store(false, std::memory_order_release);
  }
}

}  // namespace uhmm::inject
