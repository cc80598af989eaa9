// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_keeper.hpp"

#include <algorithm>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <thread>
#include <utility>

#include "runtime/base/arena.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/base/log.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/descriptors.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {

namespace bare = os::bare;

Status ForkKeeper::start() {
  if (!context_.uffd.features().follows_forks) return {};
  heir_memory_ = bare::map_inherited(kHeirBytes);
  buffer_ = bare::map_pages(SnapshotReader::kBufferBytes);
  wake_fd_ = os::make_bell();
  card_ = bare::map_inherited(kPageBytes);
  if (heir_memory_ == nullptr || buffer_ == nullptr || wake_fd_ < 0 || card_ == nullptr)
    return fail(UHMM_ERR_NO_MEMORY, "no memory or descriptor for the forks of the program");
  stopping_.store(false);
  UHMM_TRY(thread_.start("uhmm-forks", run, this));
  os::listen_to_copies(note_copy, this);
  os::set_calling_card(card_);
  context_.news.also_read(read_strays, this);
  context_.uffd.listen_to_forks(note_fork, this);
  context_.uffd.renew_spare();
  return {};
}

void ForkKeeper::stop() {
  os::set_calling_card(nullptr);
  // The last copy that has found something watched is known then.
  while (card_ != nullptr && !context_.uffd.all_told()) std::this_thread::yield();
  stopping_.store(true);
  if (thread_.running()) {
    os::ring(wake_fd_);
    thread_.join();
  }
  os::listen_to_copies(nullptr, nullptr);
  // Children that serve themselves have all they need. Whoever does not yet goes on as if the parent had ended.
  // What is watched by nobody's descriptor can be written by hand, so those are closed first.
  for (Arrival* arrival = arrivals_.exchange(nullptr); arrival != nullptr;) {
    os::close_kept(arrival->fd);
    end_arrival(std::exchange(arrival, arrival->next));
  }
  while (children_ != nullptr) drop(children_);
  for (const Stray& stray : strays_) os::close_kept(stray.uffd);
  strays_.clear();
  bare::unmap_pages(card_, kPageBytes);
  card_ = nullptr;
  bare::close(wake_fd_);
  wake_fd_ = -1;
  bare::unmap_pages(buffer_, SnapshotReader::kBufferBytes);
  buffer_ = nullptr;
  bare::unmap_pages(heir_memory_, kHeirBytes);
  heir_memory_ = nullptr;
}

void ForkKeeper::forget_in_child() {
  thread_.forget();
  for (ForkChild* child = children_; child != nullptr; child = child->next) {
    os::close_kept(child->socket);
    os::close_kept(child->child_socket);
    os::close_kept(child->files.kept);
    for (const int file : child->files.devices) os::close_kept(file);
    for (const int uffd : child->offers) os::close_kept(uffd);
  }
  for (const Stray& stray : strays_) os::close_kept(stray.uffd);
  for (const Arrival* arrival = arrivals_.load(); arrival != nullptr; arrival = arrival->next)
    os::close_kept(arrival->fd);
  bare::close(wake_fd_);
}

// --------------------------------------------------------- news of the kernel's

// On any thread, which may hold any lock, also the arena's: waits for nobody.
ForkKeeper::Arrival* ForkKeeper::make_arrival() {
  for (Arrival& arrival : spare_arrivals_)
    if (!arrival.in_use.exchange(true)) return &arrival;
  // A child closes what has arrived just before it was made.
  std::byte* memory = bare::map_inherited(sizeof(Arrival));
  UHMM_REQUIRE(memory != nullptr, "no memory to hear of a copy of the process");
  return new (memory) Arrival;
}

void ForkKeeper::end_arrival(Arrival* arrival) {
  if (arrival->in_use.load())
    arrival->in_use.store(false);
  else
    bare::unmap_pages(reinterpret_cast<std::byte*>(arrival), sizeof(Arrival));
}

