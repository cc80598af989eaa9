// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/pins.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "runtime/os/thread.hpp"

namespace uhmm::os {

int reference_pages(ByteRange pages, PinTimes* times) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return errno;
  const iovec part{pages.begin.pointer(), pages.bytes()};
  const std::uint64_t start = now_ns();
  // A page in a pipe is referenced until it is read or the pipe ends.
  const ssize_t taken = vmsplice(ends[1], &part, 1, SPLICE_F_NONBLOCK);
  const int error = taken == static_cast<ssize_t>(pages.bytes()) ? 0 : taken < 0 ? errno : EFAULT;
  const std::uint64_t got = now_ns();
  ::close(ends[0]);
  ::close(ends[1]);
  times->get_ns += got - start;
  times->put_ns += now_ns() - got;
  return error;
}

int pin_pages(ByteRange pages, PinTimes* times) {
  io_uring ring{};
  int error = -io_uring_queue_init(1, &ring, 0);
  if (error != 0) return error;
  const iovec part{pages.begin.pointer(), pages.bytes()};
  const std::uint64_t start = now_ns();
  error = -io_uring_register_buffers(&ring, &part, 1);
  const std::uint64_t got = now_ns();
  if (error == 0) (void)io_uring_unregister_buffers(&ring);
  times->get_ns += got - start;
  times->put_ns += now_ns() - got;
  io_uring_queue_exit(&ring);
  return error;
}

}  // namespace uhmm::os
