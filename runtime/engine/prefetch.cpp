// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/prefetch.hpp"

#include "runtime/base/arena.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/evictor.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/policy/fault_around.hpp"

namespace uhmm::engine {
namespace {

struct Fetch : WorkerPool::Work {
  Context* context = nullptr;
  VirtAddr block;
  bool to_cpu = true;
  DeviceIndex device;
  Want want = Want::Move;
};

void fetch(Fetch& job) {
  Context& context = *job.context;
  if (!job.to_cpu && !context.fork_gate.try_enter()) return;
  {
    const Operation operation(context);
    const ByteRange pages{job.block, job.block + kBlockBytes};
    (void)context.space.for_each_segment(pages, !job.to_cpu, [&](const Segment& segment) {
      if (segment.range->advice.pinned.load() || segment.range->closing.load()) return Status{};
      PageMask wanted = PageMask::of(segment.run);
      wanted.reset(segment.run.first);
      if (job.to_cpu)
        (void)to_system(context, segment, wanted, Want::Move, UHMM_CAUSE_PREFETCH_FAULT);
      else if (attach(context, *segment.range, job.device).ok())  // a neighbour may be new to the device
        (void)migrate_to_device(context, segment, wanted, {job.device, job.want, UHMM_CAUSE_PREFETCH_FAULT, PageMask{}},
                                pages);
      return Status{};
    });
  }
  if (!job.to_cpu) context.fork_gate.leave();
}

void post(Context& context, VirtAddr next, state::Locality::Stream& stream, bool to_cpu, DeviceIndex device,
          Want want) {
  const Range* range = context.space.find_page(next);
  if (range == nullptr) return;
  const policy::FetchAhead blocks = policy::fetch_ahead(stream, next.value >> kBlockShift);
  for (std::uint64_t number = blocks.begin; number < blocks.end; ++number) {
    const VirtAddr block{number << kBlockShift};
    if (block >= range->pages.end) return;
    Block* found = context.space.find_block(block);
    if (to_cpu) {
      if (found == nullptr) continue;
      const std::scoped_lock lock(found->mutex);
      if (found->away().count() <= 1 || found->is_huge()) continue;
    }
    Fetch* job = make_in_arena<Fetch>();
    if (job == nullptr) return;
    job->context = &context;
    job->block = block;
    job->to_cpu = to_cpu;
    job->device = device;
    job->want = want;
    job->run = [](WorkerPool::Work& work) {
      auto& self = static_cast<Fetch&>(work);
      fetch(self);
      destroy_in_arena(&self);
    };
    context.workers.post(*job);
  }
}

}  // namespace

void prefetch_to_system(Context& context, VirtAddr next, state::Locality::Stream& stream) {
  post(context, next, stream, true, {}, Want::Move);
}

void prefetch_to_device(Context& context, VirtAddr next, state::Locality::Stream& stream, DeviceIndex device,
                        Want want) {
  post(context, next, stream, false, device, want);
}

}  // namespace uhmm::engine
