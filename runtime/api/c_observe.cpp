// SPDX-License-Identifier: Apache-2.0
// Public calls that observe.
#include "runtime/api/runtime.hpp"
#include "runtime/base/arena.hpp"

using namespace uhmm;
using api::Runtime;

namespace {

Status check_stats(const uhmm_stats* out) {
  if (out != nullptr && out->size >= sizeof(uhmm_stats)) return {};
  return fail(UHMM_ERR_INVALID, "a uhmm_stats with its size set is needed");
}

void measure(Runtime& rt, uhmm_stats& stats) {
  stats.metadata_bytes = Arena::instance().bytes_in_use();
  stats.staging_bytes = rt.context.staging.bytes_held();
}

struct Answer {
  Status status;
  uhmm_stats stats;
};

uhmm_status deliver(const Answer& answer, uhmm_stats* out) {
  if (!answer.status.ok()) return answer.status.code();
  const std::size_t size = out->size;
  *out = answer.stats;
  out->size = size;
  return UHMM_OK;
}

}  // namespace

extern "C" {

uhmm_status uhmm_get_stats(uhmm_stats* out) {
  UHMM_RUNTIME(rt);
  if (const Status good = check_stats(out); !good.ok()) return good.code();
  const Answer answer = rt->context.workers.call([rt]() -> Answer {
    Answer found{};
    const engine::Operation operation(rt->context);
    for (const auto& [begin, range] : rt->context.space.ranges()) engine::wait_for_moves(rt->context, *range);
    rt->context.totals.snapshot(found.stats);
    found.stats.registered_bytes = rt->context.space.registered_bytes();
    found.stats.ranges = rt->context.space.ranges().size();
    measure(*rt, found.stats);
    return found;
  });
  return deliver(answer, out);
}

uhmm_status uhmm_get_range_stats(const void* address, uhmm_stats* out) {
  UHMM_RUNTIME(rt);
  if (const Status good = check_stats(out); !good.ok()) return good.code();
  const Answer answer = rt->context.workers.call([rt, at = VirtAddr{address}]() -> Answer {
    Answer found{};
    const engine::Operation operation(rt->context);
    const state::Range* range = rt->context.space.find_byte(at);
    if (range == nullptr) {
      found.status = fail(UHMM_ERR_NOT_REGISTERED, "%#lx is not registered", at.value);
      return found;
    }
    engine::wait_for_moves(rt->context, *range);
    range->counters.snapshot(found.stats);
    found.stats.registered_bytes = range->bytes.bytes();
    found.stats.ranges = 1;
    measure(*rt, found.stats);
    return found;
  });
  return deliver(answer, out);
}

uhmm_status uhmm_event_subscribe(uint64_t kinds, uhmm_event_callback callback, void* context, uhmm_subscription* out) {
  UHMM_RUNTIME(rt);
  if (out == nullptr) return fail(UHMM_ERR_INVALID, "out is NULL").code();
  const Result<uhmm_subscription> made = rt->notifier.subscribe(kinds, callback, context);
  if (made.ok()) *out = made.value();
  return made.status().code();
}

uhmm_status uhmm_event_unsubscribe(uhmm_subscription subscription) {
  UHMM_RUNTIME(rt);
  return rt->notifier.unsubscribe(subscription).code();
}

uhmm_status uhmm_event_read(uint64_t* cursor, uhmm_event* events, size_t capacity, size_t* count) {
  UHMM_RUNTIME(rt);
  if (cursor == nullptr || count == nullptr || (events == nullptr && capacity != 0))
    return fail(UHMM_ERR_INVALID, "cursor, count or events is NULL").code();
  std::uint64_t at = *cursor;
  *count = rt->context.events.read(at, events, capacity);
  *cursor = at;
  return UHMM_OK;
}

}  // extern "C"
