// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/reporter.hpp"

#include <cstring>

#include "runtime/base/log.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/memory_calls.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/report_format.hpp"
#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/process.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::engine {
namespace {

// Records go to the file in pieces: there may be very many ranges, and the heap is not ours to use.
class Records {
 public:
  explicit Records(int file) : file_(file) {}
  void add(const void* record, std::size_t bytes) {
    if (used_ + bytes > sizeof(buffer_)) flush();
    std::memcpy(buffer_ + used_, record, bytes);
    used_ += bytes;
  }
  // 0 or the first errno.
  int flush() {
    if (error_ == 0) error_ = os::write_all(file_, buffer_, used_);
    used_ = 0;
    return error_;
  }

 private:
  int file_;
  int error_ = 0;
  std::size_t used_ = 0;
  char buffer_[16384];
};

ReportDevice describe(const DeviceSlot& slot, std::uint32_t processor) {
  ReportDevice out;
  const bool lost = slot.lost.load();
  out.processor = processor;
  out.flags = (slot.capabilities.coherent ? UHMM_DEVICE_COHERENT : 0) |
              (slot.capabilities.faulting ? UHMM_DEVICE_FAULTING : 0) | (lost ? UHMM_DEVICE_IS_LOST : 0);
  out.memory_pages = slot.memory.capacity();
  out.current_pages = slot.current_pages.load();
  static_assert(sizeof(out.name) == sizeof(slot.capabilities.name));
  std::memcpy(out.name, slot.capabilities.name, sizeof(out.name));
  if (lost) std::memcpy(out.lost_reason, slot.lost_reason, sizeof(out.lost_reason));
  return out;
}

ReportRange describe(Context& context, const Range& range) {
  ReportRange out;
  out.begin = range.bytes.begin.value;
  out.end = range.bytes.end.value;
  out.first_page = range.pages.begin.value;
  out.end_page = range.pages.end.value;
  out.shared_memory = range.backing == state::Backing::Shared ? 1 : 0;
  out.pool = range.pool.load();
  (void)context.space.for_each_segment(range.pages, false, [&](const Segment& segment) {
    if (segment.range != &range) return Status{};  // a neighbour answers for that page
    const PageMask mine = PageMask::of(segment.run);
    const std::scoped_lock lock(segment.block->mutex);
    const Block& block = *segment.block;
    out.device += (block.away() & mine).count();
    out.shared += (block.shared() & mine).count();
    out.exclusive += (block.exclusive & mine).count();
    out.in_place += (block.in_place & mine).count();
    out.lost += (block.lost & mine).count();
    for (const BlockDevice* part : block.devices)
      if (part != nullptr) out.on_device[part->device] += (part->resident & mine).count();
    return Status{};
  });
  uhmm_stats counted = UHMM_STATS_INIT;
  range.counters.snapshot(counted);
  out.cpu_faults = counted.cpu_faults;
  out.device_faults = counted.device_faults;
  out.preferred = range.advice.preferred.load();
  out.accessed_by = range.advice.accessed_by.load();
  out.read_mostly = range.advice.read_mostly.load() ? 1 : 0;
  out.pinned = range.advice.pinned.load() ? 1 : 0;
  out.held = range.holds.load() != 0 ? 1 : 0;
  out.marked = marks_away(context, range) ? 1 : 0;
  out.poisoned = context.uffd.features().poison ? 1 : 0;
  return out;
}

}  // namespace

Status write_report(Context& context, int file) {
  ReportHeader header;
  header.device_bytes = sizeof(ReportDevice);
  header.range_bytes = sizeof(ReportRange);
  header.version = UHMM_VERSION;
  Records records(file);
  const Operation operation(context);
  for (const DeviceSlot& slot : context.slots) header.devices += slot.device != nullptr ? 1 : 0;
  header.ranges = context.space.ranges().size();
  records.add(&header, sizeof(header));
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    if (context.slots[i].device == nullptr) continue;
    const ReportDevice device = describe(context.slots[i], DeviceIndex{i}.processor());
    records.add(&device, sizeof(device));
  }
  for (const auto& [begin, range] : context.space.ranges()) {
    const ReportRange described = describe(context, *range);
    records.add(&described, sizeof(described));
  }
  if (const int error = records.flush(); error != 0) return fail_errno("writing a report", error);
  return {};
}

Status Reporter::start() {
  UHMM_TRY(service_.open());
  const Status started = thread_.start("uhmm-report", run, this);
  if (!started.ok()) service_.close();
  return started;
}

void Reporter::stop() {
  service_.stop();
  thread_.join();
  service_.close();
}

void Reporter::forget_thread() {
  thread_.forget();
  service_.close();
}

void Reporter::run(void* self) {
  WorkerPool::enter_runtime_thread();
  auto& reporter = *static_cast<Reporter*>(self);
  for (;;) {
    const int caller = reporter.service_.accept();
    if (caller < 0) return;
    reporter.answer(caller, os::LocalService::request_of(caller));
    os::close_descriptor(caller);
  }
}

void Reporter::answer(int caller, char request) {
  if (request == static_cast<char>(Request::BringHome)) {
    // What could not come the report tells.
    (void)bring_home(context_, kMaxDevices, UHMM_CAUSE_USER);
    deliver_pool_calls(context_);
  } else if (request != static_cast<char>(Request::Report)) {
    return;
  }
  const int file = os::make_empty_file("uhmm-report");
  if (file < 0) return;
  // Whoever called and hears nothing finds the connection closed.
  if (write_report(context_, file).ok()) {
    const char yes = 1;
    (void)os::send_message(caller, &yes, sizeof(yes), file);
  }
  os::close_descriptor(file);
}

}  // namespace uhmm::engine
