// SPDX-License-Identifier: Apache-2.0
// System calls with pointers into managed memory, where the kernel's own faults are not served (the rungs user-mode and
// signal): they fail with EFAULT on what is away. Here is what brings it home. On other rungs nothing of this does
// anything.
//
// Three ways, by what a failed call has done already:
//   retry    it fails before it has done anything: it is called, and called again when that has helped. Costs nothing
//            where nothing is away.
//   whole    a transfer that stops early, and goes on where it stopped.
//   instead  a call that takes something from the kernel before it finds that there is nowhere to put it (a datagram, a
//            child's status, a connection): the kernel gets memory of our own, from which the program's is filled.
#pragma once

#include <errno.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "preload/own_memory.hpp"
#include "runtime/engine/kernel_access.hpp"

namespace uhmm::preload {

// Memory that a call uses.
struct Use {
  const void* address;
  std::size_t bytes;
  bool write;
};
inline Use in(const void* address, std::size_t bytes) { return {address, bytes, false}; }
inline Use out(void* address, std::size_t bytes) { return {address, bytes, true}; }
// A text of unknown length: no path is longer than a page.
inline Use text(const char* address) { return {address, 4096, false}; }

inline bool kernel_needs_help() { return engine::kernel_faults_unserved.load(std::memory_order_relaxed); }
// True: something was in the way, and a call that failed with EFAULT is worth another try. Keeps errno.
bool make_ready(std::initializer_list<Use> uses);
// The same of a list of texts that ends with nullptr, such as the arguments of a program.
bool make_texts_ready(char* const* list);
// What a program is started with.
bool make_program_ready(const char* path, char* const* words, char* const* environment);
bool make_vectors_ready(const iovec* parts, std::size_t count, bool write);
// Of a call between this process's memory and another's, which may be this one; `write`: to `parts`.
bool make_ends_ready(pid_t process, const iovec* parts, std::size_t count, const iovec* there, std::size_t others,
                     bool write);
bool make_message_ready(const msghdr* message, bool write);
bool make_messages_ready(mmsghdr* messages, unsigned count, bool write);
// Is any of it managed, wherever it is?
bool is_managed(const Use& use);

// Copies within the process, of addresses that may be wrong: 0 or an errno, never a signal. Brings home what is away.
int copy_from_program(void* to, std::uint64_t from, std::size_t bytes);
int copy_to_program(std::uint64_t to, const void* from, std::size_t bytes);

// A device may take the memory again before the call is repeated, but not for ever.
inline constexpr int kMostTries = 1000;

template <typename Result, typename Call, typename Ready>
Result retried(Result failed, Call&& call, Ready&& ready) {
  Result result = call();
  for (int tries = 0; result == failed && errno == EFAULT && tries < kMostTries && ready(); ++tries) result = call();
  return result;
}

// `call(done)` transfers what is left after `done` bytes.
template <typename Call>
std::ptrdiff_t whole(const Use& memory, Call&& call) {
  std::size_t done = 0;
  for (int tries = 0;; ++tries) {
    const std::ptrdiff_t result = call(done);
    if (result > 0) done += static_cast<std::size_t>(result);
    const bool stopped = result > 0 ? done < memory.bytes : result < 0 && errno == EFAULT;
    const Use left{static_cast<const std::byte*>(memory.address) + done, memory.bytes - done, memory.write};
    if (!stopped || tries == kMostTries || !make_ready({left}))
      return done != 0 ? static_cast<std::ptrdiff_t>(done) : result;
  }
}

// A piece of memory that the kernel gets one of our own for: `*address` is what the call is given.
struct Part {
  void** address;
  std::size_t bytes;
  bool data;  // as many bytes as the call's result says are given back; else all of it, and it is brought along
};
template <typename Variable>
Part whole_of(Variable*& pointer, std::size_t bytes = sizeof(Variable)) {
  return {reinterpret_cast<void**>(const_cast<std::remove_const_t<Variable>**>(&pointer)), bytes, false};
}
inline Part data_of(void*& pointer, std::size_t bytes) { return {&pointer, bytes, true}; }

// The exchange itself. At most four parts.
class Exchange {
 public:
  explicit Exchange(std::initializer_list<Part> parts);
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange();
  int error() const { return error_; }
  // To the program's memory. 0 or an errno. `result`: the call's.
  int give_back(std::ptrdiff_t result) const;

 private:
  struct One {
    Part part;
    void* program;
    std::byte* own;
  };
  std::array<One, 4> ones_{};
  std::size_t count_ = 0;
  Buffer memory_;
  int error_ = 0;
};

template <typename Call>
auto instead(std::initializer_list<Part> parts, Call&& call) -> decltype(call()) {
  bool managed = false;
  if (kernel_needs_help())
    for (const Part& part : parts) managed = managed || is_managed(out(*part.address, part.bytes));
  if (!managed) return call();
  const Exchange exchange(parts);
  if (exchange.error() != 0) {
    errno = exchange.error();
    return -1;
  }
  const auto result = call();
  const int error = errno;
  const int failed = exchange.give_back(static_cast<std::ptrdiff_t>(result));
  errno = failed != 0 ? failed : error;
  return failed != 0 ? -1 : result;
}

}  // namespace uhmm::preload
