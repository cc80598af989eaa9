// SPDX-License-Identifier: Apache-2.0
// The parent's side of one fork: what stays on devices is written down for the child, what can't stay comes home.
#include <sys/resource.h>

#include <algorithm>
#include <mutex>

#include "runtime/base/arena.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/engine/block_scope.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/fork_keeper.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/memory_calls.hpp"
#include "runtime/engine/migrator.hpp"
#include "runtime/engine/mirrors.hpp"
#include "runtime/os/descriptors.hpp"
#include "runtime/os/fork_advice.hpp"

namespace uhmm::engine {
namespace {

// Bringing less home than this costs no more than a thread for the child and its files.
constexpr std::int64_t kFewestPages = 128;

// Of the file that keeps pages; a page lies there at its address.
constexpr std::uint64_t kFileBytes = std::uint64_t{1} << 47;

// ThreadSanitizer takes what a forked child does for its parent's.
#if defined(__SANITIZE_THREAD__)
constexpr bool kChildrenMayHaveThreads = false;
#else
constexpr bool kChildrenMayHaveThreads = true;
#endif

bool file_may_be_that_large() {
  struct rlimit limit {};
  return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur >= kFileBytes;
}

// Mappings that a child finds empty, ascending.
class Wiped {
 public:
  Wiped() : ranges_(Arena::instance().resource()) {
    known_ = os::for_each_wiped(
        [](void* self, ByteRange pages) { static_cast<Wiped*>(self)->ranges_.push_back(pages); }, this);
  }
  bool known() const { return known_; }
  PageMask in(const Block& block) const {
    PageMask mask;
    const ByteRange whole{block.base, block.base + kBlockBytes};
    for (const ByteRange& range : ranges_) {
      const ByteRange part = range.intersect(whole);
      if (!part.empty()) mask.set({part.begin.page_in_block(), static_cast<std::uint32_t>(part.bytes() >> kPageShift)});
    }
    return mask;
  }

