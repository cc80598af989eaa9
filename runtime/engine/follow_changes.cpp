// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/follow_changes.hpp"

#include <cerrno>
#include <ctime>

#include "runtime/base/log.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/range_end.hpp"

namespace uhmm::engine {
namespace {

constexpr timespec kMoment{0, 1'000'000};

// What was away of moved memory, on its way to where it is now.
class Rescued {
 public:
  Rescued(Context& context, const os::UffdMove& move, std::span<std::byte, kMovePiece> buffer)
      : context_(context), move_(move), buffer_(buffer.data()) {}

  // Under the exclusive lock: what only devices have of the segment is brought.
  Status bring(const Segment& segment);

 private:
  template <typename Act>
  void for_each_place(VirtAddr from, std::uint64_t bytes, Act&& act);
  void put(VirtAddr from, std::uint64_t bytes);
  void poison(ByteRange pages);
  VirtAddr target(VirtAddr address) const { return move_.to + (address - move_.from); }

  Context& context_;
  const os::UffdMove& move_;
  std::byte* const buffer_;
};

// act(place, bytes) for what came to [from, from + bytes), until it is done for all of it. The program may go on moving
// the memory, and unmap it.
template <typename Act>
void Rescued::for_each_place(VirtAddr from, std::uint64_t bytes, Act&& act) {
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint32_t told = context_.changes.told();
    const MapChanges::Place place = context_.changes.place_now(target(from + done), bytes - done);
    if (!place.address) {
      done += place.bytes;
      continue;
    }
    const os::Progress progress = act(*place.address, done, place.bytes);
    done += progress.done;
    if (progress.error == 0 || progress.error == EAGAIN) continue;
    if (progress.error == EEXIST) {
      done += kPageBytes;  // it is there already
      continue;
    }
    if (progress.error == ENOMEM) {
      (void)nanosleep(&kMoment, nullptr);
      continue;
    }
    // The place is gone; or it has moved on, and that is news.
    context_.uffd.read_on();
    if (context_.uffd.all_told() && told == context_.changes.told()) done += kPageBytes;
  }
}

void Rescued::put(VirtAddr from, std::uint64_t bytes) {
  for_each_place(from, bytes, [&](VirtAddr place, std::uint64_t done, std::uint64_t most) {
    return context_.uffd.copy(place, buffer_ + done, most);
  });
}

void Rescued::poison(ByteRange pages) {
  for_each_place(pages.begin, pages.bytes(), [&](VirtAddr place, std::uint64_t, std::uint64_t most) {
    const ByteRange there{place, place + most};
    if (context_.uffd.features().poison) return context_.uffd.poison(there);
    const Replacing replacing(context_.news, context_.uffd, there);
    return os::Progress{most, os::map_bus_error(there)};
  });
}

Status Rescued::bring(const Segment& segment) {
  const Block& block = *segment.block;
  const PageMask mine = PageMask::of(segment.run);
  for (BlockDevice* part : segment.block->devices) {
    if (part == nullptr) continue;
    const DeviceIndex index{part->device};
    Device* device = context_.healthy(index);
    const PageMask theirs = part->resident & block.away().minus(block.in_place) & mine;
    if (theirs.none()) continue;
    Status status;
    if (device == nullptr || !revoke(context_, index, *part, theirs).ok())
      status = fail(UHMM_ERR_DEVICE_LOST, "device %u can't give back what it has", index.processor());
    theirs.for_each_run([&](PageRun run) {
      const ByteRange pages = block.range_of(run);
      const backend::Window& window = segment.range->windows[index.value];
      if (segment.range->backing == state::Backing::Shared) {
        // It is the same memory, wherever it is mapped.
        if (status.ok()) status = device->copy_out(window, pages, in_alias(segment, run));
        return;
      }
      for (VirtAddr at = pages.begin; at < pages.end && status.ok(); at = at + kMovePiece) {
        const ByteRange piece = pages.intersect({at, at + kMovePiece});
        status = device->copy_out(window, piece, buffer_);
        if (status.ok()) put(piece.begin, piece.bytes());
      }
      // What can't be read from the device is lost, not zeros.
      if (!status.ok() && status.code() != UHMM_ERR_NO_MEMORY) poison(pages);
    });
    if (status.code() == UHMM_ERR_NO_MEMORY) return status;
  }
  (block.lost & mine).for_each_run([&](PageRun run) { poison(block.range_of(run)); });
  return {};
}

// Whatever is in the way, such as a lack of memory: to give up would be worse than to wait.
void end_gone(Context& context, ByteRange pages, Rescue rescue = nullptr, void* argument = nullptr) {
  while (!end_gone_pages(context, pages, rescue, argument).ok()) (void)nanosleep(&kMoment, nullptr);
}

bool is_managed(Context& context, ByteRange pages) {
  const Operation operation(context);
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  const auto next = ranges.lower_bound(pages.end.value);
  return next != ranges.begin() && std::prev(next)->second->pages.end > pages.begin;
}

}  // namespace

void watch_no_more(Context& context, VirtAddr address) {
  const Operation operation(context);
  Result<os::Mapping> mapping = context.process.find_mapping(address);
  if (!mapping.ok() || !mapping->range.contains(address)) return;
  ByteRange pages = mapping->range;
  const state::VaSpace::RangeMap& ranges = context.space.ranges();
  const auto above = ranges.upper_bound(address.value);
  if (above != ranges.end()) pages.end = std::min(pages.end, above->second->pages.begin);
  if (above != ranges.begin()) pages.begin = std::max(pages.begin, std::prev(above)->second->pages.end);
  if (pages.empty() || !pages.contains(address)) return;
  (void)context.uffd.write_protect(pages, false);
  (void)context.uffd.unregister_range(pages);
  context.copy_shield.lower(context, pages);
}

void follow_move(Context& context, const os::UffdMove& move, std::span<std::byte, kMovePiece> buffer) {
  const ByteRange from{move.from, move.from + move.bytes};
  // A second view of shared memory (length 0) takes nothing from the first.
  if (!from.empty() && is_managed(context, from)) {
    Rescued rescued(context, move, buffer);
    end_gone(
        context, from, [](void* self, const Segment& segment) { return static_cast<Rescued*>(self)->bring(segment); },
        &rescued);
    log::write(log::Level::Info, "the program moved managed memory from %#lx to %#lx: it is not registered any more",
               move.from.value, move.to.value);
  }
  // Ordinary memory from now on, unless something else has come there, which may have contents on the way.
  if (!context.changes.changed_again({move.to, move.to + std::max<std::uint64_t>(move.bytes, kPageBytes)}))
    watch_no_more(context, move.to);
}

void follow_unmap(Context& context, ByteRange pages) {
  if (!is_managed(context, pages)) return;
  end_gone(context, pages);
  log::write(log::Level::Info, "the program unmapped managed memory at %#lx: it is not registered any more",
             pages.begin.value);
}

}  // namespace uhmm::engine