void ForkKeeper::note_fork(void* self, int fd) {
  auto& keeper = *static_cast<ForkKeeper*>(self);
  Arrival* arrival = keeper.make_arrival();
  arrival->fd = os::keep_descriptor(fd);
  arrival->mode = keeper.mode_.load();
  // Memory was moved just before: what has not followed it is missing in the child.
  if (arrival->mode == Mode::Whole && keeper.context_.changes.pending()) arrival->mode = Mode::None;
  arrival->child = keeper.forking_.load();
  if (arrival->mode == Mode::Snapshot) keeper.arrived_.store(true);
  arrival->next = keeper.arrivals_.load();
  while (!keeper.arrivals_.compare_exchange_weak(arrival->next, arrival)) {
  }
  os::ring(keeper.wake_fd_);
}

void ForkKeeper::run(void* self) {
  WorkerPool::enter_runtime_thread();
  static_cast<ForkKeeper*>(self)->loop();
}

void ForkKeeper::note_copy(void* self, bool begins) {
  auto& keeper = *static_cast<ForkKeeper*>(self);
  begins ? keeper.context_.news.begin() : keeper.context_.news.end();
  // The card is watched only then: else every fork of the program would be news.
  const ByteRange card{VirtAddr{keeper.card_}, VirtAddr{keeper.card_} + kPageBytes};
  while (keeper.card_busy_.test_and_set()) std::this_thread::yield();
  if (begins && keeper.card_users_++ == 0) (void)keeper.context_.uffd.register_range(card, os::kMissing);
  if (!begins && --keeper.card_users_ == 0) (void)keeper.context_.uffd.unregister_range(card);
  keeper.card_busy_.clear();
}

void ForkKeeper::loop() {
  std::pmr::vector<os::Watched> watched(Arena::instance().resource());
  while (!stopping_.load()) {
    watch(watched);
    constexpr int kSoon = 1;  // ms
    const bool busy = std::ranges::any_of(strays_, [](const Stray& stray) { return !stray.poisoned; });
    os::wait_for(watched, busy ? kSoon : -1);
    enter_body();
    if (watched[0].ready != 0) os::silence(wake_fd_);
    for (ForkChild* child = first_child(); child != nullptr; child = child->next)
      child->all_offered = child->forked.load();
    take_arrivals();
    std::size_t next = 1;
    for (ForkChild* child = first_child(); child != nullptr;) {
      ForkChild* const following = child->next;
      // Children that came meanwhile are ahead of those that were waited for.
      const bool waited_for = next < watched.size() && watched[next].fd == child->socket;
      attend(*child, waited_for && watched[next++].ready != 0);
      // Until all is offered somebody may still speak of it.
      if ((child->gone || child->canceled.load()) && child->all_offered) drop(child);
      child = following;
    }
    serve_strays();
    context_.uffd.renew_spare();
    leave_body();
  }
}

// While the process is copied nothing here changes: the child takes it apart.
void ForkKeeper::enter_body() {
  for (;;) {
    in_body_.store(true);
    if (!paused_.load()) return;
    leave_body();
    paused_.wait(true);
  }
}

void ForkKeeper::leave_body() {
  in_body_.store(false);
  in_body_.notify_all();
}

void ForkKeeper::pause(bool on) {
  paused_.store(on);
  paused_.notify_all();
  while (on && in_body_.load()) in_body_.wait(true);
}

ForkChild* ForkKeeper::first_child() {
  const std::scoped_lock lock(mutex_);
  return children_;
}

void ForkKeeper::watch(std::pmr::vector<os::Watched>& watched) {
  watched.clear();
  watched.push_back({wake_fd_});
  const ForkChild* const first = first_child();
  for (const ForkChild* child = first; child != nullptr; child = child->next) watched.push_back({child->socket});
  for (const ForkChild* child = first; child != nullptr; child = child->next)
    for (const int uffd : child->offers) watched.push_back({uffd});
  for (const Stray& stray : strays_) watched.push_back({stray.uffd});
}

