// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/copy_shield.hpp"

#include <mutex>
#include <new>

#include "runtime/base/arena.hpp"
#include "runtime/base/log.hpp"
#include "runtime/engine/context.hpp"
#include "runtime/os/fork_advice.hpp"

namespace uhmm::engine {

CopyShield::CopyShield() : programs_(Arena::instance().resource()) {}

template <typename Visit>
void CopyShield::for_each_ours(ByteRange pages, Visit&& visit) const {
  auto it = programs_.upper_bound(pages.begin.value);
  if (it != programs_.begin()) --it;
  for (; it != programs_.end() && it->first < pages.end.value && !pages.empty(); ++it) {
    const ByteRange theirs{VirtAddr{it->first}, VirtAddr{it->second}};
    if (theirs.end <= pages.begin) continue;
    if (pages.begin < theirs.begin) visit(ByteRange{pages.begin, theirs.begin});
    pages.begin = std::max(pages.begin, theirs.end);
  }
  if (!pages.empty()) visit(pages);
}

// The kernel prints its whole map for that, so all ranges that are new are looked at together. Where it can't be read
// nothing counts as the program's.
void CopyShield::learn(Context& context) {
  struct Seen {
    CopyShield& shield;
    Context& context;
  } seen{*this, context};
  (void)os::for_each_kept(
      [](void* self, ByteRange mapping) {
        const auto& [shield, its] = *static_cast<Seen*>(self);
        const state::VaSpace::RangeMap& ranges = its.space.ranges();
        auto it = ranges.lower_bound(mapping.begin.value);
        if (it != ranges.begin()) --it;
        for (; it != ranges.end() && it->second->pages.begin < mapping.end; ++it) {
          const ByteRange part = mapping.intersect(its.space.pages_not_shared(*it->second));
          if (!it->second->copies_known && !part.empty()) shield.note(part);
        }
      },
      &seen);
  for (const auto& [begin, range] : context.space.ranges()) range->copies_known = true;
}

void CopyShield::raise(Context& context, Range& range, ByteRange pages) {
  if (context.uffd.features().follows_forks) return;
  const std::scoped_lock lock(mutex_);
  if (!range.copies_known) learn(context);
  // The program's own parts too: the mapping may be new there.
  os::keep_from_copies(pages, true);
}

void CopyShield::lower(Context& context, ByteRange pages) {
  if (context.uffd.features().follows_forks || pages.empty()) return;
  const std::scoped_lock lock(mutex_);
  for_each_ours(pages, [](ByteRange part) { os::keep_from_copies(part, false); });
}

void CopyShield::note(ByteRange pages) {
  try {
    programs_.insert_or_assign(pages.begin.value, pages.end.value);
  } catch (const std::bad_alloc&) {
    log::write(log::Level::Warning, "no memory to remember that [%#lx, %#lx) is kept from children", pages.begin.value,
               pages.end.value);
  }
}

void CopyShield::forget(ByteRange pages) {
  const std::scoped_lock lock(mutex_);
  auto it = programs_.upper_bound(pages.begin.value);
  if (it != programs_.begin()) --it;
  while (it != programs_.end() && it->first < pages.end.value) {
    const ByteRange theirs{VirtAddr{it->first}, VirtAddr{it->second}};
    if (!theirs.overlaps(pages)) {
      ++it;
      continue;
    }
    it = programs_.erase(it);
    if (theirs.begin < pages.begin) note({theirs.begin, pages.begin});
    if (pages.end < theirs.end) note({pages.end, theirs.end});
  }
}

}  // namespace uhmm::engine
