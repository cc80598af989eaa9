// SPDX-License-Identifier: Apache-2.0
// Forks of a program that has memory on devices. Where the kernel tells of forks (CAP_SYS_PTRACE) and much is away, it
// stays there: the child gets its pages when it touches them (fork_snapshot.hpp), and the parent keeps a page for it
// ahead of every change. Else everything comes home first. The child's side is fork_heir.hpp.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "runtime/base/arena.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/engine/context.hpp"
#include "runtime/engine/fork_snapshot.hpp"
#include "runtime/os/process.hpp"

namespace uhmm::engine {

// A child's buffer, its thread's stack, and the page that is its bell.
inline constexpr std::size_t kHeirStackBytes = std::size_t{128} << 10;
inline constexpr std::size_t kHeirBytes = SnapshotReader::kBufferBytes + kHeirStackBytes + kPageBytes;

// What parent and child say to each other over their socket, one letter each.
inline constexpr char kYourMemory = 'm';  // with a userfaultfd: perhaps the child's
inline constexpr char kNotMine = 'n';
inline constexpr char kTakenOver = 't';  // the child serves itself
inline constexpr char kAllYours = 'a';   // and the parent reads no more of its faults and news

// A forked child that is served.
struct ForkChild {
  ForkChild() : offers(Arena::instance().resource()) {}
  ForkSnapshot* snapshot = nullptr;
  // For each entry of the snapshot: pages that came home, or ended, after they had been written down. It is ordinary
  // memory, so the child finds what was there at the moment of the copy, and that is what the copy itself tells of.
  SharedMask* in_copy = nullptr;  // in the arena
  SnapshotFiles files;
  int socket = -1;                    // the parent's end; hung up when the child is gone
  int child_socket = -1;              // the other one, until the fork is over
  std::atomic<bool> canceled{false};  // nobody is going to be served
  std::atomic<bool> forked{false};    // the fork is over: nothing new is known of that would be this child's
  ForkChild* next = nullptr;
  // The keeper's thread only. Sent to the child, and served by the parent until it answers:
  std::pmr::vector<int> offers;
  bool answered = false;  // it has found its own, or it is gone: whatever else there is was not for it
  bool gone = false;
  bool all_offered = false;
};

class ForkKeeper {
 public:
  explicit ForkKeeper(Context& context) : context_(context), strays_(Arena::instance().resource()) {}
  ForkKeeper(const ForkKeeper&) = delete;
  ForkKeeper& operator=(const ForkKeeper&) = delete;

  // Before anything can leave system memory. Without it, or without the kernel's help, everything comes home first.
  Status start();
  void stop();

  // Pages that have to be at home for the copy: the stack of the thread that makes it. On a worker.
  void bring_home(ByteRange pages);
  // The gate is closed: nothing leaves system memory. Brings home what can't stay. On a worker.
  Status prepare();
  // The fork is over, or has failed. On the thread that forked, in the parent: takes no lock.
  void finish_in_parent();
  // In the child: what it takes over (see inherit()), or nullptr: it has everything.
  ForkChild* forking() const { return forking_.load(); }
  const MapChanges& changes() const { return context_.changes; }
  // Pages that every child finds, never touched here: kHeirBytes.
  std::byte* heir_memory() const { return heir_memory_; }
  // In the child, after inherit(): the keeper's thread and descriptors are the parent's.
  void forget_in_child();

  // keep() below, for pages that are owed.
  void keep_owed(const Segment& segment, const PageMask& pages);
  // leave_to_copy() below, while a fork is under way.
  void note_in_copy(const Segment& segment, const PageMask& pages);

 private:
  enum class Mode : std::uint32_t { None, Whole, Snapshot };  // of the fork that is under way
  // A process that was copied: its descriptor, and what was known of it at that moment.
  struct Arrival {
    int fd = -1;
    Mode mode = Mode::None;
    ForkChild* child = nullptr;
    Arrival* next = nullptr;
    std::atomic<bool> in_use{false};
  };

  static void note_fork(void* self, int fd);
  static void run(void* self);
  // For os::listen_to_copies(): somebody reads news meanwhile, and the card is watched.
  static void note_copy(void* self, bool begins);
  void loop();
  void enter_body();
  void leave_body();
  void pause(bool on);
  ForkChild* first_child();
  void watch(std::pmr::vector<os::Watched>& watched);
  Arrival* make_arrival();
  void end_arrival(Arrival* arrival);
  void take_arrivals();
  void offer(ForkChild& child, int uffd);
  bool hear(ForkChild& child);
  void answer_is_final(ForkChild& child);
  void attend(ForkChild& child, bool heard);
  void drop(ForkChild* child);
  // A copy that nobody was told of.
  struct Stray {
    int uffd = -1;
    bool poisoned = false;  // what was away then
    bool ours = false;      // a device's process, which serves itself
  };
  void add_stray(int uffd, bool poisoned);
  static void read_strays(void* self);
  void serve_strays();
  void serve_stray(Stray& stray);
  bool poison_stray(int uffd);

  bool worth_it() const;
  bool can_stay(const BlockDevice& part) const;
  bool leave_it_there();
  void cancel(ForkChild& child);
  void bring_rest_home();
  void stop_watching_home();
  ForkSnapshot* make_table();
  bool write_down(ForkSnapshot& snapshot);
  bool owe(ForkSnapshot& snapshot, const Segment& segment, const PageMask& wiped);
  bool add_child(ForkSnapshot* snapshot);

  Context& context_;
  RankedMutex<LockRank::Snapshots> mutex_;
  ForkChild* children_ = nullptr;  // guarded by mutex_; only the keeper's thread takes any out
  RankedMutex<LockRank::Strays> strays_mutex_;
  std::pmr::vector<Stray> strays_;            // guarded by strays_mutex_; changed by the keeper's thread only
  std::byte* card_ = nullptr;                 // see os::set_calling_card()
  std::atomic_flag card_busy_;                // who serves faults has no business there
  std::uint32_t card_users_ = 0;              // devices that are being started
  std::atomic<ForkChild*> forking_{nullptr};  // between prepare() and finish_in_parent()
  std::atomic<Mode> mode_{Mode::None};
  std::atomic<bool> arrived_{false};         // the forking child's descriptor
  std::atomic<Arrival*> arrivals_{nullptr};  // newest first
  std::array<Arrival, 64> spare_arrivals_;
  std::byte* heir_memory_ = nullptr;
  std::byte* buffer_ = nullptr;
  int wake_fd_ = -1;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> paused_{false};
  std::atomic<bool> in_body_{false};
  Thread thread_;
};

// Under the block's lock, ahead of any change to what devices hold of the pages, and before a device may write them:
// forked children that want them keep what is there now. Pages that can't be kept raise SIGBUS in those children.
inline void keep(Context& context, const Segment& segment, const PageMask& pages) {
  if (const PageMask owed = segment.block->owed & pages; owed.any()) context.forks->keep_owed(segment, owed);
}

// Under the block's lock, after pages have come home or have ended: what there is of them is in memory alone. A child
// that is copied after that is owed none of them, whatever has been written down for it.
inline void leave_to_copy(Context& context, const Segment& segment, const PageMask& pages) {
  if (context.forks != nullptr && context.forks->forking() != nullptr) context.forks->note_in_copy(segment, pages);
}

}  // namespace uhmm::engine
