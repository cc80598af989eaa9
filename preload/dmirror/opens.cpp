// SPDX-License-Identifier: Apache-2.0
#include "preload/dmirror/opens.hpp"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <mutex>

#include "preload/managed.hpp"
#include "preload/real.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/os/process.hpp"

namespace uhmm::preload::dmirror {
namespace {

struct Entry {
  Open open;
  int our_end = -1;  // -1: of the parent, before a fork
};

// Guarded by the mutex, which nothing holds while it calls the runtime.
struct Table {
  std::mutex mutex;
  Map<ino_t, Entry> opens;   // by the inode of the program's end
  int bell = -1;             // the server's: opens have changed
  pid_t process = -1;        // whose server it is
  std::uint64_t rung = 0;    // changes asked for
  std::uint64_t served = 0;  // changes seen
  Thread server;             // of the runtime's kind: it is none of the program's
  pthread_cond_t seen = PTHREAD_COND_INITIALIZER;
  pthread_mutex_t seen_mutex = PTHREAD_MUTEX_INITIALIZER;
};
Table& table() {
  static Forever<Table> only;
  return *only;
}

// --------------------------------------------------------------------- messages between processes

struct Request {
  Number number;
  Command command;
  std::uint64_t data_bytes;
};
struct Reply {
  int error;
  Command command;
};

// A request and two descriptors beside it, as the kernel takes and gives them.
struct Envelope {
  explicit Envelope(Request* request) : bytes{request, sizeof(*request)} {
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
  }
  Envelope(const Envelope&) = delete;
  Envelope& operator=(const Envelope&) = delete;

