// SPDX-License-Identifier: Apache-2.0
// The parts of process.hpp about sockets and raw memory calls.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/os/process.hpp"

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" __attribute__((weak)) void __asan_get_shadow_mapping(std::size_t* scale, std::size_t* offset);

namespace uhmm::os {
namespace {

int error_of(long result) { return result < 0 ? errno : 0; }

}  // namespace

int make_channel(int ends[2]) {
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return errno;
  ends[0] = above_stdio(ends[0]);
  ends[1] = above_stdio(ends[1]);
  const int on = 1;
  if (ends[0] >= 0 && ends[1] >= 0 && setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0) return 0;
  const int error = errno;
  for (int i = 0; i < 2; ++i)
    if (ends[i] >= 0) close(ends[i]);
  return error;
}

int send_message(int socket, const void* bytes, std::size_t size, int fd) {
  iovec part{const_cast<void*>(bytes), size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  for (;;) {
    if (sendmsg(socket, &message, MSG_NOSIGNAL) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

int make_bell() { return above_stdio(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

void ring(int bell) {
  const std::uint64_t one = 1;
  (void)!write(bell, &one, sizeof(one));
}

void silence(int bell) {
  std::uint64_t count = 0;
  (void)!read(bell, &count, sizeof(count));
}

void wait_for(std::span<Watched> watched, int timeout_ms) {
  static_assert(sizeof(Watched) == sizeof(pollfd) && offsetof(Watched, ready) == offsetof(pollfd, revents));
  static_assert(POLLIN == 1);
  while (poll(reinterpret_cast<pollfd*>(watched.data()), watched.size(), timeout_ms) < 0 && errno == EINTR) {
  }
}

int receive_message(int socket, void* bytes, std::size_t size, int timeout_ms, Message* out) {
  pollfd entry{socket, POLLIN, 0};
  int ready;
  do {
    ready = poll(&entry, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) return ETIMEDOUT;
  iovec part{bytes, size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(ucred))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t received;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) return errno;
  if (received == 0) return EPIPE;
  *out = Message{};
  out->size = static_cast<std::size_t>(received);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET) continue;
    if (header->cmsg_type == SCM_RIGHTS) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
      out->fd = above_stdio(fd);
    } else if (header->cmsg_type == SCM_CREDENTIALS) {
      ucred sender{};
      std::memcpy(&sender, CMSG_DATA(header), sizeof(sender));
      out->sender = sender.pid;
      out->user = sender.uid;
    }
  }
  return 0;
}

int map_shared_fixed(ByteRange pages, int file, std::uint64_t offset, bool readable, bool writable) {
  const int access = (readable ? PROT_READ : PROT_NONE) | (writable ? PROT_WRITE : PROT_NONE);
  const long result =
      syscall(SYS_mmap, pages.begin.value, pages.bytes(), access, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, offset);
  return error_of(result);
}

int map_file_fixed(ByteRange pages, int file, std::uint64_t offset, bool accessible) {
  return map_shared_fixed(pages, file, offset, accessible, accessible);
}

namespace {

int map_nothing(ByteRange pages, int placement) {
  const long result = syscall(SYS_mmap, pages.begin.value, pages.bytes(), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | placement, -1, 0);
  return error_of(result);
}

}  // namespace

int map_nothing_fixed(ByteRange pages) { return map_nothing(pages, MAP_FIXED); }

void confine_mappings(ByteRange pages) {
  constexpr std::uint64_t kLowest = 64 << 10;  // below, nothing can be mapped (vm.mmap_min_addr)
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return;
  VirtAddr free_from{kLowest};
  std::uint64_t bounds[2] = {};  // of the line being read
  int field = 0;                 // 0 and 1: in a number; 2: the rest of the line
  char buffer[4096];
  for (ssize_t count; (count = read(maps, buffer, sizeof(buffer))) > 0;) {
    for (ssize_t i = 0; i < count; ++i) {
      const char c = buffer[i];
      if (c == '\n') {
        if (bounds[0] > free_from.value && bounds[0] <= kUserSpaceEnd)
          (void)map_nothing({free_from, VirtAddr{bounds[0]}}, MAP_FIXED_NOREPLACE);
        free_from = std::max(free_from, VirtAddr{bounds[1]});
        bounds[0] = bounds[1] = 0;
        field = 0;
      } else if (field < 2) {
        if (c >= '0' && c <= '9')
          bounds[field] = bounds[field] << 4 | static_cast<std::uint64_t>(c - '0');
        else if (c >= 'a' && c <= 'f')
          bounds[field] = bounds[field] << 4 | static_cast<std::uint64_t>(c - 'a' + 10);
        else
          ++field;
      }
    }
  }
  close(maps);
  if (free_from.value < kUserSpaceEnd) (void)map_nothing({free_from, VirtAddr{kUserSpaceEnd}}, MAP_FIXED_NOREPLACE);
  (void)syscall(SYS_munmap, pages.begin.value, pages.bytes());
}

namespace {
__attribute__((no_sanitize("address"))) void clear_shadow(VirtAddr begin, VirtAddr end) {
  for (std::uint64_t at = begin.value; at != end.value; ++at) *reinterpret_cast<volatile char*>(at) = 0;
}
}  // namespace

void trust_memory(ByteRange pages) {
  if (__asan_get_shadow_mapping == nullptr) return;
  std::size_t scale = 0, offset = 0;
  __asan_get_shadow_mapping(&scale, &offset);
  const VirtAddr begin{(pages.begin.value >> scale) + offset}, end{(pages.end.value >> scale) + offset};
  const VirtAddr inner_begin = begin.page_ceil(), inner_end = end.page_floor();
  if (inner_begin >= inner_end) return clear_shadow(begin, end);
  clear_shadow(begin, inner_begin);
  clear_shadow(inner_end, end);
  (void)syscall(SYS_mmap, inner_begin.value, inner_end - inner_begin, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

int make_accessible(ByteRange pages) {
  return error_of(syscall(SYS_mprotect, pages.begin.value, pages.bytes(), PROT_READ | PROT_WRITE));
}

int drop_page_tables(ByteRange pages) {
  return error_of(syscall(SYS_madvise, pages.begin.value, pages.bytes(), MADV_DONTNEED));
}

int allocate_file(int file, ByteRange offsets) {
  for (;;) {
    if (fallocate(file, 0, static_cast<off_t>(offsets.begin.value), static_cast<off_t>(offsets.bytes())) == 0) return 0;
    if (errno != EINTR) return errno;
  }
}

int punch_file(int file, ByteRange offsets) {
  for (;;) {
    if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offsets.begin.value),
                  static_cast<off_t>(offsets.bytes())) == 0)
      return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace uhmm::os
