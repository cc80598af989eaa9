// SPDX-License-Identifier: Apache-2.0
// Calls that transfer data: they may stop half way, or take from the kernel what they then can't deliver.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "preload/kernel_access.hpp"
#include "preload/messages.hpp"
#include "preload/next.hpp"

using namespace uhmm::preload;

#define UHMM_TRANSFER_LIST(X)                                                        \
  X(read, ssize_t(int, void*, size_t))                                               \
  X(__read_chk, ssize_t(int, void*, size_t, size_t))                                 \
  X(pread64, ssize_t(int, void*, size_t, off64_t))                                   \
  X(__pread_chk, ssize_t(int, void*, size_t, off_t, size_t))                         \
  X(__pread64_chk, ssize_t(int, void*, size_t, off64_t, size_t))                     \
  X(write, ssize_t(int, const void*, size_t))                                        \
  X(pwrite64, ssize_t(int, const void*, size_t, off64_t))                            \
  X(readv, ssize_t(int, const iovec*, int))                                          \
  X(preadv64, ssize_t(int, const iovec*, int, off64_t))                              \
  X(preadv64v2, ssize_t(int, const iovec*, int, off64_t, int))                       \
  X(writev, ssize_t(int, const iovec*, int))                                         \
  X(pwritev64, ssize_t(int, const iovec*, int, off64_t))                             \
  X(pwritev64v2, ssize_t(int, const iovec*, int, off64_t, int))                      \
  X(sendto, ssize_t(int, const void*, size_t, int, const sockaddr*, socklen_t))      \
  X(__recv_chk, ssize_t(int, void*, size_t, size_t, int))                            \
  X(recvfrom, ssize_t(int, void*, size_t, int, sockaddr*, socklen_t*))               \
  X(__recvfrom_chk, ssize_t(int, void*, size_t, size_t, int, sockaddr*, socklen_t*)) \
  X(recvmsg, ssize_t(int, msghdr*, int))                                             \
  X(recvmmsg, int(int, mmsghdr*, unsigned, int, timespec*))                          \
  X(getrandom, ssize_t(void*, size_t, unsigned))                                     \
  X(fread, size_t(void*, size_t, size_t, FILE*))                                     \
  X(__fread_chk, size_t(void*, size_t, size_t, size_t, FILE*))                       \
  X(fwrite, size_t(const void*, size_t, size_t, FILE*))

#define UHMM_NEXT(name, type)              \
  namespace {                              \
  constinit Next<type> next_##name(#name); \
  }
UHMM_TRANSFER_LIST(UHMM_NEXT)
#define UHMM_FIND(name, ...) (void)next_##name.get();
__attribute__((constructor)) static void find_all() { UHMM_TRANSFER_LIST(UHMM_FIND) }

namespace {

// May what was read be read again? Not from a pipe, a socket, a timer.
bool keeps_contents(int fd) {
  struct stat file {};
  return fstat(fd, &file) == 0 && (S_ISREG(file.st_mode) || S_ISBLK(file.st_mode));
}

std::byte* at(void* memory, std::size_t done) { return static_cast<std::byte*>(memory) + done; }
const std::byte* at(const void* memory, std::size_t done) { return static_cast<const std::byte*>(memory) + done; }

// With many pieces all are made ready ahead, because going on in the middle is not worth it: a short count, which any
// caller has to expect, is the worst that a device can do meanwhile.
template <typename Call>
ssize_t with_vectors(const iovec* parts, int count, bool write, Call&& call) {
  const auto ready = [&] { return make_vectors_ready(parts, static_cast<std::size_t>(std::max(count, 0)), write); };
  if (kernel_needs_help()) (void)ready();
  return retried<ssize_t>(-1, call, ready);
}

// Whoever asks for more than there is room is ended by the C library's function, which looks at nothing else first.
template <typename Function, typename... Arguments>
void check_room(std::size_t wanted, std::size_t room, Function* checked, Arguments... arguments) {
  if (wanted > room) (void)checked(arguments...);
}

}  // namespace

