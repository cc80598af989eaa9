// SPDX-License-Identifier: Apache-2.0
#include "preload/dmirror/memory_view.hpp"

#include "preload/managed.hpp"

namespace uhmm::preload::dmirror {
namespace {

using os::MappingKind;

// Shared memory is never migrated here, as in the kernel: other processes work on it in place.
bool can_be_managed(const os::Mapping& mapping) {
  if (mapping.page_bytes != kPageBytes || !mapping.readable) return false;
  return mapping.kind == MappingKind::PrivateAnonymous ||
         (mapping.kind == MappingKind::PrivateFile && mapping.writable && !mapping.executable);
}

void read_states(ByteRange pages, uhmm_page_info* out) {
  std::size_t count = 0;
  const uhmm_status status = uhmm_snapshot(pages.begin.pointer(), pages.bytes(), out, pages.pages(), &count);
  if (status != UHMM_ERR_NOT_REGISTERED) return;
  if (pages.pages() == 1) {
    *out = {};
    return;
  }
  const std::size_t half = pages.pages() / 2;
  const VirtAddr middle = pages.begin + half * kPageBytes;
  read_states({pages.begin, middle}, out);
  read_states({middle, pages.end}, out + half);
}

}  // namespace

Vector<Piece> pieces_of(ByteRange pages, bool manage) {
  Vector<Piece> pieces;
  os::ProcessMemory process;
  if (!process.open().ok()) return pieces;
  for (VirtAddr at = pages.begin; at < pages.end;) {
    Result<os::Mapping> found = process.find_mapping(at);
    const ByteRange mapped =
        found.ok() && found->kind != MappingKind::None ? found->range.intersect({at, pages.end}) : ByteRange{};
    if (mapped.empty() || at < mapped.begin) {
      const VirtAddr end = mapped.empty() ? pages.end : mapped.begin;
      pieces.push_back({{at, end}, {}, false});
      at = end;
      continue;
    }
    Piece piece{mapped, *found, false};
    // Whatever is mapped there now: a coherent device's memory takes the place of the program's.
    const Vector<ByteRange> parts = managed_parts(mapped);
    const bool whole = parts.size() == 1 && parts[0] == mapped;
    piece.managed = whole || (manage && can_be_managed(*found) && preload::manage(mapped));
    pieces.push_back(piece);
    at = mapped.end;
  }
  process.close();
  return pieces;
}

Vector<uhmm_page_info> states_of(ByteRange pages) {
  Vector<uhmm_page_info> states(pages.pages());
  if (!pages.empty()) read_states(pages, states.data());
  return states;
}

}  // namespace uhmm::preload::dmirror
