// SPDX-License-Identifier: Apache-2.0
// Ranges come and go.
#include <cerrno>

#include "runtime/base/arena.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/engine/device_pages.hpp"
#include "runtime/engine/host_pages.hpp"
#include "runtime/engine/lost_pages.hpp"
#include "runtime/engine/mappings.hpp"
#include "runtime/engine/memory_calls.hpp"
#include "runtime/engine/mirrors.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/engine/range_end.hpp"
#include "runtime/os/bare.hpp"
#include "runtime/os/mapped_object.hpp"

namespace uhmm::engine {
namespace {

// What kind of memory [begin, end) is. All of it must be of one kind that can be managed.
Result<state::Backing> inspect(Context& context, ByteRange bytes) {
  std::optional<state::Backing> backing;
  for (VirtAddr at = bytes.begin; at < bytes.end;) {
    Result<os::Mapping> found = context.process.find_mapping(at);
    if (!found.ok()) return found.status();
    const os::Mapping& mapping = *found;
    if (mapping.kind == os::MappingKind::Lost)
      return fail(UHMM_ERR_DATA_LOST, "the memory at %#lx is lost: it can be used again when it is mapped anew",
                  at.value);
    if (mapping.kind == os::MappingKind::None || !mapping.range.contains(at))
      return fail(UHMM_ERR_FAULT, "nothing is mapped at %#lx", at.value);
    if (mapping.page_bytes != kPageBytes)
      return fail(UHMM_ERR_NOT_SUPPORTED, "the memory at %#lx has pages of %lu bytes (hugetlb)", at.value,
                  mapping.page_bytes);
    if (mapping.kind == os::MappingKind::Shared && !mapping.readable)
      return fail(UHMM_ERR_FAULT, "the shared memory at %#lx is not readable", at.value);
    if (mapping.kind == os::MappingKind::PrivateFile && (!mapping.writable || mapping.executable))
      return fail(UHMM_ERR_NOT_SUPPORTED,
                  "the memory at %#lx is a private file mapping that can't be written, or is code", at.value);
    if (mapping.kind == os::MappingKind::Special)
      return fail(UHMM_ERR_NOT_SUPPORTED, "the memory at %#lx is of a special kind", at.value);
    const state::Backing kind =
        mapping.kind == os::MappingKind::Shared ? state::Backing::Shared : state::Backing::Private;
    if (backing && *backing != kind)
      return fail(UHMM_ERR_NOT_SUPPORTED, "private and shared memory meet at %#lx: register them apart", at.value);
    backing = kind;
    at = mapping.range.end;
  }
  return *backing;
}

// What the file has there stays within reach, if it can be opened.
void keep_view(const os::Mapping& mapping, ByteRange piece, std::shared_ptr<state::FileViews>& files) {
  Result<int> file = os::open_mapped_file(mapping);
  if (!file.ok()) return;
  const std::byte* view = nullptr;
  try {
    if (files == nullptr)
      files = std::allocate_shared<state::FileViews>(
          std::pmr::polymorphic_allocator<state::FileViews>(Arena::instance().resource()), Arena::instance().resource(),
          [](const state::FileViews::View& ending) {
            os::unmap(const_cast<std::byte*>(ending.bytes), ending.pages.bytes());
          });
    files->views.reserve(files->views.size() + 1);
    view = os::map_file(*file, mapping.offset + (piece.begin - mapping.range.begin), piece.bytes());
    if (view != nullptr) files->views.push_back({piece, view});
  } catch (const std::bad_alloc&) {
    log::write(log::Level::Info, "what is dropped at %#lx will read as zeros, not as the file: no memory",
               piece.begin.value);
  }
  os::bare::close(*file);
}

// userfaultfd can't watch private file mappings: anonymous memory with the same contents takes their place. That can't
// be done in one step, so it is done only while no other thread of the program could write there.
Status take_from_files(Context& context, ByteRange pages, bool caller_is_program,
                       std::shared_ptr<state::FileViews>& files) {
  for (VirtAddr at = pages.begin; at < pages.end;) {
    Result<os::Mapping> found = context.process.find_mapping(at);
    if (!found.ok()) return found.status();
    const ByteRange piece = found->range.intersect({at, pages.end});
    if (found->kind == os::MappingKind::PrivateFile) {
      const std::uint32_t runtime_threads = Thread::count();
      const bool alone = os::count_threads() == runtime_threads + 1 && Thread::count() == runtime_threads;
      if (!alone || !caller_is_program)
        return fail(UHMM_ERR_NOT_SUPPORTED,
                    "the memory at %#lx is a private file mapping: it can be registered only while the program has one "
                    "thread",
                    at.value);
      keep_view(*found, piece, files);
      const int error = os::make_anonymous(context.process, *found, piece);
      if (error == EIO)
        return fail(UHMM_ERR_NOT_SUPPORTED, "the mapping at %#lx reaches beyond the end of its file", at.value);
      if (error != 0) return fail_errno("replacing a private file mapping", error);
    }
    at = piece.end;
  }
  return {};
}

// Shared memory can be watched only if it is shmem; a mapping of an ordinary file can't. `pages` are watched by nobody.
Status try_watching(Context& context, ByteRange pages) {
  if (pages.empty()) return {};
  const os::UffdFeatures& features = context.uffd.features();
  if (!features.shared_missing || !features.shared_minor)
    return fail(UHMM_ERR_NOT_SUPPORTED, "this kernel's userfaultfd does not report faults of shared memory (5.14)");
  if (context.uffd.register_range(pages, os::kMissing | os::kMinor) != 0)
    return fail(UHMM_ERR_NOT_SUPPORTED,
                "the kernel can't watch the shared memory at %#lx (a file, or System V memory): "
                "only shared anonymous memory, memfd and POSIX shm can be managed",
                pages.begin.value);
  (void)context.uffd.unregister_range(pages);
  return {};
}

// Can pages of it be taken away? Not of a mapping that can't be written: nothing could be put back there.
Status check_can_leave(Context& context, ByteRange pages) {
  return for_each_mapping(context, pages, [](ByteRange piece, const os::Mapping& mapping) -> Status {
    if (mapping.writable) return {};
    return fail(UHMM_ERR_FAULT, "the shared memory at %#lx is not readable and writable", piece.begin.value);
  });
}

// Shared memory: do its pages migrate, or do devices work on them where they are?
Status choose_way(Context& context, Range& range, ByteRange watched_by_nobody) {
  Status migrates = check_can_leave(context, range.pages);
  if (migrates.ok()) migrates = try_watching(context, watched_by_nobody);
  if (migrates.ok() && !has_name(context, range.pages)) return {};
  char detail[kDetailBytes];
  save_detail(detail);
  if (const Status mirrors = can_mirror(context, range.pages); mirrors.ok()) {
    range.mirrored.store(true);
    return {};
  }
  if (migrates.ok()) return {};
  char why[kDetailBytes];
  save_detail(why);
  return fail(migrates.code(), "%.160s; and it can't be mirrored: %.160s", detail, why);
}

// Our own view of shared memory, mapping by mapping: neighbours need not belong to the same object.
std::byte* map_view(Context& context, ByteRange pages) {
  std::byte* view = os::reserve_addresses(pages.bytes());
  if (view == nullptr) return nullptr;
  for (VirtAddr at = pages.begin; at < pages.end;) {
    Result<os::Mapping> found = context.process.find_mapping(at);
    const ByteRange piece = found.ok() ? found->range.intersect({at, pages.end}) : ByteRange{};
    if (piece.empty() || os::map_alias(piece, view + (at - pages.begin)) != 0) {
      os::unmap(view, pages.bytes());
      return nullptr;
    }
    // Where a neighbour watches an edge, the kernel watches the view too.
    const VirtAddr there{view + (at - pages.begin)};
    (void)context.uffd.unregister_range({there, there + piece.bytes()});
    at = piece.end;
  }
  return view;
}

// Pages that ranges have in common change hands only while the gate is closed, at home, and with nothing of them on any
// device: the next range to answer for such a page has windows, counters and a watch of its own.
class SharedEdges {
 public:
  // `bytes` are about to be registered, or unregistered. Waits at the gate only if another range is on their edges.
  SharedEdges(Context& context, ByteRange bytes) : context_(context) {
    const ByteRange pages = bytes.to_pages();
    {
      const Operation operation(context_);
      const auto add = [&](VirtAddr page) {
        const ByteRange edge{page, page + kPageBytes};
        if (context_.space.touched_by_others(edge, bytes)) edges_[count_++] = edge;
      };
      add(pages.begin);
      if (pages.pages() > 1) add(pages.end - kPageBytes);
    }
    if (count_ == 0) return;
    context_.fork_gate.close();
    closed_ = true;
    for (const ByteRange& edge : edges()) {
      const Operation operation(context_);
      (void)context_.space.for_each_segment(edge, false, [&](const Segment& segment) {
        (void)to_system(context_, segment, PageMask::of(segment.run), Want::Move, UHMM_CAUSE_UNREGISTER);
        return Status{};
      });
    }
  }
  SharedEdges(const SharedEdges&) = delete;
  SharedEdges& operator=(const SharedEdges&) = delete;
  ~SharedEdges() {
    if (closed_ && context_.fork_gate.open()) retry_device_faults(context_);
  }
  std::span<const ByteRange> edges() const { return {edges_.data(), count_}; }

