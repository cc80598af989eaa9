// SPDX-License-Identifier: Apache-2.0
#include "bench/fault_floor.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace uhmm::bench {
namespace {

// Newer than the header of Debian 12.
struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t moved;
};
const unsigned long kMoveRequest = _IOWR(UFFDIO, 0x05, MoveArgs);
constexpr std::uint64_t kFeatureMove = 1u << 16;

void watch(int fd, const Memory& memory) {
  struct uffdio_register request {};
  request.range = {reinterpret_cast<std::uint64_t>(memory.data()), memory.bytes()};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  require(ioctl(fd, UFFDIO_REGISTER, &request) == 0, "UFFDIO_REGISTER");
}

}  // namespace

FaultFloor::FaultFloor(std::size_t bytes, int cpu) : cpu_(cpu), device_(bytes), staging_(bytes), program_(bytes) {
  std::memset(device_.data(), 1, bytes);
  std::memset(staging_.data(), 2, bytes);
  fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  require(fd_ >= 0, "userfaultfd");
  struct uffdio_api api {};
  api.api = UFFD_API;
  api.features = kFeatureMove;
  require(ioctl(fd_, UFFDIO_API, &api) == 0, "this kernel has no UFFDIO_MOVE: there is no floor for faults");
  watch(fd_, program_);
  watch(fd_, staging_);
}

FaultFloor::~FaultFloor() {
  if (fd_ >= 0) close(fd_);
}

void FaultFloor::move(std::byte* to, const std::byte* from, std::size_t bytes) const {
  MoveArgs args{reinterpret_cast<std::uint64_t>(to), reinterpret_cast<std::uint64_t>(from), bytes, 0, 0};
  (void)ioctl(fd_, kMoveRequest, &args);
}

void FaultFloor::serve() {
  const PinnedHere pinned(cpu_);
  while (!stop_.load(std::memory_order_relaxed)) {
    pollfd watched{fd_, POLLIN, 0};
    if (poll(&watched, 1, 20) <= 0) continue;
    struct uffd_msg message;
    if (read(fd_, &message, sizeof(message)) <= 0) continue;
    auto* at = reinterpret_cast<std::byte*>(message.arg.pagefault.address & ~(kPage - 1));
    std::byte* staged = staging_.page(next_staged_++);
    std::memcpy(staged, device_.data() + (at - program_.data()), kPage);
    move(at, staged, kPage);
  }
}

double FaultFloor::touch_us(std::span<const std::uint32_t> pages) {
  next_staged_ = 0;
  stop_.store(false);
  std::thread service([&] { serve(); });
  double result = 0;
  std::thread program([&] {
    const PinnedHere pinned(cpu_);
    usleep(1000);  // the service sleeps in poll by now
    result = median_touch_us(program_.data(), pages);
  });
  program.join();
  stop_.store(true);
  service.join();
  // The pages go back to where they came from: recycled, as the runtime does it.
  std::size_t staged = 0;
  for (const std::uint32_t page : pages) move(staging_.page(staged++), program_.page(page), kPage);
  return result;
}

}  // namespace uhmm::bench
