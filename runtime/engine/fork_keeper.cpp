// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/fork_keeper.hpp"

#include <mutex>
#include <thread>
#include <utility>

#include "runtime/base/arena.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/base/log.hpp"
#include "runtime/engine/pool_calls.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {

namespace bare = os::bare;

Status ForkKeeper::start() {
  if (!context_.uffd.features().follows_forks) return {};
  heir_memory_ = bare::map_inherited(kHeirBytes);
  buffer_ = bare::map_pages(SnapshotReader::kBufferBytes);
  wake_fd_ = os::make_bell();
  if (heir_memory_ == nullptr || buffer_ == nullptr || wake_fd_ < 0)
    return fail(UHMM_ERR_NO_MEMORY, "no memory or descriptor for the forks of the program");
  stopping_.store(false);
  copies_.store(0);
  UHMM_TRY(thread_.start("uhmm-forks", run, this));
  UHMM_TRY(reader_.start("uhmm-news", read_news, this));
  os::listen_to_copies(note_copy, this);
  context_.uffd.listen_to_forks(note_fork, this);
  context_.uffd.renew_spare();
  return {};
}

void ForkKeeper::stop() {
  stopping_.store(true);
  if (thread_.running()) {
    os::ring(wake_fd_);
    thread_.join();
  }
  os::listen_to_copies(nullptr, nullptr);
  copies_.fetch_or(kStop);
  copies_.notify_all();
  reader_.join();
  // Children that serve themselves have all they need. Whoever does not yet goes on as if the parent had ended.
  // What is watched by nobody's descriptor can be written by hand, so those are closed first.
  for (Arrival& arrival : arrivals_) bare::close(arrival.fd.exchange(-1));
  while (children_ != nullptr) drop(children_);
  for (const int uffd : strays_) bare::close(uffd);
  strays_.clear();
  bare::close(wake_fd_);
  wake_fd_ = -1;
  bare::unmap_pages(buffer_, SnapshotReader::kBufferBytes);
  buffer_ = nullptr;
  bare::unmap_pages(heir_memory_, kHeirBytes);
  heir_memory_ = nullptr;
}

void ForkKeeper::forget_in_child() {
  thread_.forget();
  reader_.forget();
  for (ForkChild* child = children_; child != nullptr; child = child->next) {
    bare::close(child->socket);
    bare::close(child->child_socket);
    bare::close(child->files.kept);
    for (const int file : child->files.devices) bare::close(file);
    for (const int uffd : child->offers) bare::close(uffd);
  }
  for (const int uffd : strays_) bare::close(uffd);
  for (const Arrival& arrival : arrivals_) bare::close(arrival.fd.load());
  bare::close(wake_fd_);
}

// --------------------------------------------------------- news of the kernel's

// On any thread, which may hold any lock.
void ForkKeeper::note_fork(void* self, int fd) {
  auto& keeper = *static_cast<ForkKeeper*>(self);
  for (;;) {
    for (Arrival& arrival : keeper.arrivals_) {
      int expected = -1;
      if (!arrival.fd.compare_exchange_strong(expected, kClaimed)) continue;
      arrival.mode = keeper.mode_.load();
      arrival.child = keeper.forking_.load();
      if (arrival.mode == Mode::Snapshot) keeper.arrived_.store(true);
      arrival.fd.store(fd);
      os::ring(keeper.wake_fd_);
      return;
    }
    std::this_thread::yield();  // the keeper makes room, whatever else it has to do
  }
}

void ForkKeeper::run(void* self) {
  WorkerPool::enter_runtime_thread();
  static_cast<ForkKeeper*>(self)->loop();
}

void ForkKeeper::note_copy(void* self, bool begins) {
  auto& keeper = *static_cast<ForkKeeper*>(self);
  if (!begins)
    keeper.copies_.fetch_sub(1);
  else if (keeper.copies_.fetch_add(1) == 0)
    keeper.copies_.notify_all();
}

void ForkKeeper::read_news(void* self) {
  constexpr std::uint64_t kPatience = 1'000'000;  // ns; as a rule a service thread has read it long before
  WorkerPool::enter_runtime_thread();
  auto& keeper = *static_cast<ForkKeeper*>(self);
  for (;;) {
    keeper.copies_.wait(0);
    const std::uint32_t copies = keeper.copies_.load();
    if ((copies & kStop) != 0) return;
    if (copies == 0) continue;
    os::futex_wait_for(keeper.copies_, copies, kPatience);
    if (keeper.copies_.load() != 0) keeper.context_.uffd.read_on();
  }
}

