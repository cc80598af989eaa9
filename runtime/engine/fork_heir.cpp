// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_heir.hpp"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/base/inject.hpp"
#include "runtime/os/descriptors.hpp"

namespace uhmm::engine {
namespace {

namespace bare = os::bare;

constexpr std::size_t kStackEnd = SnapshotReader::kBufferBytes + kHeirStackBytes;
static_assert(kStackEnd + kPageBytes == kHeirBytes);

// One per process: who is forked from a process that inherits finds that everything has come.
struct Heir {
  ForkSnapshot* snapshot = nullptr;
  SnapshotFiles files;
  int uffd = -1;
  int socket = -1;
  std::byte* memory = nullptr;  // kHeirBytes
  std::atomic<std::uint32_t> ready{0};
  std::atomic<bool> active{false};
  pid_t process = -1;
};
Heir heir;

// A copy of the process made past fork() has this as well, but nothing is served there: what it drops its parent may
// still want.
bool inherits() { return heir.active.load() && heir.process == getpid(); }

// A page that the thread watches besides: touching it asks for everything, and sleeps until it has come.
VirtAddr bell() { return VirtAddr{heir.memory + kStackEnd}; }
ByteRange bell_page() { return {bell(), bell() + kPageBytes}; }

SnapshotReader reader_of(Heir& its) { return {*its.snapshot, its.files, its.uffd, its.memory, true}; }

// On the heir's thread: shares its thread-local storage with the thread that forked.
void run(void* /*unused*/) {
  std::array<int, kMaxDevices + 3> mine{heir.uffd, heir.socket, heir.files.kept};
  std::copy(heir.files.devices.begin(), heir.files.devices.end(), mine.begin() + 3);
  std::sort(mine.begin(), mine.end());
  bare::close_all_but(mine);
  heir.ready.store(1);
  bare::futex_wake(heir.ready);
  SnapshotReader reader = reader_of(heir);
  reader.release_ranges();
  bool rung = false;
  while (!rung && heir.snapshot->left() != 0) {
    bare::wait_readable(heir.uffd);
    rung = reader.serve(bell());
  }
  // News has to be read for pages to be taken.
  for (; heir.snapshot->left() != 0; rung = reader.serve(bell()) || rung) reader.deliver_all();
  reader.watch_no_more();
  heir.active.store(false);
  bare::drop(VirtAddr{heir.memory}, SnapshotReader::kBufferBytes);
  bare::close(heir.uffd);  // the last one: nothing is watched any more, moved memory neither, and who has rung wakes
}

// Is the descriptor about this process? Its bell gets a page through it.
bool is_mine(int uffd) {
  if (bare::register_missing(uffd, bell_page()) != 0) return false;
  (void)bare::zero(uffd, bell(), kPageBytes);
  const bool mine = bare::is_present(bell());
  if (mine)
    bare::drop(bell(), kPageBytes);
  else
    (void)bare::unregister(uffd, bell_page());
  return mine;
}

// The child's own userfaultfd, or -1: the parent has none, or has ended.
int receive_uffd(int socket) {
  for (;;) {
    char letter = 0;
    os::Message message;
    if (os::receive_message(socket, &letter, 1, -1, &message) != 0) return -1;
    if (message.fd < 0) continue;
    if (is_mine(message.fd)) return message.fd;
    bare::close(message.fd);
    (void)os::send_message(socket, &kNotMine, 1, -1);
  }
}

// The parent reads no more, or has ended.
void wait_for_last_word(int socket) {
  char letter = 0;
  os::Message message;
  while (letter != kAllYours && os::receive_message(socket, &letter, 1, -1, &message) == 0) bare::close(message.fd);
}

// What the program had moved or unmapped by the time of the copy, and had not been followed yet. The list of it is
// ordinary memory, too.
void follow_unfinished(SnapshotReader reader, const MapChanges& changes) {
  if (!changes.pending()) return;
  for (ForkSnapshot::Entry& entry : heir.snapshot->entries())
    entry.owed.load().for_each_run([&](PageRun run) {
      for (std::uint32_t i = 0; i < run.count; ++i) {
        const PageMask one = PageMask::of({run.first + i, 1});
        const VirtAddr from = VirtAddr{entry.block} + (run.offset() + i * kPageBytes);
        const std::optional<VirtAddr> to = changes.place_of(from, kPageBytes).address;
        if (!to)
          heir.snapshot->settle(entry, one);
        else if (*to != from)
          while (reader.deliver_some(entry, one, static_cast<std::int64_t>(to->value - from.value)) != 0) {
          }
      }
    });
}

bool start_thread() {
  if (inject::should_fail(inject::Point::SnapshotTakeOver)) return false;
  heir.ready.store(0);
  heir.active.store(true);
  if (bare::start_thread(run, nullptr, heir.memory + kStackEnd) != 0) {
    heir.active.store(false);
    return false;
  }
  while (heir.ready.load() == 0) bare::futex_wait(heir.ready, 0);
  return true;
}

}  // namespace

void inherit(ForkKeeper& keeper) {
  ForkChild* given = keeper.forking();
  if (given == nullptr) return;
  os::close_kept(std::exchange(given->socket, -1));  // then the other end hears of the parent's end
  heir.snapshot = given->snapshot;
  heir.files = given->files;
  heir.socket = given->child_socket;
  heir.memory = keeper.heir_memory();
  for (std::size_t i = 0; i < heir.snapshot->entries().size(); ++i)
    heir.snapshot->settle(heir.snapshot->entries()[i], given->in_copy[i].load());
  heir.process = getpid();
  heir.uffd = receive_uffd(heir.socket);
  follow_unfinished(reader_of(heir), keeper.changes());
  if (heir.uffd < 0) {
    // Nobody watches this memory any more: what is missing can just be put there.
    reader_of(heir).deliver_all();
  } else if (!start_thread()) {
    SnapshotReader reader = reader_of(heir);
    while (heir.snapshot->left() != 0) reader.deliver_all();
    reader.watch_no_more();
    (void)bare::unregister(heir.uffd, bell_page());
  }
  // Two that read could take apart what belongs together: a move, and a fault at the new address.
  if (heir.uffd >= 0 && os::send_message(heir.socket, &kTakenOver, 1, -1) == 0) wait_for_last_word(heir.socket);
  // The thread has descriptors of its own. The others of the keeper are closed by forget_in_child().
  bare::close(heir.uffd);
  if (!heir.active.load()) {
    ForkSnapshot::unmap(heir.snapshot);
    heir.snapshot = nullptr;
  }
}

void finish_inheriting() {
  if (!inherits()) return;
  // Sleeps until the thread has brought everything, or reads a page of nothing that nobody watches any more.
  (void)*static_cast<const volatile char*>(bell().pointer());
}

void give_up_inheritance(ByteRange pages) {
  if (!inherits() || pages.empty()) return;
  heir.snapshot->give_up(pages);
  heir.snapshot->wait_for_round();
}

}  // namespace uhmm::engine
