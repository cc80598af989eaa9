// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/map_changes.hpp"

#include <new>

#include "runtime/base/arena.hpp"
#include "runtime/base/check.hpp"
#include "runtime/engine/context.hpp"
#include "runtime/engine/follow_changes.hpp"
#include "runtime/engine/memory_calls.hpp"
#include "runtime/os/bare.hpp"

namespace uhmm::engine {
namespace {

constexpr std::uint64_t kNowhere = ~std::uint64_t{0};

bool is_unmapping(const os::UffdMove& change) { return change.to.value == kNowhere; }
ByteRange left_by(const os::UffdMove& change) { return {change.from, change.from + change.bytes}; }
ByteRange reached_by(const os::UffdMove& change) { return {change.to, change.to + change.bytes}; }
// A second view of shared memory takes nothing from anywhere.
bool touches(const os::UffdMove& change, ByteRange pages) {
  return change.bytes != 0 &&
         (left_by(change).overlaps(pages) || (!is_unmapping(change) && reached_by(change).overlaps(pages)));
}

thread_local bool knowing = false;

}  // namespace

MapChanges::Knowing::Knowing() { knowing = true; }
MapChanges::Knowing::~Knowing() { knowing = false; }

MapChanges::MapChanges() {
  for (Chunk& chunk : first_) {
    chunk.next = free_;
    free_ = &chunk;
  }
}

MapChanges::~MapChanges() {
  Arena::instance().deallocate(buffer_, kMovePiece);
  const auto end_list = [](Chunk* chunk) {
    while (chunk != nullptr) {
      Chunk* next = chunk->next;
      if (chunk->mapped) os::bare::unmap_pages(reinterpret_cast<std::byte*>(chunk), sizeof(Chunk));
      chunk = next;
    }
  };
  end_list(free_);
  end_list(used_.load());
  if (tail_.load() % kPerChunk != 0) end_list(chunks_[tail_.load() / kPerChunk % kChunks].load());
}

Status MapChanges::listen(Context& context) {
  buffer_ = static_cast<std::byte*>(Arena::instance().allocate(kMovePiece));
  if (buffer_ == nullptr) return fail(UHMM_ERR_NO_MEMORY, "no memory to follow changes of the memory map");
  context_ = &context;
  job_.changes = this;
  job_.run = [](WorkerPool::Work& work) { static_cast<Job&>(work).changes->deal_with_all(); };
  context.uffd.listen({note_move, note_unmap, note_concerns, this});
  return {};
}

void MapChanges::note_move(void* self, const os::UffdMove& move) { static_cast<MapChanges*>(self)->push(move); }

void MapChanges::note_unmap(void* self, ByteRange pages) {
  static_cast<MapChanges*>(self)->push({pages.begin, VirtAddr{kNowhere}, pages.bytes()});
}

bool MapChanges::note_concerns(void* self, ByteRange pages) { return static_cast<MapChanges*>(self)->concern(pages); }

// Who tells must wait for nobody (news_reader.hpp), also not for the arena's lock.
MapChanges::Chunk* MapChanges::take_chunk() {
  if (free_ == nullptr) free_ = used_.exchange(nullptr);
  if (free_ == nullptr) {
    std::byte* memory = os::bare::map_pages(sizeof(Chunk));
    UHMM_REQUIRE(memory != nullptr, "no memory to follow changes of the memory map");
    auto* chunk = new (memory) Chunk;
    chunk->mapped = true;
    return chunk;
  }
  Chunk* chunk = free_;
  free_ = chunk->next;
  chunk->next = nullptr;
  return chunk;
}

// Programs that unmap page by page: one entry for neighbours that follow each other, unless it is being dealt with.
bool MapChanges::grow_last(const os::UffdMove& change) {
  const std::uint32_t tail = tail_.load();
  if (!is_unmapping(change) || tail == head_.load()) return false;
  Entry& last = at(tail - 1);
  State open = State::Open;
  if (!last.state.compare_exchange_strong(open, State::Growing)) return false;
  const std::uint64_t begin = last.from.load();
  const std::uint64_t bytes = last.bytes.load();
  const bool above = begin + bytes == change.from.value;
  const bool below = change.from.value + change.bytes == begin;
  const bool grows = last.to.load() == kNowhere && (above || below);
  // In this order nobody who looks misses a page.
  if (grows) last.bytes.store(bytes + change.bytes);
  if (grows && below) last.from.store(change.from.value);
  last.state.store(State::Open);
  return grows;
}

os::UffdMove MapChanges::take_first() {
  Entry& first = at(head_.load());
  for (State open = State::Open; !first.state.compare_exchange_strong(open, State::Taken); open = State::Open) {
  }
  return {VirtAddr{first.from.load()}, VirtAddr{first.to.load()}, first.bytes.load()};
}

void MapChanges::push(const os::UffdMove& change) {
  if (grow_last(change)) return;
  const std::uint32_t tail = tail_.load();
  UHMM_REQUIRE(tail - head_.load() < kPerChunk * (kChunks - 1),
               "the memory map changes faster than it can be followed");
  std::atomic<Chunk*>& chunk = chunks_[tail / kPerChunk % kChunks];
  if (tail % kPerChunk == 0) chunk.store(take_chunk());
  Entry& entry = chunk.load()->entries[tail % kPerChunk];
  entry.state.store(State::Open);
  entry.from.store(change.from.value);
  entry.to.store(change.to.value);
  entry.bytes.store(change.bytes);
  tail_.store(tail + 1);
  if (!working_.exchange(true)) context_->workers.post(job_);
}

// Nothing: it has been dealt with meanwhile.
std::optional<os::UffdMove> MapChanges::entry(std::uint32_t index) const {
  const Entry& entry = at(index);
  const os::UffdMove change{VirtAddr{entry.from.load()}, VirtAddr{entry.to.load()}, entry.bytes.load()};
  if (static_cast<std::int32_t>(head_.load() - index) > 0) return std::nullopt;
  return change;
}

template <typename Visit>
bool MapChanges::any_of(std::uint32_t from, Visit&& visit) const {
  const std::uint32_t tail = tail_.load();
  for (std::uint32_t index = from; index != tail; ++index)
    if (const std::optional<os::UffdMove> change = entry(index); change && visit(*change)) return true;
  return false;
}

bool MapChanges::concern(ByteRange pages) const {
  if (!pending() || knowing) return false;
  return any_of(head_.load(), [&](const os::UffdMove& change) { return touches(change, pages); });
}

PageMask MapChanges::concerned(const state::Segment& segment) const {
  PageMask pages;
  if (!pending() || knowing) return pages;
  const auto add = [&](ByteRange part) {
    part = part.intersect(segment.block->range_of(segment.run));
    if (!part.empty()) pages.set({part.begin.page_in_block(), static_cast<std::uint32_t>(part.pages())});
  };
  (void)any_of(head_.load(), [&](const os::UffdMove& change) {
    add(left_by(change));
    if (!is_unmapping(change)) add(reached_by(change));
    return false;
  });
  return pages;
}

bool MapChanges::changed_again(ByteRange pages) const {
  return any_of(head_.load() + 1, [&](const os::UffdMove& change) { return touches(change, pages); });
}

MapChanges::Place MapChanges::place_since(std::uint32_t first, VirtAddr address, std::uint64_t bytes) const {
  if (first == tail_.load()) return {address, bytes};
  Place place{address, kPageBytes};
  (void)any_of(first, [&](const os::UffdMove& change) {
    if (!left_by(change).contains(*place.address)) return false;
    if (is_unmapping(change))
      place.address.reset();
    else
      place.address = change.to + (*place.address - change.from);
    return !place.address.has_value();
  });
  return place;
}

void MapChanges::wait(const os::Userfaultfd& uffd) const {
  uffd.let_tell();
  const std::uint32_t tail = tail_.load();
  for (std::uint32_t head = head_.load(); static_cast<std::int32_t>(tail - head) > 0; head = head_.load())
    head_.wait(head);
}

void MapChanges::pop() {
  const std::uint32_t head = head_.load();
  Chunk* chunk = chunks_[head / kPerChunk % kChunks].load();
  head_.store(head + 1);
  head_.notify_all();
  if ((head + 1) % kPerChunk != 0) return;
  chunk->next = used_.load();
  while (!used_.compare_exchange_weak(chunk->next, chunk)) {
  }
}

void MapChanges::deal_with_all() {
  const Knowing here;
  do {
    while (pending()) {
      const os::UffdMove change = take_first();
      if (is_unmapping(change))
        follow_unmap(*context_, left_by(change));
      else
        follow_move(*context_, change, std::span<std::byte, kMovePiece>(buffer_, kMovePiece));
      pop();
      // Who faulted there was left asleep.
      context_->uffd.wake(left_by(change));
      if (!is_unmapping(change)) context_->uffd.wake(reached_by(change));
      if (turned_away_.exchange(false)) retry_device_faults(*context_);
    }
    working_.store(false);
  } while (pending() && !working_.exchange(true));
}

}  // namespace uhmm::engine
