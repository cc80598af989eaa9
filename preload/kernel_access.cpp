// SPDX-License-Identifier: Apache-2.0
#include "preload/kernel_access.hpp"

#include <unistd.h>

#include <algorithm>
#include <span>

#include "preload/managed.hpp"
#include "preload/real.hpp"
#include "runtime/api/runtime.hpp"
#include "runtime/engine/signal_faults.hpp"

namespace uhmm::preload {
namespace {

// What the program calls, and not what the runtime does for it: that may have locks which the work needs.
bool may_ask() { return kernel_needs_help() && called_by_program() && !engine::serving_signalled_fault(); }

engine::Readiness ask(const Use& use) {
  const VirtAddr begin{use.address};
  const std::uint64_t most = begin.value < kUserSpaceEnd ? kUserSpaceEnd - begin.value : 0;
  const ByteRange bytes{begin, begin + std::min<std::uint64_t>(use.bytes, most)};
  const api::Visit visit;
  api::Runtime* const runtime = visit.runtime();
  if (runtime == nullptr || use.address == nullptr || bytes.empty()) return {};
  const bool write = use.write;
  return runtime->context.workers.call(
      [runtime, bytes, write] { return engine::make_ready_for_kernel(runtime->context, bytes, write); });
}

constexpr std::size_t kMostVectors = 1024;  // UIO_MAXIOV

std::uint64_t address_of(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }

// Each part begins where anything may begin.
std::size_t rounded(std::size_t bytes) {
  return bytes > kUserSpaceEnd ? kUserSpaceEnd : (bytes + 63) & ~std::size_t{63};
}
std::size_t bytes_of(std::initializer_list<Part> parts) {
  std::size_t all = 1;
  for (const Part& part : parts) all += rounded(part.bytes);
  return all;
}

using Copy = ssize_t(pid_t, const iovec*, unsigned long, const iovec*, unsigned long);

int copy(Copy* function, void* own, std::uint64_t program, std::size_t bytes, bool write) {
  // In the stack, which may be managed as well.
  const iovec ends[2] = {{own, bytes}, {reinterpret_cast<void*>(program), bytes}};
  const auto done = [&] {
    const ssize_t copied = function(getpid(), &ends[0], 1, &ends[1], 1);
    if (copied == static_cast<ssize_t>(bytes)) return 0;
    errno = EFAULT;
    return -1;
  };
  const auto ready = [&] {
    return make_ready({in(ends, sizeof(ends)), {own, bytes, !write}, {ends[1].iov_base, bytes, write}});
  };
  return retried(-1, done, ready) == 0 ? 0 : EFAULT;
}

}  // namespace

bool make_ready(std::initializer_list<Use> uses) {
  if (!may_ask()) return false;
  const int error = errno;
  bool served = false;
  for (const Use& use : uses) served = ask(use).served || served;
  errno = error;
  return served;
}

bool make_texts_ready(char* const* list) {
  if (!may_ask() || list == nullptr) return false;
  const int error = errno;
  bool served = false;
  for (;; ++list) {
    char* one = nullptr;
    served = make_ready({in(list, sizeof(one))}) || served;
    if (copy_from_program(&one, address_of(list), sizeof(one)) != 0 || one == nullptr) break;
    // Arguments have no limit but their sum; each page tells whether there is a next one.
    for (bool more = true; more; one += kPageBytes) {
      served = make_ready({text(one)}) || served;
      const char* const last = reinterpret_cast<char*>(VirtAddr{one}.page_floor().value) + kPageBytes - 1;
      char byte = 0;
      more = copy_from_program(&byte, address_of(last), 1) == 0 && byte != '\0';
    }
  }
  errno = error;
  return served;
}

bool is_managed(const Use& use) { return may_ask() && ask(use).managed; }

int copy_from_program(void* to, std::uint64_t from, std::size_t bytes) {
  return copy(real::process_vm_readv, to, from, bytes, false);
}

int copy_to_program(std::uint64_t to, const void* from, std::size_t bytes) {
  return copy(real::process_vm_writev, const_cast<void*>(from), to, bytes, true);
}

bool make_program_ready(const char* path, char* const* words, char* const* environment) {
  bool served = make_ready({text(path)});
  served = make_texts_ready(words) || served;
  return make_texts_ready(environment) || served;
}

bool make_vectors_ready(const iovec* parts, std::size_t count, bool write) {
  if (!may_ask() || count > kMostVectors) return false;
  bool served = make_ready({in(parts, count * sizeof(*parts))});
  iovec part{};
  for (std::size_t i = 0; i < count && copy_from_program(&part, address_of(parts + i), sizeof(part)) == 0; ++i)
    served = make_ready({{part.iov_base, part.iov_len, write}}) || served;
  return served;
}

bool make_ends_ready(pid_t process, const iovec* parts, std::size_t count, const iovec* there, std::size_t others,
                     bool write) {
  bool served = make_vectors_ready(parts, count, write);
  // The list is ours, whoever's memory it is about.
  served = make_ready({in(there, std::min(others, kMostVectors) * sizeof(*there))}) || served;
  return (process == getpid() && make_vectors_ready(there, others, !write)) || served;
}

bool make_message_ready(const msghdr* message, bool write) {
  if (!may_ask()) return false;
  bool served = make_ready({out(const_cast<msghdr*>(message), sizeof(*message))});
  msghdr copy{};
  if (copy_from_program(&copy, address_of(message), sizeof(copy)) != 0) return served;
  served =
      make_ready({{copy.msg_name, copy.msg_namelen, write}, {copy.msg_control, copy.msg_controllen, write}}) || served;
  return make_vectors_ready(copy.msg_iov, copy.msg_iovlen, write) || served;
}

bool make_messages_ready(mmsghdr* messages, unsigned count, bool write) {
  bool served = make_ready({out(messages, std::min<std::size_t>(count, kMostVectors) * sizeof(*messages))});
  for (std::size_t i = 0; may_ask() && i < std::min<std::size_t>(count, kMostVectors); ++i)
    served = make_message_ready(&messages[i].msg_hdr, write) || served;
  return served;
}

Exchange::Exchange(std::initializer_list<Part> parts) : memory_(bytes_of(parts)) {
  std::byte* at = memory_.data();
  if (at == nullptr) error_ = ENOMEM;
  for (const Part& part : parts) {
    if (*part.address == nullptr || error_ != 0) continue;
    ones_[count_++] = {part, *part.address, at};
    if (!part.data) error_ = copy_from_program(at, address_of(*part.address), part.bytes);
    *part.address = at;
    at += rounded(part.bytes);
  }
}

Exchange::~Exchange() {
  for (const One& one : std::span(ones_).first(count_)) *one.part.address = one.program;
}

int Exchange::give_back(std::ptrdiff_t result) const {
  if (result < 0) return 0;
  for (const One& one : std::span(ones_).first(count_)) {
    // A call may say that there was more than it had room for.
    const std::size_t bytes =
        one.part.data ? std::min(one.part.bytes, static_cast<std::size_t>(result)) : one.part.bytes;
    if (bytes == 0) continue;
    if (const int error = copy_to_program(address_of(one.program), one.own, bytes); error != 0) return error;
  }
  return 0;
}

}  // namespace uhmm::preload
