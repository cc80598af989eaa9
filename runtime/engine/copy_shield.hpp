// SPDX-License-Identifier: Apache-2.0
// Copies of the process that are made past the C library, where the kernel tells of none (no CAP_SYS_PTRACE): pages
// that are away would read as zeros there. So memory is not in such copies (MADV_DONTFORK) while userfaultfd watches
// it: to touch it there is SIGSEGV. What the program itself has kept from its children stays kept.
#pragma once

#include <cstdint>
#include <map>
#include <memory_resource>

#include "runtime/base/lock.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::state {
struct Range;
}

namespace uhmm::engine {

struct Context;

class CopyShield {
 public:
  CopyShield();

  // Under the address space's shared lock. `pages` of the range are watched from now on.
  void raise(Context& context, state::Range& range, ByteRange pages);
  // They are watched no more.
  void lower(Context& context, ByteRange pages);
  // The addresses are of no range any more: what the program has said of them is its own affair.
  void forget(ByteRange pages);

 private:
  void learn(Context& context);
  void note(ByteRange pages);
  template <typename Visit>
  void for_each_ours(ByteRange pages, Visit&& visit) const;

  RankedMutex<LockRank::CopyShield> mutex_;
  std::pmr::map<std::uint64_t, std::uint64_t> programs_;  // begin, end: kept from children by the program
};

}  // namespace uhmm::engine