 private:
  std::pmr::vector<ByteRange> ranges_;
  bool known_ = false;
};

}  // namespace

Status ForkKeeper::prepare() {
  context_.news.begin();
  pause(true);
  arrived_.store(false);
  Status status;
  const bool snapshot = worth_it() && leave_it_there();
  if (!snapshot) status = engine::bring_home(context_, kMaxDevices, UHMM_CAUSE_FORK);
  // What is watched is not in copies that nobody is told of; of this one we know.
  if (!context_.uffd.features().follows_forks) stop_watching_home();
  // The child has shared memory in common with its parent from now on, and nobody can tell what it does with it.
  mirror_shared_memory(context_);
  // What could not come home is not in the child: it raises SIGBUS there, as in any copy that nobody was told of; or
  // SIGSEGV, with all of its range, where nobody is told of copies.
  mode_.store(snapshot ? Mode::Snapshot : status.ok() ? Mode::Whole : Mode::None);
  return status;
}

void ForkKeeper::stop_watching_home() {
  const Operation operation(context_);
  const state::VaSpace::RangeMap& ranges = context_.space.ranges();
  for (const auto& [begin, range] : ranges) {
    disarm_if_home(context_, *range);
    // The pages that it shares with neighbours too.
    if (range->pages_out.load() == 0) context_.copy_shield.lower(context_, range->pages);
  }
  for (const auto& [begin, range] : ranges)
    if (range->pages_out.load() != 0) context_.copy_shield.raise(context_, *range, range->pages);
}

void ForkKeeper::bring_home(ByteRange pages) {
  const Operation operation(context_);
  (void)context_.space.for_each_segment(pages, false, [&](const Segment& segment) {
    (void)to_system(context_, segment, PageMask::of(segment.run), Want::Move, UHMM_CAUSE_FORK);
    return Status{};
  });
}

// False: not everything of it can be left there.
bool ForkKeeper::leave_it_there() {
  bring_rest_home();
  ForkSnapshot* snapshot = make_table();
  if (snapshot == nullptr) return false;
  if (!add_child(snapshot)) {
    ForkSnapshot::unmap(snapshot);
    return false;
  }
  if (write_down(*snapshot)) return true;
  cancel(*forking_.exchange(nullptr));
  return false;
}

void ForkKeeper::cancel(ForkChild& child) {
  child.canceled.store(true);
  child.forked.store(true);
  os::ring(wake_fd_);
}

void ForkKeeper::finish_in_parent() {
  // The kernel lets the thread go on when its news has been read; it may not have been told yet.
  context_.uffd.let_tell();
  mode_.store(Mode::None);
  context_.uffd.let_tell();  // somebody may have seen the mode before
  context_.news.end();
  if (ForkChild* child = forking_.exchange(nullptr); child != nullptr) {
    os::close_kept(std::exchange(child->child_socket, -1));
    child->snapshot->set_inherited(false);
    child->forked.store(true);
    // There is no child, or nothing of the watched memory is in it.
    if (!arrived_.load()) cancel(*child);
  }
  pause(false);
  if (thread_.running()) os::ring(wake_fd_);
}

bool ForkKeeper::worth_it() const {
  if (!kChildrenMayHaveThreads || !thread_.running() || !context_.uffd.features().kernel_mode ||
      !context_.uffd.features().poison || (context_.config.flags & UHMM_CONFIG_FORK_HOME) != 0 ||
      inject::should_fail(inject::Point::SnapshotMake))
    return false;
  const Operation operation(context_);
  std::int64_t pages = 0;
  for (const auto& [begin, range] : context_.space.ranges())
    if (range->backing == state::Backing::Private) pages += range->pages_out.load();
  return pages >= kFewestPages && file_may_be_that_large();
}

bool ForkKeeper::can_stay(const BlockDevice& part) const {
  const Device* device = context_.healthy(DeviceIndex{part.device});
  return device != nullptr && device->memory_file() >= 0 && device->capabilities().read_only_maps;
}

// Shared memory, which the child must find in its own mapping; memory that a device has alone, or that the CPU reaches
// on the device; and what the device's backend can't show to another process.
void ForkKeeper::bring_rest_home() {
  const Operation operation(context_);
  for (const auto& [begin, range] : context_.space.ranges()) {
    if (range->pages_out.load() == 0) continue;
    (void)context_.space.for_each_segment(range->pages, false, [&, range = range](const Segment& segment) {
      if (segment.range != range) return Status{};
      PageMask pages;
      {
        Block& block = *segment.block;
        const std::scoped_lock lock(block.mutex);
        pages = range->backing == state::Backing::Shared ? block.on_devices() : block.exclusive | block.in_place;
        for (const BlockDevice* part : block.devices)
          if (part != nullptr && !can_stay(*part)) pages |= part->resident & block.away();
      }
      pages &= PageMask::of(segment.run);
      if (pages.any()) (void)to_system(context_, segment, pages, Want::Move, UHMM_CAUSE_FORK);
      return Status{};
    });
  }
}

ForkSnapshot* ForkKeeper::make_table() {
  const Operation operation(context_);
  std::uint32_t entries = 0;
  for (const auto& [begin, range] : context_.space.ranges()) {
    if (range->pages_out.load() == 0) continue;
    if (range->backing == state::Backing::Shared) return nullptr;  // it could not come home
    (void)context_.space.for_each_segment(range->pages, false, [&](const Segment& segment) {
      const std::scoped_lock lock(segment.block->mutex);
      for (const BlockDevice* part : segment.block->devices)
        if (part != nullptr && part->resident.any()) ++entries;
      return Status{};
    });
  }
  return ForkSnapshot::make(entries, static_cast<std::uint32_t>(context_.space.ranges().size()));
}

bool ForkKeeper::write_down(ForkSnapshot& snapshot) {
  const Wiped wiped;
  if (!wiped.known()) return false;
  const Operation operation(context_);
  for (const auto& [begin, range] : context_.space.ranges()) {
    {
      const std::scoped_lock lock(range->arm_mutex);
      if (range->armed) snapshot.add_range(range->pages);
    }
    if (range->backing != state::Backing::Private || range->pages_out.load() == 0) continue;
    const Status walked =
        context_.space.for_each_segment(range->pages, false, [&, range = range](const Segment& segment) -> Status {
          if (segment.range != range || owe(snapshot, segment, wiped.in(*segment.block))) return {};
          return UHMM_ERR_SYSTEM;
        });
    if (!walked.ok()) return false;
  }
  return true;
}

// False: something can't stay as it is.
bool ForkKeeper::owe(ForkSnapshot& snapshot, const Segment& segment, const PageMask& wiped) {
  Block& block = *segment.block;
  const std::scoped_lock lock(block.mutex);
  const PageMask away = (block.away() & PageMask::of(segment.run)).minus(wiped);
  if (away.none()) return true;
  if (away.intersects(block.exclusive | block.in_place)) return false;  // it could not come home
  for (BlockDevice* part : block.devices) {
    if (part == nullptr) continue;
    const PageMask theirs = part->resident & away;
    if (theirs.none()) continue;
    if (!can_stay(*part)) return false;
    const DeviceIndex index{part->device};
    Device& device = *context_.slot(index).device;
    // No write there from now on. Where nothing runs it is enough that none can begin: flush_stale() sees to that.
    block.owed |= theirs;
    const bool later = context_.slot(index).memory.defer_unmap(part, [&] { return device.busy(); });
    if (!later && !revoke_write(context_, index, *part, theirs).ok()) return false;
    const std::scoped_lock table(mutex_);
    snapshot.add_owed(block.base, index, theirs);
  }
  return true;
}

bool ForkKeeper::add_child(ForkSnapshot* snapshot) {
  auto* child = make_in_arena<ForkChild>();
  if (child == nullptr) return false;
  child->snapshot = snapshot;
  child->in_copy = make_array_in_arena<SharedMask>(snapshot->most_entries());
  int ends[2] = {-1, -1};
  bool good = child->in_copy != nullptr && os::make_channel(ends) == 0;
  child->socket = os::keep_descriptor(ends[0]);
  child->child_socket = os::keep_descriptor(ends[1]);
  child->files.kept = os::keep_descriptor(os::make_memory_file("uhmm-fork", kFileBytes));
  good = good && child->files.kept >= 0;
  {
    const Operation operation(context_);
    for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
      const Device* device = context_.healthy(DeviceIndex{i});
      if (device == nullptr || device->memory_file() < 0) continue;
      child->files.devices[i] = os::keep_descriptor(os::duplicate_read_only(device->memory_file()));
      good = good && child->files.devices[i] >= 0;
    }
  }
  if (!good) {
    for (const int fd : {child->socket, child->child_socket, child->files.kept}) os::close_kept(fd);
    for (const int fd : child->files.devices) os::close_kept(fd);
    destroy_array_in_arena(child->in_copy, snapshot->most_entries());
    destroy_in_arena(child);
    return false;
  }
  const std::scoped_lock lock(mutex_);
  child->next = children_;
  children_ = child;
  forking_.store(child);
  return true;
}

}  // namespace uhmm::engine
