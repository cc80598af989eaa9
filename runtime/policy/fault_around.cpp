// SPDX-License-Identifier: Apache-2.0
#include "runtime/policy/fault_around.hpp"

#include <algorithm>

namespace uhmm::policy {
namespace {

// A consumer may skip a few pages that were home already.
constexpr std::uint64_t kSlackPages = 4;
constexpr auto kRelaxed = std::memory_order_relaxed;
// One for each of two copying threads, and one that whoever is done first finds waiting.
constexpr std::uint64_t kBlocksAhead = 3;
// Write intent is a saturating score: a few upgraded blocks make it certain, reads without upgrades wear it off.
constexpr std::int32_t kCertain = 8;
constexpr std::int32_t kThreshold = 2;

}  // namespace

FaultWindow fault_window(state::Locality& locality, std::uint64_t page, std::uint32_t smallest, std::uint32_t most) {
  for (auto& stream : locality.streams) {
    const std::uint64_t next = stream.next.load(kRelaxed);
    if (next == 0 || page < next || page >= next + kSlackPages) continue;
    const std::uint32_t pages = std::max(smallest, std::min(stream.window.load(kRelaxed) * 2, most));
    stream.window.store(pages, kRelaxed);
    stream.next.store(page + pages, kRelaxed);
    return {pages, pages >= most ? &stream : nullptr};
  }
  auto& victim = locality.streams[locality.next_victim.fetch_add(1, kRelaxed) % state::Locality::kStreams];
  victim.window.store(smallest, kRelaxed);
  victim.next.store(page + smallest, kRelaxed);
  victim.fetched.store(0, kRelaxed);
  return {smallest, nullptr};
}

FetchAhead fetch_ahead(state::Locality::Stream& stream, std::uint64_t next) {
  const std::uint64_t end = next + kBlocksAhead;
  const std::uint64_t fetched = stream.fetched.exchange(end, kRelaxed);
  return {fetched > next && fetched <= end ? fetched : next, end};
}

void window_ended(state::Locality& locality, std::uint64_t expected, std::uint64_t next) {
  for (auto& stream : locality.streams) {
    std::uint64_t old = expected;
    if (stream.next.compare_exchange_strong(old, next, kRelaxed)) return;
  }
}

bool predict_device_write(const state::Locality& locality) {
  return locality.write_after_read.load(kRelaxed) >= kThreshold;
}

void learn_device_write(state::Locality& locality, bool written_after_read, std::uint32_t pages) {
  const std::int32_t step = pages >= 16 ? 2 : 1;
  const std::int32_t score = locality.write_after_read.load(kRelaxed) + (written_after_read ? step : -1);
  locality.write_after_read.store(std::clamp(score, 0, kCertain), kRelaxed);
}

}  // namespace uhmm::policy
