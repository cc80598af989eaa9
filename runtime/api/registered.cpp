// SPDX-License-Identifier: Apache-2.0
#include "runtime/api/registered.hpp"

#include "runtime/api/runtime.hpp"

namespace uhmm::api {
namespace {

struct Answer {
  Status status;
  FilePart part;
};

Answer look(engine::Context& context, ByteRange pages) {
  const engine::Operation operation(context);
  Answer answer;
  for (VirtAddr at = pages.begin; at < pages.end;) {
    const auto next = context.space.ranges().lower_bound(at.value + 1);
    const state::Range* range = context.space.find_page(at);
    if (range == nullptr && next != context.space.ranges().end()) range = next->second;
    if (range == nullptr) break;
    for (const state::FileViews::View& view :
         range->files != nullptr ? std::span(range->files->views) : std::span<const state::FileViews::View>{}) {
      const ByteRange found = view.pages.intersect(range->pages).intersect({at, pages.end});
      if (found.empty() || (!answer.part.pages.empty() && answer.part.pages.begin < found.begin)) continue;
      answer.part = {found, view.bytes + (found.begin - view.pages.begin), range->files};
    }
    if (!answer.part.pages.empty()) break;
    at = range->pages.end;
  }
  return answer;
}

}  // namespace

std::size_t registered_ranges(ByteRange pages, std::span<state::RangeIndex::Entry> out) {
  const Visit visit;
  return visit.runtime() == nullptr ? 0 : visit.runtime()->context.space.index().find(pages, out);
}

FilePart first_file_part(ByteRange pages) {
  const Visit visit;
  Runtime* const runtime = visit.runtime();
  if (runtime == nullptr) return {};
  return runtime->context.workers.call([runtime, pages] { return look(runtime->context, pages); }).part;
}

}  // namespace uhmm::api