UHMM_INTERPOSE ssize_t read(int fd, void* to, size_t bytes) {
  if (!kernel_needs_help()) return next_read.get()(fd, to, bytes);
  if (keeps_contents(fd))
    return whole(out(to, bytes), [&](size_t done) { return next_read.get()(fd, at(to, done), bytes - done); });
  return instead({data_of(to, bytes)}, [&] { return next_read.get()(fd, to, bytes); });
}
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE ssize_t __read_chk(int fd, void* to, size_t bytes, size_t room) {
  check_room(bytes, room, next___read_chk.get(), fd, to, bytes, room);
  return read(fd, to, bytes);
}

// What has an offset keeps its contents.
UHMM_INTERPOSE ssize_t pread64(int fd, void* to, size_t bytes, off64_t offset) {
  return whole(out(to, bytes), [&](size_t done) {
    return next_pread64.get()(fd, at(to, done), bytes - done, offset + static_cast<off64_t>(done));
  });
}
UHMM_INTERPOSE ssize_t pread(int fd, void* to, size_t bytes, off_t offset) { return pread64(fd, to, bytes, offset); }
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE ssize_t __pread_chk(int fd, void* to, size_t bytes, off_t offset, size_t room) {
  check_room(bytes, room, next___pread_chk.get(), fd, to, bytes, offset, room);
  return pread64(fd, to, bytes, offset);
}
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE ssize_t __pread64_chk(int fd, void* to, size_t bytes, off64_t offset, size_t room) {
  check_room(bytes, room, next___pread64_chk.get(), fd, to, bytes, offset, room);
  return pread64(fd, to, bytes, offset);
}

UHMM_INTERPOSE ssize_t write(int fd, const void* from, size_t bytes) {
  return whole(in(from, bytes), [&](size_t done) { return next_write.get()(fd, at(from, done), bytes - done); });
}
UHMM_INTERPOSE ssize_t pwrite64(int fd, const void* from, size_t bytes, off64_t offset) {
  return whole(in(from, bytes), [&](size_t done) {
    return next_pwrite64.get()(fd, at(from, done), bytes - done, offset + static_cast<off64_t>(done));
  });
}
UHMM_INTERPOSE ssize_t pwrite(int fd, const void* from, size_t bytes, off_t offset) {
  return pwrite64(fd, from, bytes, offset);
}

UHMM_INTERPOSE ssize_t readv(int fd, const iovec* parts, int count) {
  if (kernel_needs_help() && !keeps_contents(fd)) {
    const Gathered gathered(parts, count);
    if (gathered.useful()) return gathered.fill([&](void* to, size_t bytes) { return next_read.get()(fd, to, bytes); });
  }
  return with_vectors(parts, count, true, [&] { return next_readv.get()(fd, parts, count); });
}
UHMM_INTERPOSE ssize_t preadv64(int fd, const iovec* parts, int count, off64_t offset) {
  return with_vectors(parts, count, true, [&] { return next_preadv64.get()(fd, parts, count, offset); });
}
UHMM_INTERPOSE ssize_t preadv(int fd, const iovec* parts, int count, off_t offset) {
  return preadv64(fd, parts, count, offset);
}
// Without an offset it may be a pipe or a socket.
UHMM_INTERPOSE ssize_t preadv64v2(int fd, const iovec* parts, int count, off64_t offset, int flags) {
  if (offset == -1 && kernel_needs_help() && !keeps_contents(fd)) {
    const Gathered gathered(parts, count);
    if (gathered.useful())
      return gathered.fill([&](void* to, size_t bytes) {
        // In the buffer too, where the kernel finds it.
        const iovec* const part = gathered.one_part(to, bytes);
        return next_preadv64v2.get()(fd, part, 1, offset, flags);
      });
  }
  return with_vectors(parts, count, true, [&] { return next_preadv64v2.get()(fd, parts, count, offset, flags); });
}
UHMM_INTERPOSE ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return preadv64v2(fd, parts, count, offset, flags);
}
UHMM_INTERPOSE ssize_t writev(int fd, const iovec* parts, int count) {
  return with_vectors(parts, count, false, [&] { return next_writev.get()(fd, parts, count); });
}
UHMM_INTERPOSE ssize_t pwritev64(int fd, const iovec* parts, int count, off64_t offset) {
  return with_vectors(parts, count, false, [&] { return next_pwritev64.get()(fd, parts, count, offset); });
}
UHMM_INTERPOSE ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset) {
  return pwritev64(fd, parts, count, offset);
}
UHMM_INTERPOSE ssize_t pwritev64v2(int fd, const iovec* parts, int count, off64_t offset, int flags) {
  return with_vectors(parts, count, false, [&] { return next_pwritev64v2.get()(fd, parts, count, offset, flags); });
}
UHMM_INTERPOSE ssize_t pwritev2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return pwritev64v2(fd, parts, count, offset, flags);
}

