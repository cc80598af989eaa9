// SPDX-License-Identifier: Apache-2.0
// Ranked locks: taking one out of order aborts in builds with checks, so a deadlock is found on the first run of the
// path, not on the first bad interleaving.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "runtime/base/lock_list.hpp"

namespace uhmm {

enum class LockRank : unsigned char {
#define UHMM_X(name, rank, protects, across) name = (rank),
  UHMM_LOCK_LIST(UHMM_X)
#undef UHMM_X
};

const char* lock_name(LockRank rank);

#ifdef UHMM_CHECKS
namespace lock_order {
// Aborts with both names when `rank` is not greater than every rank the thread holds.
void acquire(LockRank rank);
void release(LockRank rank);
// True if the calling thread holds no ranked lock at all.
bool none_held();
}  // namespace lock_order
#else
namespace lock_order {
inline void acquire(LockRank) {}
inline void release(LockRank) {}
inline bool none_held() { return true; }
}  // namespace lock_order
#endif

// A standard lock with a rank; works with std::unique_lock, std::shared_lock and std::scoped_lock.
template <LockRank kRank>
class RankedMutex {
 public:
  void lock() {
    lock_order::acquire(kRank);
    mutex_.lock();
  }
  bool try_lock() {
    if (!mutex_.try_lock()) return false;
    lock_order::acquire(kRank);
    return true;
  }
  void unlock() {
    mutex_.unlock();
    lock_order::release(kRank);
  }

 private:
  std::mutex mutex_;
};

template <LockRank kRank>
class RankedSharedMutex {
 public:
  void lock() {
    lock_order::acquire(kRank);
    mutex_.lock();
  }
  void unlock() {
    mutex_.unlock();
    lock_order::release(kRank);
  }
  void lock_shared() {
    lock_order::acquire(kRank);
    mutex_.lock_shared();
  }
  bool try_lock_shared() {
    if (!mutex_.try_lock_shared()) return false;
    lock_order::acquire(kRank);
    return true;
  }
  void unlock_shared() {
    mutex_.unlock_shared();
    lock_order::release(kRank);
  }

 private:
  std::shared_mutex mutex_;
};

}  // namespace uhmm
