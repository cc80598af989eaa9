// SPDX-License-Identifier: Apache-2.0
#include "preload/registered.hpp"

#include <errno.h>

#include <algorithm>
#include <array>

#include "preload/real.hpp"
#include "runtime/api/registered.hpp"
#include "runtime/os/memory.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload {
namespace {

// Calls visit(pages, mapping) for what is mapped of the parts.
template <typename Visit>
void for_each_mapping(const Parts& parts, Visit&& visit) {
  if (parts.empty()) return;  // also for the runtime's own calls: no descriptors beside those of the program
  os::ProcessMemory process;
  if (!process.open().ok()) return;
  for (const RegisteredPart& part : parts) {
    for (VirtAddr at = part.pages.begin; at < part.pages.end;) {
      Result<os::Mapping> found = process.find_mapping(at);
      if (!found.ok() || found->kind == os::MappingKind::None || found->range.begin >= part.pages.end) break;
      const ByteRange pages = found->range.intersect({at, part.pages.end});
      visit(pages, *found);
      at = pages.end;
    }
  }
  process.close();
}

int protection_of(const os::Mapping& mapping) {
  return (mapping.readable ? PROT_READ : 0) | (mapping.writable ? PROT_WRITE : 0) |
         (mapping.executable ? PROT_EXEC : 0);
}

void bring_home(ByteRange bytes) { (void)uhmm_migrate(bytes.begin.pointer(), bytes.bytes(), UHMM_CPU, nullptr); }

// As few as possible: a page that two of them share is registered as a whole then.
Parts join(const Parts& parts) {
  Parts joined;
  for (const RegisteredPart& part : parts) {
    if (!joined.empty() && joined.back().bytes.end == part.bytes.begin && joined.back().shared == part.shared) {
      joined.back().bytes.end = part.bytes.end;
      joined.back().pages.end = part.pages.end;
    } else {
      joined.push_back(part);
    }
  }
  return joined;
}

// On the program's own thread: the memory may be away again at any moment.
void read_files_again(const RegisteredPart& part) {
  for (VirtAddr at = part.pages.begin; at < part.pages.end;) {
    const api::FilePart file = api::first_file_part({at, part.pages.end});
    if (file.pages.empty()) return;
    Parts writable;
    writable.push_back({file.pages, file.pages, false});
    const Protections protections(writable);
    protections.allow_writing();
    std::copy_n(file.bytes, file.pages.bytes(), static_cast<std::byte*>(file.pages.begin.pointer()));
    protections.put_back();
    at = file.pages.end;
  }
}

}  // namespace

Parts registered_parts(ByteRange pages) {
  constexpr std::size_t kAtOnce = 32;
  Parts parts;
  std::array<state::RangeIndex::Entry, kAtOnce> some;
  for (ByteRange left = pages; !left.empty();) {
    const std::size_t count = api::registered_ranges(left, some);
    for (std::size_t i = 0; i < count; ++i) {
      const ByteRange bytes = some[i].bytes.intersect(pages);
      left.begin = bytes.end;
      parts.push_back({bytes, bytes.to_pages(), some[i].shared});
    }
    if (count < kAtOnce) break;
  }
  return parts;
}

Protections::Protections(const Parts& parts) {
  for_each_mapping(parts, [this](ByteRange pages, const os::Mapping& mapping) {
    before_.push_back({pages, protection_of(mapping)});
  });
}

bool Protections::take(const Parts& parts) const {
  for (const RegisteredPart& part : parts) {
    if (real::mprotect(part.pages.begin.pointer(), part.pages.bytes(), PROT_NONE) == 0) continue;
    if (errno == ENOMEM && has_hole(part.pages)) continue;
    put_back();
    return false;
  }
  return true;
}

void Protections::put_back() const {
  const int error = errno;
  for (const One& one : before_) (void)real::mprotect(one.pages.begin.pointer(), one.pages.bytes(), one.protection);
  errno = error;
}

void Protections::allow_writing() const {
  for (const One& one : before_)
    if ((one.protection & PROT_WRITE) == 0)
      (void)real::mprotect(one.pages.begin.pointer(), one.pages.bytes(), one.protection | PROT_READ | PROT_WRITE);
}

bool Protections::has_hole(ByteRange part) const {
  std::uint64_t mapped = 0;
  for (const One& one : before_) mapped += one.pages.intersect(part).bytes();
  return mapped != part.bytes();
}

void bring_mappings_home(const Parts& parts) {
  for_each_mapping(parts, [&parts](ByteRange pages, const os::Mapping& mapping) {
    if (mapping.kind == os::MappingKind::PrivateAnonymous) return;
    for (const RegisteredPart& part : parts) {
      const ByteRange here = part.bytes.intersect(pages);
      if (!part.shared && !here.empty()) bring_home(here);
    }
  });
}

void drop_edges(const Parts& parts, int advice) {
  const auto drop = [advice](ByteRange bytes) {
    if (bytes.empty()) return;
    bring_home(bytes);
    (void)real::madvise(bytes.begin.page_floor().pointer(), kPageBytes, advice);
  };
  for (const RegisteredPart& part : join(parts)) {
    if (part.bytes.begin != part.pages.begin)
      drop({part.bytes.begin, std::min(part.bytes.begin.page_ceil(), part.bytes.end)});
    if (part.bytes.end != part.pages.end)
      drop({std::max(part.bytes.end.page_floor(), part.bytes.begin), part.bytes.end});
  }
}

void discard(const Parts& parts, bool shared, bool renew) {
  for (const RegisteredPart& part : join(parts)) {
    if (part.shared != shared) continue;
    (void)uhmm_discard(part.bytes.begin.pointer(), part.bytes.bytes());
    if (renew) read_files_again(part);
  }
}

void register_again(const Parts& parts, VirtAddr from, ByteRange place) {
  for (const RegisteredPart& part : parts) {
    const VirtAddr begin = place.begin + (part.bytes.begin - from);
    const ByteRange bytes = ByteRange{begin, begin + part.bytes.bytes()}.intersect(place);
    if (!bytes.empty()) (void)uhmm_register(bytes.begin.pointer(), bytes.bytes());
  }
}

}  // namespace uhmm::preload