void ForkKeeper::take_arrivals() {
  Arrival* oldest = nullptr;
  for (Arrival* arrival = arrivals_.exchange(nullptr); arrival != nullptr;) {
    Arrival* const before = arrival->next;
    arrival->next = oldest;
    oldest = std::exchange(arrival, before);
  }
  while (oldest != nullptr) {
    Arrival* const arrival = std::exchange(oldest, oldest->next);
    if (arrival->mode == Mode::Whole)
      os::close_kept(arrival->fd);  // it has everything: ordinary memory from now on
    else if (arrival->mode == Mode::Snapshot)
      offer(*arrival->child, arrival->fd);
    else
      add_stray(arrival->fd, false);
    end_arrival(arrival);
  }
}

// ------------------------------------------------------ children of our own fork

// One that was copied by a raw system call at the same moment would be taken for the child: the child looks.
void ForkKeeper::offer(ForkChild& child, int uffd) {
  if (child.answered) {
    add_stray(uffd, true);
    return;
  }
  child.offers.push_back(uffd);
  (void)os::send_message(child.socket, &kYourMemory, 1, uffd);
}

// False: the child is gone.
bool ForkKeeper::hear(ForkChild& child) {
  char letter = 0;
  os::Message message;
  if (os::receive_message(child.socket, &letter, 1, 0, &message) != 0) return false;
  bare::close(message.fd);
  if (child.offers.empty()) return true;
  const int first = child.offers.front();
  child.offers.erase(child.offers.begin());
  if (letter == kNotMine) {
    add_stray(first, true);
    return true;
  }
  os::close_kept(first);
  answer_is_final(child);
  (void)os::send_message(child.socket, &kAllYours, 1, -1);
  return true;
}

void ForkKeeper::answer_is_final(ForkChild& child) {
  child.answered = true;
  for (const int uffd : child.offers) add_stray(uffd, true);
  child.offers.clear();
  for (int& file : child.files.devices) os::close_kept(std::exchange(file, -1));  // it reads no more of it here
}

void ForkKeeper::attend(ForkChild& child, bool heard) {
  for (const int uffd : child.offers) (void)SnapshotReader(*child.snapshot, child.files, uffd, buffer_, false).serve();
  if (!heard || child.gone || hear(child)) return;
  child.gone = true;
  answer_is_final(child);
  // Hung up, it would be heard again and again.
  os::close_kept(std::exchange(child.socket, -1));
}

void ForkKeeper::drop(ForkChild* child) {
  {
    const std::scoped_lock lock(mutex_);
    ForkChild** link = &children_;
    while (*link != child) link = &(*link)->next;
    *link = child->next;
  }
  destroy_array_in_arena(child->in_copy, child->snapshot->most_entries());
  ForkSnapshot::unmap(child->snapshot);
  os::close_kept(child->socket);
  os::close_kept(child->child_socket);
  os::close_kept(child->files.kept);
  for (const int file : child->files.devices) os::close_kept(file);
  for (const int uffd : child->offers) os::close_kept(uffd);
  destroy_in_arena(child);
}

// --------------------------------------------------- copies nobody was told of

// Made by a system call past the C library: at that moment pages may have been on their way. What was away raises
// SIGBUS there, at once for what is away now, and when it is touched for what else is missing. It is never zeros.
// Devices' processes are made in the same way; they say so, and wait for it to be read, before they map anything. From
// then on they are let alone: the kernel takes any descriptor for memory that is watched by any.
// `poisoned`: it was taken for another's at first, and may have gone on since.
void ForkKeeper::add_stray(int uffd, bool poisoned) {
  const std::scoped_lock lock(strays_mutex_);
  strays_.push_back({uffd, poisoned});
}

// The news reader's thread, while the keeper's pauses: a device that is starting must not wait until a fork is over,
// which may wait for the device.
void ForkKeeper::read_strays(void* self) {
  auto& keeper = *static_cast<ForkKeeper*>(self);
  if (!keeper.paused_.load()) return;
  const std::scoped_lock lock(keeper.strays_mutex_);
  for (Stray& stray : keeper.strays_) keeper.serve_stray(stray);
}

