// SPDX-License-Identifier: Apache-2.0
// A walk over what the program has mapped.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Calls visit(piece, mapping) for the pieces of `pages` that are mapped in one way each, ascending; of kind None where
// nothing is mapped. Stops at a failed Status.
template <typename Visit>
Status for_each_mapping(Context& context, ByteRange pages, Visit&& visit) {
  for (VirtAddr at = pages.begin; at < pages.end;) {
    Result<os::Mapping> found = context.process.find_mapping(at);
    if (!found.ok()) return found.status();
    ByteRange piece = found->range.intersect({at, pages.end});
    const bool hole = found->kind == os::MappingKind::None || piece.empty() || piece.begin != at;
    if (hole) piece = {at, piece.empty() ? pages.end : piece.begin};
    UHMM_TRY(visit(piece, hole ? os::Mapping{} : *found));
    at = piece.end;
  }
  return {};
}

}  // namespace uhmm::engine
