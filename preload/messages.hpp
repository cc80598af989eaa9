// SPDX-License-Identifier: Apache-2.0
// Scattered memory and messages of sockets, received into memory of our own first (see kernel_access.hpp, "instead").
#pragma once

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <optional>

#include "preload/kernel_access.hpp"

namespace uhmm::preload {

// An address's length that a call is given by pointer; 0 where it can't be read.
std::size_t length_in(const socklen_t* length);

// The parts of a readv(2), as one buffer.
class Gathered {
 public:
  Gathered(const iovec* parts, int count);
  Gathered(const Gathered&) = delete;
  Gathered& operator=(const Gathered&) = delete;
  // Some of it is managed, and there is nothing wrong with it.
  bool useful() const { return memory_.has_value(); }
  // `call(memory, bytes)` fills it; what came is spread over the parts.
  template <typename Call>
  ssize_t fill(Call&& call) const {
    if (memory_->data() == nullptr) {
      errno = ENOMEM;
      return -1;
    }
    const ssize_t got = call(memory_->data() + sizeof(iovec), bytes_);
    if (got <= 0 || spread(static_cast<std::size_t>(got))) return got;
    errno = EFAULT;
    return -1;
  }
  const iovec* one_part(void* memory, std::size_t bytes) const { return new (memory_->data()) iovec{memory, bytes}; }

 private:
  bool spread(std::size_t bytes) const;

  const iovec* parts_;
  int count_;
  std::size_t bytes_ = 0;
  std::optional<Buffer> memory_;
};

// What a call that receives messages says, and how many of them are new.
struct Received {
  ssize_t result;
  int count;
};

class Messages {
 public:
  // Headers of messages, `stride` bytes apart.
  Messages(void* headers, std::size_t stride, unsigned count);
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;
  bool useful() const { return memory_.has_value(); }
  // `call(headers)` receives into ours.
  template <typename Call>
  ssize_t fill(Call&& call) const {
    if (memory_->data() == nullptr) {
      errno = ENOMEM;
      return -1;
    }
    const Received got = call(ours_);
    const int error = errno;
    for (int i = 0; i < got.count; ++i) {
      if (give_back(static_cast<std::size_t>(i))) continue;
      errno = EFAULT;
      return -1;
    }
    errno = error;
    return got.result;
  }

 private:
  std::uint64_t header(std::size_t i) const { return headers_ + i * stride_; }
  bool measure();
  bool measure_one(const msghdr& message);
  void lay_out();
  bool give_back(std::size_t i) const;

  std::uint64_t headers_;
  std::size_t stride_;
  std::size_t count_;
  std::size_t bytes_ = 0;
  bool managed_ = false;
  std::optional<Buffer> memory_;
  mmsghdr* ours_ = nullptr;
};

}  // namespace uhmm::preload