void ForkKeeper::serve_strays() {
  const std::scoped_lock lock(strays_mutex_);
  for (std::size_t i = 0; i < strays_.size();) {
    Stray& stray = strays_[i];
    serve_stray(stray);
    if (!stray.poisoned && !stray.ours) stray.poisoned = poison_stray(stray.uffd);
    if (stray.ours || bare::process_gone(stray.uffd)) {
      os::close_kept(stray.uffd);
      strays_.erase(strays_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

// False: another time. Whoever has a lock may be waiting for that process, which waits until its news is read: so
// nobody waits here.
bool ForkKeeper::poison_stray(int uffd) {
  const std::shared_lock operation(context_.space.mutex(), std::try_to_lock);
  if (!operation.owns_lock()) return false;
  bool all = true;
  for (const auto& [begin, range] : context_.space.ranges()) {
    if (range->pages_out.load() == 0) continue;
    (void)context_.space.for_each_segment(range->pages, false, [&, range = range](const Segment& segment) {
      if (segment.range != range) return Status{};
      PageMask away;
      {
        const std::unique_lock lock(segment.block->mutex, std::try_to_lock);
        all = all && lock.owns_lock();
        if (lock.owns_lock()) away = segment.block->away() & PageMask::of(segment.run);
      }
      away.for_each_run([&](PageRun run) { (void)poison_missing(uffd, segment.block->range_of(run)); });
      return Status{};
    });
  }
  return all;
}

void ForkKeeper::serve_stray(Stray& stray) {
  const int uffd = stray.uffd;
  for (;;) {
    const bare::Message message = bare::read_message(uffd);
    if (message.kind == bare::Message::Kind::None) return;
    if (message.kind == bare::Message::Kind::Fork) note_fork(this, message.fork_fd);
    if (message.kind == bare::Message::Kind::Drop && message.dropped.begin == VirtAddr{card_}) stray.ours = true;
    if (message.kind != bare::Message::Kind::Fault) continue;
    const ByteRange page{message.fault.address, message.fault.address + kPageBytes};
    if (message.fault.is_write_protect) {
      (void)bare::unprotect(uffd, page);
    } else if (!message.fault.is_minor || bare::map_existing(uffd, page).done == 0) {
      if (bare::poison(uffd, page).done != 0)
        log::write(log::Level::Warning,
                   "a copy of this process was made past fork(): it has no page at %#lx and gets SIGBUS there",
                   page.begin.value);
    }
    bare::wake(uffd, page);
  }
}

// --------------------------------------------------------------- keeping pages

void ForkKeeper::keep_owed(const Segment& segment, const PageMask& pages) {
  Block& block = *segment.block;
  const std::scoped_lock lock(mutex_);
  for (ForkChild* child = children_; child != nullptr; child = child->next) {
    child->snapshot->for_each_of(block.base, [&](ForkSnapshot::Entry& entry) {
      const PageMask wanted = (entry.owed.load() & pages).minus(entry.kept.load());
      wanted.for_each_run([&](PageRun run) {
        const std::byte* from = aperture(*segment.range, DeviceIndex{entry.device}, block.base + run.offset());
        const bool good = !inject::should_fail(inject::Point::SnapshotKeep) &&
                          bare::write_at(child->files.kept, from, run.bytes(), block.base.value + run.offset());
        if (!good) entry.lost.add(PageMask::of(run));
        entry.kept.add(PageMask::of(run));
      });
    });
  }
  block.owed -= pages;
}

void ForkKeeper::note_in_copy(const Segment& segment, const PageMask& pages) {
  const std::scoped_lock lock(mutex_);  // the child that is made is not dropped meanwhile
  ForkChild* child = forking_.load();
  if (child == nullptr) return;
  ForkSnapshot& snapshot = *child->snapshot;
  snapshot.for_each_of(segment.block->base, [&](ForkSnapshot::Entry& entry) {
    child->in_copy[static_cast<std::size_t>(&entry - snapshot.entries().data())].add(pages);
  });
}

}  // namespace uhmm::engine
