// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/lock.hpp"

#include <cstdio>

#include "runtime/base/check.hpp"

namespace uhmm {

const char* lock_name(LockRank rank) {
  switch (rank) {
#define UHMM_X(name, value, protects, across) \
  case LockRank::name: return #name;
    UHMM_LOCK_LIST(UHMM_X)
#undef UHMM_X
  }
  return "?";
}

#ifdef UHMM_CHECKS
namespace lock_order {
namespace {

constexpr unsigned kMaxHeld = 16;
struct Held {
  LockRank ranks[kMaxHeld];
  unsigned count;
};
thread_local Held held;

[[noreturn]] void order_error(LockRank wanted, LockRank other) {
  char why[128];
  std::snprintf(why, sizeof why, "lock %s (%u) taken while %s (%u) is held", lock_name(wanted),
                static_cast<unsigned>(wanted), lock_name(other), static_cast<unsigned>(other));
  panic(__FILE__, __LINE__, "rank is greater than every rank held", why);
}

}  // namespace

void acquire(LockRank rank) {
  for (unsigned i = 0; i < held.count; ++i)
    if (rank <= held.ranks[i]) order_error(rank, held.ranks[i]);
  UHMM_REQUIRE(held.count < kMaxHeld, "too many locks held");
  held.ranks[held.count++] = rank;
}

void release(LockRank rank) {
  // Not always the last one: std::unique_lock lets locks end in any order. A rank is held at most once.
  for (unsigned i = held.count; i-- > 0;) {
    if (held.ranks[i] != rank) continue;
    for (unsigned j = i + 1; j < held.count; ++j) held.ranks[j - 1] = held.ranks[j];
    --held.count;
    return;
  }
  panic(__FILE__, __LINE__, "the rank is held", lock_name(rank));
}

bool none_held() { return held.count == 0; }

}  // namespace lock_order
#endif

}  // namespace uhmm