UHMM_INTERPOSE ssize_t sendto(int fd, const void* from, size_t bytes, int flags, const sockaddr* to, socklen_t length) {
  return whole(in(from, bytes), [&](size_t done) {
    return retried<ssize_t>(
        -1, [&] { return next_sendto.get()(fd, at(from, done), bytes - done, flags, to, length); },
        [&] { return make_ready({in(to, length)}); });
  });
}
UHMM_INTERPOSE ssize_t send(int fd, const void* from, size_t bytes, int flags) {
  return sendto(fd, from, bytes, flags, nullptr, 0);
}

UHMM_INTERPOSE ssize_t recvfrom(int fd, void* to, size_t bytes, int flags, sockaddr* from, socklen_t* length) {
  const auto call = [&] { return next_recvfrom.get()(fd, to, bytes, flags, from, length); };
  if (!kernel_needs_help()) return call();
  return instead({data_of(to, bytes), whole_of(from, length_in(length)), whole_of(length)}, call);
}
UHMM_INTERPOSE ssize_t recv(int fd, void* to, size_t bytes, int flags) {
  return recvfrom(fd, to, bytes, flags, nullptr, nullptr);
}
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE ssize_t __recv_chk(int fd, void* to, size_t bytes, size_t room, int flags) {
  check_room(bytes, room, next___recv_chk.get(), fd, to, bytes, room, flags);
  return recv(fd, to, bytes, flags);
}
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE ssize_t __recvfrom_chk(int fd, void* to, size_t bytes, size_t room, int flags, sockaddr* from,
                                      socklen_t* length) {
  check_room(bytes, room, next___recvfrom_chk.get(), fd, to, bytes, room, flags, from, length);
  return recvfrom(fd, to, bytes, flags, from, length);
}

UHMM_INTERPOSE ssize_t recvmsg(int fd, msghdr* message, int flags) {
  if (kernel_needs_help()) {
    // Their first member; what else there is is filled in by recvmmsg() alone.
    const Messages messages(message, sizeof(*message), 1);
    if (messages.useful())
      return messages.fill([&](mmsghdr* ours) {
        const ssize_t got = next_recvmsg.get()(fd, &ours->msg_hdr, flags);
        ours->msg_len = static_cast<unsigned>(std::max<ssize_t>(got, 0));
        return Received{got, got >= 0 ? 1 : 0};
      });
  }
  return next_recvmsg.get()(fd, message, flags);
}
UHMM_INTERPOSE int recvmmsg(int fd, mmsghdr* list, unsigned count, int flags, timespec* time) {
  if (kernel_needs_help()) {
    const Messages messages(list, sizeof(*list), count);
    if (messages.useful())
      return static_cast<int>(messages.fill([&](mmsghdr* ours) {
        const int got = instead({whole_of(time)}, [&] { return next_recvmmsg.get()(fd, ours, count, flags, time); });
        return Received{got, std::max(got, 0)};
      }));
  }
  return next_recvmmsg.get()(fd, list, count, flags, time);
}

UHMM_INTERPOSE ssize_t getrandom(void* to, size_t bytes, unsigned flags) {
  return whole(out(to, bytes), [&](size_t done) { return next_getrandom.get()(at(to, done), bytes - done, flags); });
}

// Large ones go past the stream's buffer, by a call inside the C library.
UHMM_INTERPOSE size_t fread(void* to, size_t size, size_t count, FILE* file) {
  (void)make_ready({out(to, size * count)});
  return next_fread.get()(to, size, count, file);
}
// NOLINTNEXTLINE(readability-identifier-naming): the fortified name of the one before
UHMM_INTERPOSE size_t __fread_chk(void* to, size_t room, size_t size, size_t count, FILE* file) {
  (void)make_ready({out(to, std::min(room, size * count))});
  return next___fread_chk.get()(to, room, size, count, file);
}
UHMM_INTERPOSE size_t fwrite(const void* from, size_t size, size_t count, FILE* file) {
  (void)make_ready({in(from, size * count)});
  return next_fwrite.get()(from, size, count, file);
}
