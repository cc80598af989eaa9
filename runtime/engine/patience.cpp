// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/patience.hpp"

#include <algorithm>
#include <mutex>

namespace uhmm::engine {
namespace {

// A device tries again at once: after a pause the page was served meanwhile, and this is another wait.
constexpr std::uint64_t kPauseNs = 2'000'000'000;

}  // namespace

bool Patience::ends(VirtAddr page, std::uint64_t now_ns) {
  const std::scoped_lock lock(mutex_);
  auto wait = std::find_if(waits_.begin(), waits_.end(), [&](const Wait& one) { return one.page == page; });
  if (wait == waits_.end() || now_ns - wait->last_ns > kPauseNs) {
    if (wait == waits_.end())
      wait = std::min_element(waits_.begin(), waits_.end(),
                              [](const Wait& one, const Wait& other) { return one.last_ns < other.last_ns; });
    *wait = {page, now_ns, now_ns};
  }
  wait->last_ns = now_ns;
  return now_ns - wait->since_ns > limit_ns.load();
}

}  // namespace uhmm::engine
