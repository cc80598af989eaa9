// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/event_loop.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace uhmm::os {
namespace {

constexpr std::uint32_t kNotifyToken = ~std::uint32_t{0};
constexpr std::size_t kNotifySlot = 0;
constexpr unsigned kRingEntries = 64;

std::uint64_t user_data(std::size_t slot, std::uint32_t generation) {
  return (static_cast<std::uint64_t>(generation) << 32) | slot;
}

}  // namespace

Status EventLoop::open() {
  event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd_ < 0) return fail_errno("eventfd", errno);
  // Completions are only looked at inside wait(), by one thread: the kernel can then skip its own wake-ups.
  for (unsigned flags : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0u}) {
    if (io_uring_queue_init(kRingEntries, &ring_, flags) == 0) {
      ring_open_ = true;
      (void)io_uring_ring_dontfork(&ring_);
      break;
    }
  }
  return watch(event_fd_, kNotifyToken);
}

void EventLoop::close() {
  if (ring_open_) io_uring_queue_exit(&ring_);
  ring_open_ = false;
  if (event_fd_ >= 0) ::close(event_fd_);
  event_fd_ = -1;
  watches_ = {};
}

Status EventLoop::watch(int fd, std::uint32_t token) {
  for (std::size_t slot = token == kNotifyToken ? kNotifySlot : 1; slot < watches_.size(); ++slot) {
    if (watches_[slot].fd >= 0) continue;
    watches_[slot] = {fd, token, next_generation_++, false};
    if (ring_open_) arm(slot);
    return {};
  }
  return fail(UHMM_ERR_NO_MEMORY, "an event loop watches at most %zu descriptors", kMostDescriptors);
}

void EventLoop::unwatch(std::uint32_t token) {
  for (std::size_t slot = 1; slot < watches_.size(); ++slot) {
    Watch& watch = watches_[slot];
    if (watch.fd < 0 || watch.token != token) continue;
    if (ring_open_ && watch.armed) {
      if (io_uring_sqe* sqe = io_uring_get_sqe(&ring_); sqe != nullptr) {
        io_uring_prep_poll_remove(sqe, user_data(slot, watch.generation));
        io_uring_sqe_set_data64(sqe, user_data(slot, 0));
        io_uring_submit(&ring_);
      }
    }
    watch = {};
  }
}

void EventLoop::arm(std::size_t slot) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {  // the queue is full of unsubmitted entries
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return;  // wait() tries again
  }
  io_uring_prep_poll_multishot(sqe, watches_[slot].fd, POLLIN);
  io_uring_sqe_set_data64(sqe, user_data(slot, watches_[slot].generation));
  watches_[slot].armed = true;
}

void EventLoop::handle(const io_uring_cqe& cqe, std::span<std::uint32_t> tokens, std::size_t* stored) {
  const std::size_t slot = cqe.user_data & 0xffffffff;
  const auto generation = static_cast<std::uint32_t>(cqe.user_data >> 32);
  if (slot >= watches_.size() || watches_[slot].fd < 0 || watches_[slot].generation != generation) return;
  if ((cqe.flags & IORING_CQE_F_MORE) == 0) watches_[slot].armed = false;
  if (slot == kNotifySlot) {
    drain_notification();
  } else {
    store(watches_[slot].token, tokens, stored);
  }
}

void EventLoop::store(std::uint32_t token, std::span<std::uint32_t> tokens, std::size_t* stored) {
  // Once each: a descriptor that reports often must not crowd out one that reports once.
  for (std::size_t i = 0; i < *stored; ++i)
    if (tokens[i] == token) return;
  if (*stored < tokens.size()) tokens[(*stored)++] = token;
}

std::size_t EventLoop::wait(std::span<std::uint32_t> tokens) {
  std::size_t stored = 0;
  if (!ring_open_) {
    std::array<pollfd, kMostDescriptors> polls;
    std::array<std::size_t, kMostDescriptors> slots;
    nfds_t count = 0;
    for (std::size_t slot = 0; slot < watches_.size(); ++slot) {
      if (watches_[slot].fd < 0) continue;
      slots[count] = slot;
      polls[count++] = {watches_[slot].fd, POLLIN, 0};
    }
    if (poll(polls.data(), count, -1) <= 0) return 0;
    for (nfds_t i = 0; i < count; ++i) {
      if (polls[i].revents == 0) continue;
      if (slots[i] == kNotifySlot) {
        drain_notification();
      } else {
        store(watches_[slots[i]].token, tokens, &stored);
      }
    }
    return stored;
  }
  for (std::size_t slot = 0; slot < watches_.size(); ++slot)
    if (watches_[slot].fd >= 0 && !watches_[slot].armed) arm(slot);
  (void)io_uring_submit_and_wait(&ring_, 1);
  io_uring_cqe* cqes[kRingEntries];
  const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes, kRingEntries);
  for (unsigned i = 0; i < count; ++i) handle(*cqes[i], tokens, &stored);
  io_uring_cq_advance(&ring_, count);
  return stored;
}

void EventLoop::notify() {
  const std::uint64_t one = 1;
  (void)!::write(event_fd_, &one, sizeof(one));
}

void EventLoop::drain_notification() {
  std::uint64_t count = 0;
  (void)!::read(event_fd_, &count, sizeof(count));
}

}  // namespace uhmm::os
