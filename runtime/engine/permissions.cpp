// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/permissions.hpp"

#include <mutex>

#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {

Permissions permissions_of(Context& context, const Segment& segment) {
  Permissions found;
  const ByteRange all = segment.block->range_of(segment.run);
  for (VirtAddr at = all.begin; at < all.end;) {
    Result<os::Mapping> mapping = context.process.find_access(at);
    if (!mapping.ok()) {
      found.readable = PageMask::of(segment.run).minus(os::holes(segment.block->base, segment.run));
      found.writable = found.readable;
      return found;
    }
    const ByteRange part = mapping->range.intersect({at, all.end});
    if (part.empty()) break;
    const PageRun run{part.begin.page_in_block(), static_cast<std::uint32_t>(part.pages())};
    if (mapping->readable) found.readable.set(run);
    if (mapping->readable && mapping->writable) found.writable.set(run);
    at = part.end;
  }
  return found;
}

PageMask guards_of(Context& context, const Segment& segment) {
  Result<PageMask> found = context.process.guarded(segment.block->base, segment.run);
  return found.ok() ? *found : PageMask{};
}

Status check_same_memory(Context& context, const Range& range) {
  // A neighbour's part of a page on the edge may be away already, and mapped in place.
  const ByteRange own = context.space.pages_not_shared(range);
  for (VirtAddr at = own.begin; at < own.end;) {
    Result<os::Mapping> here = context.process.find_access(at);
    if (!here.ok()) return {};
    const ByteRange piece = here->range.intersect({at, own.end});
    if (piece.empty()) return {};
    bool same = !here->shared;
    if (range.backing == state::Backing::Shared) {
      const VirtAddr view{range.alias + (piece.begin - range.pages.begin)};
      Result<os::Mapping> ours = context.process.find_access(view);
      same = ours.ok() && here->shared && ours->file_system == here->file_system && ours->inode == here->inode &&
             ours->offset + (view - ours->range.begin) == here->offset + (piece.begin - here->range.begin);
    }
    if (!same) {
      Result<os::Mapping> all = context.process.find_mapping(piece.begin);
      if (!all.ok() || all->kind != os::MappingKind::Lost)
        return fail(UHMM_ERR_NOT_REGISTERED, "at %#lx something else is mapped than what was registered there",
                    piece.begin.value);
    }
    at = piece.end;
  }
  return {};
}

namespace {

// Of ranges that are watched the kernel would have told.
Status check_unwatched(Context& context, ByteRange pages) {
  VirtAddr at = pages.begin;
  while (Range* range = at < pages.end ? context.space.find_page(at) : nullptr) {
    const std::scoped_lock lock(range->arm_mutex);
    if (!range->armed && !range->mirrored.load()) UHMM_TRY(check_same_memory(context, *range));
    at = range->pages.end;
  }
  return {};
}

}  // namespace

Status check_access(Context& context, ByteRange bytes, bool write) {
  const Operation operation(context);
  UHMM_TRY(check_unwatched(context, bytes.to_pages()));
  return context.space.for_each_segment(bytes.to_pages(), true, [&](const Segment& segment) -> Status {
    const Permissions allowed = permissions_of(context, segment);
    const PageMask all = PageMask::of(segment.run);
    if (const PageMask refused = all.minus(allowed.readable.minus(guards_of(context, segment))); refused.any())
      return fail(UHMM_ERR_FAULT, "the memory at %#lx is not mapped, not readable, or a guard page",
                  (segment.block->base + std::size_t{refused.next_set(0)} * kPageBytes).value);
    if (const PageMask refused = all.minus(allowed.writable); write && refused.any())
      return fail(UHMM_ERR_PERMISSION, "the memory at %#lx is not writable",
                  (segment.block->base + std::size_t{refused.next_set(0)} * kPageBytes).value);
    return {};
  });
}

}  // namespace uhmm::engine
