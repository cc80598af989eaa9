// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/permissions.hpp"

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

Status check_access(Context& context, ByteRange bytes, bool write) {
  const Operation operation(context);
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
