// SPDX-License-Identifier: Apache-2.0
#include "preload/alternate_stack.hpp"

#include <algorithm>
#include <mutex>

#include "preload/kernel_access.hpp"
#include "preload/managed.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload {
namespace {

// By begin, with how many threads use it. What a thread that has ended leaves here stays unmanaged, no more.
struct Stacks {
  std::mutex mutex;
  Map<std::uint64_t, std::pair<std::uint64_t, std::uint32_t>> used;
};
Stacks& stacks() {
  static Forever<Stacks> only;
  return *only;
}
thread_local ByteRange mine{};

void end_mine(Stacks& all) {
  const auto found = all.used.find(mine.begin.value);
  if (!mine.empty() && found != all.used.end() && --found->second.second == 0) all.used.erase(found);
  mine = {};
}

}  // namespace

bool is_alternate_stack(ByteRange pages) {
  Stacks& all = stacks();
  const std::scoped_lock lock(all.mutex);
  const auto next = all.used.lower_bound(pages.end.value);
  return next != all.used.begin() && std::prev(next)->second.first > pages.begin.value;
}

void lock_stacks_for_fork() { stacks().mutex.lock(); }
void unlock_stacks_after_fork() { stacks().mutex.unlock(); }

void alternate_stack_is(const stack_t& stack) {
  Stacks& all = stacks();
  const VirtAddr begin{stack.ss_sp};
  const bool ends = (stack.ss_flags & SS_DISABLE) != 0;
  const ByteRange pages = ends ? ByteRange{} : ByteRange{begin, begin + stack.ss_size}.to_pages();
  {
    const std::scoped_lock lock(all.mutex);
    end_mine(all);
    if (pages.empty()) return;
    auto& [end, threads] = all.used[pages.begin.value];
    end = std::max(end, pages.end.value);
    ++threads;
    mine = pages;
  }
  // From here on nobody registers it any more.
  for (const ByteRange& part : managed_parts(pages)) {
    unmanage(part);
    (void)uhmm_unregister_pages(part.begin.pointer(), part.bytes());
  }
}

}  // namespace uhmm::preload