void ForkKeeper::loop() {
  std::pmr::vector<os::Watched> watched(Arena::instance().resource());
  while (!stopping_.load()) {
    watch(watched);
    os::wait_for(watched);
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
    for (std::size_t i = 0; i < strays_.size();) {
      serve_stray(strays_[i]);
      if (bare::process_gone(strays_[i])) {
        bare::close(strays_[i]);
        strays_.erase(strays_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
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
  for (const int uffd : strays_) watched.push_back({uffd});
}

void ForkKeeper::take_arrivals() {
  for (Arrival& arrival : arrivals_) {
    const int fd = arrival.fd.load();
    if (fd < 0) continue;
    const Mode mode = arrival.mode;
    ForkChild* child = arrival.child;
    arrival.fd.store(-1);
    if (mode == Mode::Whole)
      bare::close(fd);  // it has everything: ordinary memory from now on
    else if (mode == Mode::Snapshot)
      offer(*child, fd);
    else
      add_stray(fd);
  }
}

// ------------------------------------------------------ children of our own fork

// One that was copied by a raw system call at the same moment would be taken for the child: the child looks.
void ForkKeeper::offer(ForkChild& child, int uffd) {
  if (child.answered) {
    add_stray(uffd);
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
    add_stray(first);
    return true;
  }
  bare::close(first);
  answer_is_final(child);
  (void)os::send_message(child.socket, &kAllYours, 1, -1);
  return true;
}

void ForkKeeper::answer_is_final(ForkChild& child) {
  child.answered = true;
  for (const int uffd : child.offers) add_stray(uffd);
  child.offers.clear();
  for (int& file : child.files.devices) bare::close(std::exchange(file, -1));  // it reads no more of it here
}

void ForkKeeper::attend(ForkChild& child, bool heard) {
  for (const int uffd : child.offers) (void)SnapshotReader(*child.snapshot, child.files, uffd, buffer_, false).serve();
  if (!heard || child.gone || hear(child)) return;
  child.gone = true;
  answer_is_final(child);
  // Hung up, it would be heard again and again.
  bare::close(std::exchange(child.socket, -1));
}

void ForkKeeper::drop(ForkChild* child) {
  {
    const std::scoped_lock lock(mutex_);
    ForkChild** link = &children_;
    while (*link != child) link = &(*link)->next;
    *link = child->next;
  }
  ForkSnapshot::unmap(child->snapshot);
  bare::close(child->socket);
  bare::close(child->child_socket);
  bare::close(child->files.kept);
  for (const int file : child->files.devices) bare::close(file);
  for (const int uffd : child->offers) bare::close(uffd);
  destroy_in_arena(child);
}

// --------------------------------------------------- copies nobody was told of

// Made by a system call past the C library: at that moment pages may have been on their way. What was away raises
// SIGBUS there, at once for what is away now, and when it is touched for what else is missing. It is never zeros.
void ForkKeeper::add_stray(int uffd) {
  const Operation operation(context_);
  for (const auto& [begin, range] : context_.space.ranges()) {
    if (range->pages_out.load() == 0) continue;
    (void)context_.space.for_each_segment(range->pages, false, [&, range = range](const Segment& segment) {
      if (segment.range != range) return Status{};
      PageMask away;
      {
        const std::scoped_lock lock(segment.block->mutex);
        away = segment.block->away() & PageMask::of(segment.run);
      }
      away.for_each_run([&](PageRun run) { (void)poison_missing(uffd, segment.block->range_of(run)); });
      return Status{};
    });
  }
  strays_.push_back(uffd);
}

void ForkKeeper::serve_stray(int uffd) {
  for (;;) {
    const bare::Message message = bare::read_message(uffd);
    if (message.kind == bare::Message::Kind::None) return;
    if (message.kind == bare::Message::Kind::Fork) {
      add_stray(message.fork_fd);
      return;  // the list has changed: the rest is read in the next round
    }
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

}  // namespace uhmm::engine
