// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/local_service.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "runtime/os/process.hpp"

namespace uhmm::os {
namespace {

struct Address {
  sockaddr_un name{};
  socklen_t bytes = 0;
};

// Abstract: no file is left behind, whatever happens to the program.
Address address_of(pid_t process) {
  Address out;
  out.name.sun_family = AF_UNIX;
  const int length = std::snprintf(out.name.sun_path + 1, sizeof(out.name.sun_path) - 1, "uhmm-%d", process);
  out.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(length));
  return out;
}

// 0: none.
std::uint64_t file_number(int fd) {
  struct stat facts {};
  return fstat(fd, &facts) == 0 && S_ISSOCK(facts.st_mode) ? facts.st_ino : 0;
}

bool peer(int socket, ucred* out) {
  socklen_t bytes = sizeof(*out);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, out, &bytes) == 0;
}

}  // namespace

Status LocalService::open() {
  const int fd = above_stdio(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (fd < 0) return fail_errno("socket(AF_UNIX)", errno);
  const Address address = address_of(getpid());
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address.name), address.bytes) != 0 || listen(fd, 8) != 0) {
    const int error = errno;
    ::close(fd);
    if (error == EADDRINUSE) return fail(UHMM_ERR_BUSY, "another process listens at @uhmm-%d", getpid());
    return fail_errno("listening on a local socket", error);
  }
  fd_ = fd;
  file_ = file_number(fd);
  return {};
}

bool LocalService::still_ours() const { return fd_ >= 0 && file_ != 0 && file_number(fd_) == file_; }

int LocalService::accept() const {
  while (still_ours()) {
    const int caller = ::accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (caller < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        usleep(100'000);  // the program has no descriptor left just now
        continue;
      }
      return -1;
    }
    ucred who{};
    if (peer(caller, &who) && (who.uid == 0 || who.uid == geteuid())) {
      const timeval second{1, 0};
      (void)setsockopt(caller, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
      return caller;
    }
    ::close(caller);
  }
  return -1;
}

void LocalService::stop() const {
  if (fd_ < 0) return;
  if (still_ours()) {
    (void)shutdown(fd_, SHUT_RDWR);
    return;
  }
  // Who waits still does so at the socket that was ours: a call of our own wakes it.
  Result<int> woken = ask_local_service(getpid(), '\0', 0);
  if (woken.ok()) ::close(*woken);
}

void LocalService::close() {
  if (still_ours()) ::close(fd_);
  fd_ = -1;
}

char LocalService::request_of(int caller) {
  char request = 0;
  Message message;
  return receive_message(caller, &request, sizeof(request), 1000, &message) == 0 ? request : '\0';
}

Result<int> ask_local_service(pid_t process, char request, int timeout_ms) {
  const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail_errno("socket(AF_UNIX)", errno);
  const timeval limit{timeout_ms / 1000, timeout_ms % 1000 * 1000};
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  const Address address = address_of(process);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address.name), address.bytes) != 0) {
    const int error = errno;
    ::close(fd);
    if (error == ECONNREFUSED) return fail(UHMM_ERR_NOT_FOUND, "process %d has no uhmm runtime that answers", process);
    if (error == EAGAIN) return fail(UHMM_ERR_TIMEOUT, "process %d does not answer", process);
    return fail_errno("connecting to a local socket", error);
  }
  ucred who{};
  if (!peer(fd, &who) || who.pid != process) {
    ::close(fd);
    return fail(UHMM_ERR_PERMISSION, "process %d has taken the place of process %d", who.pid, process);
  }
  (void)send(fd, &request, sizeof(request), MSG_NOSIGNAL);  // who has hung up is found out below
  char yes = 0;
  Message message;
  const int error = receive_message(fd, &yes, sizeof(yes), timeout_ms, &message);
  ::close(fd);
  if (error == ETIMEDOUT) return fail(UHMM_ERR_TIMEOUT, "process %d does not answer", process);
  // ECONNRESET: hung up on before it read the request.
  if (error == EPIPE || error == ECONNRESET || (error == 0 && message.fd < 0))
    return fail(UHMM_ERR_PERMISSION, "process %d, of user %u, does not answer this user", process, who.uid);
  if (error != 0) return fail_errno("waiting for an answer", error);
  return message.fd;
}

int make_empty_file(const char* name) { return memfd_create(name, MFD_CLOEXEC); }

int write_all(int file, const void* bytes, std::size_t size) {
  const char* from = static_cast<const char*>(bytes);
  while (size != 0) {
    const ssize_t done = ::write(file, from, size);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done < 0 ? errno : EIO;
    from += done;
    size -= static_cast<std::size_t>(done);
  }
  return 0;
}

void close_descriptor(int fd) { ::close(fd); }

}  // namespace uhmm::os
