// SPDX-License-Identifier: Apache-2.0
#include "preload/messages.hpp"

#include <algorithm>
#include <limits>
#include <new>

namespace uhmm::preload {
namespace {

constexpr std::size_t kMostParts = 1024;                  // UIO_MAXIOV
constexpr std::size_t kMostBytes = std::size_t{1} << 46;  // more is an error anyway, which the kernel may tell

template <typename T>
bool fetch(T& to, const T* from) {
  return copy_from_program(&to, reinterpret_cast<std::uint64_t>(from), sizeof(T)) == 0;
}
bool store(void* to, const void* from, std::size_t bytes) {
  return bytes == 0 || copy_to_program(reinterpret_cast<std::uint64_t>(to), from, bytes) == 0;
}
std::size_t rounded(std::size_t bytes) { return (bytes + 63) & ~std::size_t{63}; }

// Calls visit(part) while it answers true; false if one could not be read, or did not.
template <typename Visit>
bool for_parts(const iovec* parts, std::size_t count, Visit&& visit) {
  if (count > kMostParts) return false;
  iovec part{};
  for (std::size_t i = 0; i < count; ++i)
    if (!fetch(part, parts + i) || part.iov_len > kMostBytes || !visit(part)) return false;
  return true;
}

bool spread(const iovec* parts, std::size_t count, const std::byte* data, std::size_t bytes) {
  return for_parts(parts, count, [&](const iovec& part) {
    const std::size_t here = std::min(part.iov_len, bytes);
    const bool done = store(part.iov_base, data, here);
    data += here;
    bytes -= here;
    return done;
  });
}

}  // namespace

std::size_t length_in(const socklen_t* length) {
  socklen_t bytes = 0;
  if (length == nullptr || !fetch(bytes, length)) return 0;
  return std::min<std::size_t>(bytes, sizeof(sockaddr_storage));
}

Gathered::Gathered(const iovec* parts, int count) : parts_(parts), count_(count) {
  bool managed = false;
  const bool good = count > 0 && for_parts(parts, static_cast<std::size_t>(count), [&](const iovec& part) {
                      bytes_ += part.iov_len;
                      managed = managed || is_managed(out(part.iov_base, part.iov_len));
                      return bytes_ <= kMostBytes;
                    });
  if (good && managed) memory_.emplace(sizeof(iovec) + bytes_);
}

bool Gathered::spread(std::size_t bytes) const {
  return preload::spread(parts_, static_cast<std::size_t>(count_), memory_->data() + sizeof(iovec), bytes);
}

Messages::Messages(void* headers, std::size_t stride, unsigned count)
    : headers_(reinterpret_cast<std::uint64_t>(headers)), stride_(stride), count_(count) {
  if (!measure() || !managed_) return;
  memory_.emplace(bytes_);
  if (memory_->data() != nullptr) lay_out();
}

bool Messages::measure() {
  if (count_ == 0 || count_ > kMostParts) return false;
  bytes_ = rounded(count_ * sizeof(mmsghdr)) + rounded(count_ * sizeof(iovec));
  for (std::size_t i = 0; i < count_; ++i) {
    msghdr message{};
    if (copy_from_program(&message, header(i), sizeof(message)) != 0 || !measure_one(message)) return false;
    managed_ = managed_ || is_managed(out(reinterpret_cast<void*>(header(i)), sizeof(message)));
  }
  return true;
}

bool Messages::measure_one(const msghdr& message) {
  std::size_t data = 0;
  const bool good = for_parts(message.msg_iov, message.msg_iovlen, [&](const iovec& part) {
    data += part.iov_len;
    managed_ = managed_ || is_managed(out(part.iov_base, part.iov_len));
    return data <= kMostBytes;
  });
  if (!good || message.msg_controllen > kMostBytes) return false;
  managed_ = managed_ || is_managed(out(message.msg_name, message.msg_namelen)) ||
             is_managed(out(message.msg_control, message.msg_controllen));
  bytes_ += rounded(data) + rounded(message.msg_namelen) + rounded(message.msg_controllen);
  return bytes_ <= kMostBytes;
}

// The lengths are read once more; who changes them meanwhile gets no more than was measured.
void Messages::lay_out() {
  std::byte* at = memory_->data();
  std::byte* const end = at + bytes_;
  const auto take = [&](std::size_t bytes) {
    std::byte* const mine = at;
    at += rounded(std::min<std::size_t>(bytes, static_cast<std::size_t>(end - at)));
    return mine;
  };
  ours_ = reinterpret_cast<mmsghdr*>(take(count_ * sizeof(mmsghdr)));
  auto* const parts = reinterpret_cast<iovec*>(take(count_ * sizeof(iovec)));
  for (std::size_t i = 0; i < count_; ++i) {
    msghdr message{};
    (void)copy_from_program(&message, header(i), sizeof(message));
    std::size_t data = 0;
    (void)for_parts(message.msg_iov, message.msg_iovlen, [&](const iovec& part) {
      data += part.iov_len;
      return data <= kMostBytes;
    });
    const auto left = [&] { return static_cast<std::size_t>(end - at); };
    const auto piece = [&](void*& pointer, std::size_t bytes) {
      bytes = std::min(bytes, left());
      std::byte* const mine = take(bytes);
      if (pointer != nullptr) pointer = mine;
      return bytes;
    };
    void* filled = at;
    parts[i].iov_len = piece(filled, data);
    parts[i].iov_base = filled;
    message.msg_namelen = static_cast<socklen_t>(piece(message.msg_name, message.msg_namelen));
    message.msg_controllen = piece(message.msg_control, message.msg_controllen);
    message.msg_iov = parts + i;
    message.msg_iovlen = 1;
    new (ours_ + i) mmsghdr{message, 0};
  }
}

bool Messages::give_back(std::size_t i) const {
  msghdr theirs{};
  if (copy_from_program(&theirs, header(i), sizeof(theirs)) != 0) return false;
  const msghdr& ours = ours_[i].msg_hdr;
  const std::size_t bytes = std::min<std::size_t>(ours_[i].msg_len, ours.msg_iov->iov_len);
  const bool done =
      spread(theirs.msg_iov, theirs.msg_iovlen, static_cast<const std::byte*>(ours.msg_iov->iov_base), bytes) &&
      (theirs.msg_name == nullptr ||
       store(theirs.msg_name, ours.msg_name, std::min(theirs.msg_namelen, ours.msg_namelen))) &&
      (theirs.msg_control == nullptr ||
       store(theirs.msg_control, ours.msg_control, std::min(theirs.msg_controllen, ours.msg_controllen)));
  theirs.msg_namelen = ours.msg_namelen;
  theirs.msg_controllen = ours.msg_controllen;
  theirs.msg_flags = ours.msg_flags;
  const std::uint64_t to = header(i);
  return done && copy_to_program(to, &theirs, sizeof(theirs)) == 0 &&
         (stride_ == sizeof(msghdr) ||
          copy_to_program(to + offsetof(mmsghdr, msg_len), &ours_[i].msg_len, sizeof(ours_[i].msg_len)) == 0);
}

}  // namespace uhmm::preload
