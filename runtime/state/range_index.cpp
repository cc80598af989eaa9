// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/range_index.hpp"

#include <algorithm>
#include <thread>

#include "runtime/base/arena.hpp"

namespace uhmm::state {

// While it lives, readers try again. Their loads and our stores are ordered one by one: whoever has read something new
// finds the number changed.
class RangeIndex::Change {
 public:
  explicit Change(RangeIndex& index) : index_(index) { index_.sequence_.fetch_add(1); }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;
  ~Change() { index_.sequence_.fetch_add(1); }

 private:
  RangeIndex& index_;
};

RangeIndex::~RangeIndex() {
  for (std::size_t i = 0; i < generations_; ++i)
    Arena::instance().deallocate(all_[i], (kFirstCapacity << i) * sizeof(Slot), alignof(Slot));
}

Status RangeIndex::reserve() {
  const std::size_t count = count_.load();
  if (generations_ != 0 && count < kFirstCapacity << (generations_ - 1)) return {};
  const std::size_t capacity = kFirstCapacity << generations_;
  void* memory =
      generations_ == all_.size() ? nullptr : Arena::instance().allocate(capacity * sizeof(Slot), alignof(Slot));
  if (memory == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory for the index of ranges");
  Slot* fresh = static_cast<Slot*>(memory);
  for (std::size_t i = 0; i < capacity; ++i) new (fresh + i) Slot;
  const Slot* old = slots_.load();
  for (std::size_t i = 0; i < count; ++i) set(fresh[i], old[i].begin.load(), old[i].end.load());
  all_[generations_++] = fresh;
  slots_.store(fresh);
  return {};
}

void RangeIndex::set(Slot& slot, std::uint64_t begin, std::uint64_t end) {
  slot.begin.store(begin, std::memory_order_release);
  slot.end.store(end, std::memory_order_release);
}

std::size_t RangeIndex::position(VirtAddr begin) const {
  const Slot* slots = slots_.load();
  const Slot* found = std::lower_bound(slots, slots + count_.load(), begin.value, [](const Slot& slot, auto address) {
    return slot.begin.load(std::memory_order_relaxed) < address;
  });
  return static_cast<std::size_t>(found - slots);
}

void RangeIndex::make_room(std::size_t at) {
  Slot* slots = slots_.load();
  for (std::size_t i = count_.load(); i > at; --i)
    set(slots[i], slots[i - 1].begin.load(std::memory_order_relaxed), slots[i - 1].end.load(std::memory_order_relaxed));
  count_.fetch_add(1);
}

void RangeIndex::insert(const Entry& entry) {
  const Change change(*this);
  const std::size_t at = position(entry.bytes.begin);
  make_room(at);
  set(slots_.load()[at], entry.bytes.begin.value, entry.bytes.end.value | (entry.shared ? kShared : 0));
}

void RangeIndex::remove(VirtAddr begin) {
  const std::size_t at = position(begin);
  Slot* slots = slots_.load();
  const std::size_t count = count_.load();
  if (at == count || slots[at].begin.load() != begin.value) return;
  const Change change(*this);
  for (std::size_t i = at; i + 1 < count; ++i)
    set(slots[i], slots[i + 1].begin.load(std::memory_order_relaxed), slots[i + 1].end.load(std::memory_order_relaxed));
  count_.store(count - 1);
}

void RangeIndex::cut(VirtAddr begin, VirtAddr at) {
  const Change change(*this);
  const std::size_t lower = position(begin);
  make_room(lower + 1);
  Slot* slots = slots_.load();
  const std::uint64_t end = slots[lower].end.load();
  set(slots[lower + 1], at.value, end);
  slots[lower].end.store(at.value | (end & kShared));
}

std::size_t RangeIndex::find(ByteRange bytes, std::span<Entry> out) const {
  for (;;) {
    const std::uint64_t sequence = sequence_.load(std::memory_order_acquire);
    if ((sequence & 1) != 0) {
      std::this_thread::yield();
      continue;
    }
    // The count first: slots that are newer have room for no less.
    const std::size_t count = count_.load(std::memory_order_acquire);
    const Slot* slots = slots_.load(std::memory_order_acquire);
    std::size_t low = 0;
    std::size_t high = count;
    while (low < high) {
      const std::size_t middle = (low + high) / 2;
      if ((slots[middle].end.load(std::memory_order_acquire) & ~kShared) <= bytes.begin.value)
        low = middle + 1;
      else
        high = middle;
    }
    std::size_t found = 0;
    for (; low < count && found < out.size(); ++low) {
      const std::uint64_t begin = slots[low].begin.load(std::memory_order_acquire);
      const std::uint64_t end = slots[low].end.load(std::memory_order_acquire);
      if (begin >= bytes.end.value) break;
      out[found++] = {{VirtAddr{begin}, VirtAddr{end & ~kShared}}, (end & kShared) != 0};
    }
    if (sequence_.load(std::memory_order_acquire) == sequence) return found;
  }
}

}  // namespace uhmm::state