  // Under the exclusive lock: is all of it at home? Then devices keep nothing of it either.
  Status settle() {
    Status status;
    for (const ByteRange& edge : edges())
      UHMM_TRY(context_.space.for_each_segment(edge, false, [&](const Segment& segment) -> Status {
        const PageMask page = PageMask::of(segment.run);
        const std::scoped_lock lock(segment.block->mutex);
        if (segment.block->on_devices().intersects(page))
          return fail(UHMM_ERR_NO_MEMORY, "the page at %#lx, which ranges share, could not be brought back",
                      edge.begin.value);
        for (BlockDevice* part : segment.block->devices) {
          if (part == nullptr || !part->allocated.intersects(page)) continue;
          const DeviceIndex index{part->device};
          free_memory(context_, index, segment, page, Freeing::Now);
          if (part->allocated.intersects(page) && context_.healthy(index) != nullptr)
            return fail(UHMM_ERR_SYSTEM, "the device's page at %#lx, which ranges share, could not be freed",
                        edge.begin.value);
          refresh_list(context_, index, *part, false);
        }
        return {};
      }));
    return status;
  }

 private:
  Context& context_;
  std::array<ByteRange, 2> edges_;
  std::size_t count_ = 0;
  bool closed_ = false;
};

// Everything of the range home; nothing may leave any more.
Status close_range(Context& context, Range& range) {
  const Operation operation(context);
  bool lost = false;
  (void)context.space.for_each_segment(range.pages, false, [&](const Segment& segment) {
    if (segment.range != &range) return Status{};  // a neighbour answers for that page
    const Outcome out = to_system(context, segment, PageMask::of(segment.run), Want::Move, UHMM_CAUSE_UNREGISTER);
    lost = lost || out.skipped != 0 || !out.status.ok();
    return Status{};
  });
  return lost ? fail(UHMM_ERR_DATA_LOST, "some pages of [%#lx, %#lx) are lost", range.bytes.begin.value,
                     range.bytes.end.value)
              : Status{};
}

}  // namespace

Status register_range(Context& context, ByteRange bytes, bool caller_is_program) {
  {
    // Ahead of everything that touches the memory: it may be watched already.
    const Operation operation(context);
    UHMM_TRY(context.space.check_free(bytes));
  }
  SharedEdges shared(context, bytes);
  Result<state::Backing> backing = inspect(context, bytes);
  if (!backing.ok()) return backing.status();
  std::shared_ptr<state::FileViews> files;
  UHMM_TRY(take_from_files(context, bytes.to_pages(), caller_is_program, files));
  Range* range = make_in_arena<Range>(bytes, *backing);
  if (range == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for a range's metadata");
  range->can_move.store(*backing == state::Backing::Private);
  range->files = std::move(files);
  Status status;
  if (*backing == state::Backing::Shared) {
    ByteRange fresh = range->pages;
    for (const ByteRange& edge : shared.edges()) {
      if (fresh.begin == edge.begin) fresh.begin = edge.end;
      if (fresh.end == edge.end) fresh.end = edge.begin;
    }
    status = choose_way(context, *range, fresh);
    if (status.ok() && !range->mirrored.load()) {
      range->alias = map_view(context, range->pages);
      if (range->alias == nullptr) status = fail(UHMM_ERR_NO_MEMORY, "no address space for a second view");
    }
  }
  if (status.ok()) {
    const std::unique_lock lock(context.space.mutex());
    status = shared.settle();
    if (status.ok()) status = context.space.insert(range);
    if (status.ok()) find_lost_pages(context, *range);
    if (status.ok() && range->mirrored.load()) context.mirrored_ranges.fetch_add(1);
    if (status.ok())
      for (DeviceSlot& slot : context.slots)
        if (slot.device != nullptr) slot.unattached.fetch_add(1);
  }
  if (!status.ok()) {
    os::unmap(range->alias, range->pages.bytes());
    destroy_in_arena(range);
    return status;
  }
  // Not by the range, which somebody may have ended already.
  context.record(UHMM_EVENT_REGISTER, UHMM_CAUSE_USER, bytes, static_cast<std::uint32_t>(bytes.to_pages().pages()), 0);
  return {};
}

Status unregister_range(Context& context, VirtAddr begin) {
  Range* range = nullptr;
  {
    const Operation operation(context);
    range = context.space.find_byte(begin);
    if (range == nullptr || range->bytes.begin != begin)
      return fail(UHMM_ERR_NOT_REGISTERED, "no registered range begins at %#lx", begin.value);
    if (range->holds.load() != 0)
      return fail(UHMM_ERR_BUSY, "the range at %#lx is acquired, or queued work uses it", begin.value);
    if (range->closing.exchange(true))
      return fail(UHMM_ERR_BUSY, "the range at %#lx is being unregistered already", begin.value);
  }
  SharedEdges shared(context, range->bytes);
  Status status = close_range(context, *range);
  {
    const std::unique_lock lock(context.space.mutex());
    if (const Status settled = shared.settle(); !settled.ok()) {
      range->closing.store(false);
      return settled;
    }
    if (range->pages_out.load() != 0) {
      // Pages that can't come home now (no system memory): management goes on, nothing is lost.
      range->closing.store(false);
      return fail(UHMM_ERR_NO_MEMORY, "pages of the range at %#lx could not be brought back", begin.value);
    }
    end_range(context, range);
  }
  return status;
}

void retry_device_faults(Context& context) {
  const Operation operation(context);
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    Device* device = context.healthy(DeviceIndex{i});
    if (device == nullptr) continue;
    for (const auto& [begin, range] : context.space.ranges())
      if ((range->attached.load() & (1u << i)) != 0) device->wake(range->pages);
  }
}

Status unregister_all(Context& context) {
  Status status;
  for (;;) {
    VirtAddr begin;
    {
      const Operation operation(context);
      if (context.space.ranges().empty()) return status;
      Range* range = context.space.ranges().begin()->second;
      begin = range->bytes.begin;
      range->holds.store(0);
    }
    const Status done = unregister_range(context, begin);
    if (done.ok()) continue;
    status = done;
    if (done.code() != UHMM_ERR_DATA_LOST) return status;
  }
}

}  // namespace uhmm::engine
