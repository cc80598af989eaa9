// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/pool_calls.hpp"

#include "runtime/base/arena.hpp"

namespace uhmm::engine {
namespace {

struct NotedCall {
  NotedCall* next;
  std::uint32_t pool;
  ByteRange pages;
  uhmm_cause cause;
};
thread_local NotedCall* noted_calls = nullptr;

}  // namespace

Operation::~Operation() {
  context_.space.mutex().unlock_shared();
  if (noted_calls != nullptr) deliver_pool_calls(context_);
}

void note_freed(Context& context, const Segment& segment, DeviceIndex device, const PageMask& pages, uhmm_cause cause) {
  const std::uint32_t count = pages.count();
  if (count == 0) return;
  context.count(*segment.range, trace::CauseCounter::PagesFreed, cause, count);
  const std::uint32_t index = segment.range->pool.load();
  Pool& pool = context.pools[index];
  if (index == 0 || pool.device != device.value || pool.ops.page_free == nullptr) return;
  pages.for_each_run([&](PageRun run) {
    auto* call = make_in_arena<NotedCall>(NotedCall{noted_calls, index, segment.block->range_of(run), cause});
    if (call == nullptr) return;  // out of memory: the owner misses a notice, nothing else
    pool.calls.fetch_add(1);
    noted_calls = call;
  });
}

void deliver_pool_calls(Context& context) {
  while (noted_calls != nullptr) {
    NotedCall* call = noted_calls;
    noted_calls = call->next;
    Pool& pool = context.pools[call->pool];
    for (VirtAddr at = call->pages.begin; at < call->pages.end; at = at + kPageBytes)
      pool.ops.page_free(pool.context, at.value, call->cause);
    pool.calls.fetch_sub(1);
    destroy_in_arena(call);
  }
}

uhmm_fault_action ask_owner(Context& context, std::uint32_t index, const uhmm_fault_info& info) {
  if (index == 0) return UHMM_FAULT_MIGRATE;
  Pool& pool = context.pools[index];
  pool.calls.fetch_add(1);
  uhmm_fault_action action = UHMM_FAULT_MIGRATE;
  if (pool.id.load() != 0 && pool.ops.page_fault != nullptr) action = pool.ops.page_fault(pool.context, &info);
  pool.calls.fetch_sub(1);
  return action;
}

}  // namespace uhmm::engine
