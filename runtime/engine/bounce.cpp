// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/bounce.hpp"

#include "runtime/base/inject.hpp"

namespace uhmm::engine {
namespace {

template <typename Visit>
Status in_pieces(ByteRange pages, Visit&& visit) {
  for (VirtAddr at = pages.begin; at < pages.end; at = at + Bounce::kBytes)
    UHMM_TRY(visit(pages.intersect({at, at + Bounce::kBytes})));
  return {};
}

Status no_buffer() { return fail(UHMM_ERR_NO_MEMORY, "no memory for a transfer buffer"); }

}  // namespace

const std::byte* Bounce::fill(Context& context, const Segment& segment, DeviceIndex from, ByteRange pages) {
  std::byte* to = memory();
  if (to == nullptr) return nullptr;
  const backend::Window& window = segment.range->windows[from.value];
  return context.slot(from).device->copy_out(window, pages, to).ok() ? to : nullptr;
}

Status copy_between(Context& context, const Segment& segment, DeviceIndex from, DeviceIndex to, ByteRange pages) {
  Bounce bounce;
  if (bounce.memory() == nullptr) return no_buffer();
  return in_pieces(pages, [&](ByteRange piece) -> Status {
    const auto& windows = segment.range->windows;
    UHMM_TRY(context.slot(from).device->copy_out(windows[from.value], piece, bounce.memory()));
    return context.slot(to).device->copy_in(windows[to.value], piece, bounce.memory());
  });
}

Status copy_by_bounce(Context& context, const Segment& segment, DeviceIndex to, ByteRange pages) {
  Bounce bounce;
  if (bounce.memory() == nullptr) return no_buffer();
  return in_pieces(pages, [&](ByteRange piece) -> Status {
    const bool read_all = !inject::should_fail(inject::Point::ReadManaged) &&
                          context.process.read(piece.begin, bounce.memory(), piece.bytes()) == piece.bytes();
    if (!read_all) return fail(UHMM_ERR_FAULT, "pages at %#lx vanished while they were copied", piece.begin.value);
    return context.slot(to).device->copy_in(segment.range->windows[to.value], piece, bounce.memory());
  });
}

}  // namespace uhmm::engine
