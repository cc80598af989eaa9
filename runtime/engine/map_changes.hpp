// SPDX-License-Identifier: Apache-2.0
// What the program has done to the map of managed memory past us, by raw system calls or inside the C library, and
// what is not dealt with yet: one list, in the order in which it happened. A worker deals with it. Until then nobody
// touches the pages in question: what is at their addresses may be something else by now.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/userfaultfd.hpp"
#include "runtime/state/va_space.hpp"

namespace uhmm::engine {

struct Context;

class MapChanges {
 public:
  MapChanges();
  MapChanges(const MapChanges&) = delete;
  MapChanges& operator=(const MapChanges&) = delete;
  ~MapChanges();

  // From now on the news of context.uffd comes here. Errors: NO_MEMORY.
  Status listen(Context& context);

  bool pending() const { return head_.load() != tail_.load(); }
  // Do changes concern some of the pages: because they went, or because something else came there?
  bool concern(ByteRange pages) const;
  // The same for a device's fault: if so, devices are told to retry when the change is dealt with.
  bool turns_away(ByteRange pages) {
    if (!concern(pages)) return false;
    turned_away_.store(true);
    return concern(pages);
  }
  // The pages of the segment that are concerned.
  PageMask concerned(const state::Segment& segment) const;
  // Threads of the program: on return all that had happened when the call began is dealt with.
  void wait(const os::Userfaultfd& uffd) const;

  // For who deals with one of them: where is now what came to the address, for how many bytes at least? No address: it
  // is gone.
  struct Place {
    std::optional<VirtAddr> address;
    std::uint64_t bytes = 0;
  };
  Place place_now(VirtAddr address, std::uint64_t bytes) const { return place_since(head_.load() + 1, address, bytes); }
  // The same for what was on its way when the first of them happened. Under the address space's shared lock.
  Place place_of(VirtAddr address, std::uint64_t bytes) const { return place_since(head_.load(), address, bytes); }
  // While it lives, this thread knows what it does: nothing concerns it.
  class Knowing {
   public:
    Knowing();
    Knowing(const Knowing&) = delete;
    Knowing& operator=(const Knowing&) = delete;
    ~Knowing();
  };
  // How much has happened so far.
  std::uint32_t told() const { return tail_.load(); }
  // Has something happened to these pages since the change that is being dealt with?
  bool changed_again(ByteRange pages) const;

 private:
  enum class State : std::uint32_t { Open, Growing, Taken };
  // `to` beyond every address: unmapped.
  struct Entry {
    std::atomic<std::uint64_t> from{0};
    std::atomic<std::uint64_t> to{0};
    std::atomic<std::uint64_t> bytes{0};
    std::atomic<State> state{State::Open};
  };
  static constexpr std::uint32_t kPerChunk = 128;
  static constexpr std::uint32_t kChunks = 8192;
  struct Chunk {
    std::array<Entry, kPerChunk> entries;
    Chunk* next = nullptr;
    bool mapped = false;  // memory of its own
  };
  struct Job : WorkerPool::Work {
    MapChanges* changes = nullptr;
  };

  static void note_move(void* self, const os::UffdMove& move);
  static void note_unmap(void* self, ByteRange pages);
  static bool note_concerns(void* self, ByteRange pages);
  Place place_since(std::uint32_t first, VirtAddr address, std::uint64_t bytes) const;
  void push(const os::UffdMove& change);
  bool grow_last(const os::UffdMove& change);
  os::UffdMove take_first();
  void deal_with_all();
  void pop();
  Chunk* take_chunk();
  Entry& at(std::uint32_t index) const {
    return chunks_[index / kPerChunk % kChunks].load()->entries[index % kPerChunk];
  }
  std::optional<os::UffdMove> entry(std::uint32_t index) const;
  template <typename Visit>
  bool any_of(std::uint32_t from, Visit&& visit) const;

  Context* context_ = nullptr;
  std::atomic<std::uint32_t> head_{0};  // the first that is not dealt with
  std::atomic<std::uint32_t> tail_{0};  // behind the last that is known
  std::array<std::atomic<Chunk*>, kChunks> chunks_{};
  std::array<Chunk, 8> first_;
  std::atomic<Chunk*> used_{nullptr};  // chunks to be used again
  Chunk* free_ = nullptr;              // only who tells news, one at a time
  // Who deals with changes maps no memory: it would come to where the program has just moved something away from, and
  // may be about to move something else to, at an address of its own choice.
  std::byte* buffer_ = nullptr;
  std::atomic<bool> working_{false};
  std::atomic<bool> turned_away_{false};
  Job job_;
};

}  // namespace uhmm::engine