  iovec bytes;
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message{};
};

int send_request(int socket, const Request& request, int data, int reply) {
  Envelope envelope(const_cast<Request*>(&request));
  cmsghdr* header = CMSG_FIRSTHDR(&envelope.message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(2 * sizeof(int));
  const int fds[2] = {data, reply};
  std::memcpy(CMSG_DATA(header), fds, sizeof(fds));
  return sendmsg(socket, &envelope.message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(request)) ? 0 : errno;
}

// False: there is nothing to read; `ended` is set when nobody can send any more.
bool receive_request(int socket, Request* request, int fds[2], bool* ended) {
  Envelope envelope(request);
  const ssize_t got = recvmsg(socket, &envelope.message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  *ended = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
  fds[0] = fds[1] = -1;
  const cmsghdr* header = got > 0 ? CMSG_FIRSTHDR(&envelope.message) : nullptr;
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(2 * sizeof(int)))
    std::memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
  return got == static_cast<ssize_t>(sizeof(*request)) && fds[1] >= 0;
}

void answer(Mirror& mirror, Request& request, const int fds[2]) {
  Reply reply{EINVAL, request.command};
  const std::size_t needed =
      std::max(bytes_in(request.number, request.command), bytes_out(request.number, request.command));
  struct stat file {};
  // Another process may send anything.
  if (request.number < Number::kCount &&
      (!goes_by_pages(request.number) || request.command.npages <= kMostPagesAtOnce) && needed <= request.data_bytes &&
      fstat(fds[0], &file) == 0 && static_cast<std::uint64_t>(file.st_size) >= request.data_bytes) {
    void* data = real::mmap(nullptr, std::max<std::size_t>(request.data_bytes, 1), PROT_READ | PROT_WRITE, MAP_SHARED,
                            fds[0], 0);
    reply.error = ENOMEM;
    if (data != MAP_FAILED) {
      reply.error = mirror.run(request.number, reply.command, static_cast<std::byte*>(data));
      (void)real::munmap(data, std::max<std::size_t>(request.data_bytes, 1));
    }
  }
  (void)!write(fds[1], &reply, sizeof(reply));
}

// ----------------------------------------------------------------------------------------- server

struct Watched {
  ino_t inode;
  int fd;
  std::shared_ptr<Mirror> mirror;
};

Vector<Watched> watched_now(std::uint64_t* rung) {
  Table& all = table();
  const std::scoped_lock lock(all.mutex);
  *rung = all.rung;
  Vector<Watched> list;
  for (const auto& [inode, entry] : all.opens)
    if (entry.our_end >= 0) list.push_back({inode, entry.our_end, entry.open.mirror});
  return list;
}

void end_open(const Watched& gone) {
  {
    Table& all = table();
    const std::scoped_lock lock(all.mutex);
    all.opens.erase(gone.inode);
    (void)real::close(gone.fd);  // with the lock: no child inherits it unknown
  }
  if (gone.mirror != nullptr) gone.mirror->evict();
}

void serve(void*) {
  Table& all = table();
  for (;;) {
    std::uint64_t rung = 0;
    const Vector<Watched> list = watched_now(&rung);
    Vector<pollfd> fds{{all.bell, POLLIN, 0}};
    for (const Watched& one : list) fds.push_back({one.fd, POLLIN, 0});
    // What was asked for before this look is answered after it; so it need not sleep then.
    pthread_mutex_lock(&all.seen_mutex);
    const bool behind = all.served < rung;
    pthread_mutex_unlock(&all.seen_mutex);
    if (poll(fds.data(), fds.size(), behind ? 0 : -1) < 0) {
      // Whoever waits for an answer gets one, however late.
      usleep(1000);
      continue;
    }
    std::uint64_t count = 0;
    if ((fds[0].revents & POLLIN) != 0) (void)!read(all.bell, &count, sizeof(count));
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (fds[i + 1].revents == 0) continue;
      Request request{};
      int passed[2];
      bool ended = false;
      if (receive_request(list[i].fd, &request, passed, &ended) && list[i].mirror != nullptr)
        answer(*list[i].mirror, request, passed);
      for (const int fd : passed)
        if (fd >= 0) (void)real::close(fd);
      if (ended) end_open(list[i]);
    }
    pthread_mutex_lock(&all.seen_mutex);
    all.served = std::max(all.served, rung);
    pthread_cond_broadcast(&all.seen);
    pthread_mutex_unlock(&all.seen_mutex);
  }
}

// ------------------------------------------------------------------------------------------- fork

// The runtime's own handlers, which run meanwhile on the same thread, open and close files too.
thread_local bool in_fork = false;

// Nothing of it is for the runtime's own device processes, which are made by fork() too.
void before_fork() {
  if (os::spawning_in_this_thread()) return;
  table().mutex.lock();
  lock_managed_for_fork();
  lock_units_for_fork();
  in_fork = true;
}
void after_fork_in_parent() {
  if (os::spawning_in_this_thread()) return;
  in_fork = false;
  unlock_units_after_fork();
  unlock_managed_after_fork();
  table().mutex.unlock();
}
void after_fork_in_child() {
  if (os::spawning_in_this_thread()) return;
  Table& all = table();
  // The server and those who wait for it exist in the parent only. What was open there is the parent's memory, here
  // too.
  if (all.bell >= 0) (void)real::close(all.bell);
  all.bell = -1;
  all.server.forget();
  all.rung = all.served = 0;
  all.seen = PTHREAD_COND_INITIALIZER;
  all.seen_mutex = PTHREAD_MUTEX_INITIALIZER;
  for (auto& [inode, entry] : all.opens) {
    if (entry.our_end >= 0) (void)real::close(entry.our_end);
    entry.our_end = -1;
    // Not destroyed: it may have been in use by a thread that is not here.
    alignas(std::shared_ptr<Mirror>) std::byte forgotten[sizeof(std::shared_ptr<Mirror>)];
    new (forgotten) std::shared_ptr<Mirror>(std::move(entry.open.mirror));
  }
  unmanage_all();
  after_fork_in_parent();
}

// With the table locked.
int start_server(Table& all) {
  static bool handlers = false;
  if (!handlers && pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) return ENOMEM;
  handlers = true;
  if (all.bell >= 0) return 0;
  all.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (all.bell < 0) return errno;
  all.process = getpid();
  if (all.server.start("uhmm-dmirror", serve, nullptr).ok()) return 0;
  (void)real::close(all.bell);
  all.bell = -1;
  return EAGAIN;
}

// With the table locked.
void ring(Table& all) {
  ++all.rung;
  constexpr std::uint64_t kOne = 1;
  if (all.bell >= 0) (void)!write(all.bell, &kOne, sizeof(kOne));
}

}  // namespace

std::optional<Open> find_open(int fd) {
  if (in_fork) return std::nullopt;
  struct stat file {};
  if (fstat(fd, &file) != 0 || !S_ISSOCK(file.st_mode)) return std::nullopt;
  Table& all = table();
  const std::scoped_lock lock(all.mutex);
  const auto found = all.opens.find(file.st_ino);
  if (found == all.opens.end()) return std::nullopt;
  return found->second.open;
}

int make_open(std::shared_ptr<Mirror> mirror, bool close_on_exec) {
  Table& all = table();
  const std::scoped_lock lock(all.mutex);  // a child knows of both ends or of none
  if (const int error = start_server(all); error != 0) {
    errno = error;
    return -1;
  }
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  if (!close_on_exec) (void)fcntl(ends[0], F_SETFD, 0);
  struct stat file {};
  int error = fstat(ends[0], &file) == 0 ? 0 : errno;
  if (error == 0) {
    try {
      const bool pins = mirror == nullptr;
      all.opens[file.st_ino] = {{std::move(mirror), pins}, ends[1]};
    } catch (const std::bad_alloc&) {
      error = ENOMEM;
    }
  }
  if (error == 0) {
    ring(all);
    return ends[0];
  }
  for (const int fd : ends) (void)real::close(fd);
  errno = error;
  return -1;
}

void settle_closes() {
  Table& all = table();
  std::uint64_t target = 0;
  {
    const std::scoped_lock lock(all.mutex);
    // A child of vfork() shares this memory, and perhaps has closed the bell: nobody may wait there.
    if (all.bell < 0 || all.process != getpid()) return;
    ring(all);
    target = all.rung;
  }
  pthread_mutex_lock(&all.seen_mutex);
  while (all.served < target) pthread_cond_wait(&all.seen, &all.seen_mutex);
  pthread_mutex_unlock(&all.seen_mutex);
}

int ask_opener(int fd, Number number, Command& command, std::byte* data) {
  // The opener's memory map is gone.
  const int gone = number == Number::Read || number == Number::Write ? EFAULT : EINVAL;
  const std::size_t in = bytes_in(number, command);
  const std::size_t out = bytes_out(number, command);
  const int file = memfd_create("uhmm-dmirror-data", MFD_CLOEXEC);
  if (file < 0) return errno;
  int reply_pipe[2] = {-1, -1};
  int error = ftruncate(file, static_cast<off_t>(std::max(in, out))) == 0 ? 0 : ENOMEM;
  for (std::size_t done = 0; error == 0 && done < in;) {
    const ssize_t wrote = pwrite(file, data + done, in - done, static_cast<off_t>(done));
    if (wrote <= 0) error = ENOMEM;
    done += static_cast<std::size_t>(std::max<ssize_t>(wrote, 0));
  }
  if (error == 0 && pipe2(reply_pipe, O_CLOEXEC) != 0) error = errno;
  if (error == 0 && send_request(fd, {number, command, std::max(in, out)}, file, reply_pipe[1]) != 0) error = gone;
  if (reply_pipe[1] >= 0) (void)real::close(reply_pipe[1]);
  Reply reply{};
  ssize_t got = 0;
  while (error == 0 && (got = ::read(reply_pipe[0], &reply, sizeof(reply))) < 0 && errno == EINTR) {
  }
  if (error == 0) error = got == static_cast<ssize_t>(sizeof(reply)) ? reply.error : gone;
  for (std::size_t done = 0; error == 0 && done < out;) {
    const ssize_t got_data = pread(file, data + done, out - done, static_cast<off_t>(done));
    if (got_data <= 0) error = EIO;
    done += static_cast<std::size_t>(std::max<ssize_t>(got_data, 0));
  }
  if (error == 0) command = reply.command;
  if (reply_pipe[0] >= 0) (void)real::close(reply_pipe[0]);
  (void)real::close(file);
  return error;
}

}  // namespace uhmm::preload::dmirror
