// SPDX-License-Identifier: Apache-2.0
// Containers of the preloaded library. Their memory is the runtime's, not the program's heap: that may be managed, and
// a program that writes beyond a block of its own must not hit what it knows nothing of.
#pragma once

#include <cerrno>
#include <map>
#include <new>
#include <unordered_map>
#include <vector>

#include "preload/real.hpp"
#include "runtime/base/arena.hpp"

namespace uhmm::preload {

template <typename T>
struct OwnAllocator {
  using value_type = T;
  OwnAllocator() = default;
  template <typename Other>
  OwnAllocator(const OwnAllocator<Other>&) {}  // NOLINT(google-explicit-constructor): they are all the same

  T* allocate(std::size_t count) {
    void* memory = Arena::instance().allocate(count * sizeof(T), alignof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) { Arena::instance().deallocate(memory, count * sizeof(T), alignof(T)); }
  bool operator==(const OwnAllocator&) const = default;
};

template <typename T>
using Vector = std::vector<T, OwnAllocator<T>>;
template <typename Key, typename Value>
using Map = std::map<Key, Value, std::less<Key>, OwnAllocator<std::pair<const Key, Value>>>;
template <typename Key, typename Value>
using HashMap =
    std::unordered_map<Key, Value, std::hash<Key>, std::equal_to<Key>, OwnAllocator<std::pair<const Key, Value>>>;

// What a caller in C is told when that memory has run out: `failed`, with ENOMEM.
template <typename Body>
auto without_exceptions(Body&& body, decltype(body()) failed) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    errno = ENOMEM;
    return failed;
  }
}

// A buffer of whole pages. It takes no lock, so a thread may make one whatever its own stack is doing.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    void* memory =
        real::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) data_ = static_cast<std::byte*>(memory);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) (void)real::munmap(data_, bytes_);
  }
  std::byte* data() const { return data_; }  // nullptr: no memory

 private:
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

// An object that is used until the process has ended.
template <typename T>
class Forever {
 public:
  Forever() { new (memory_) T; }
  T& operator*() { return *std::launder(reinterpret_cast<T*>(memory_)); }

 private:
  alignas(T) std::byte memory_[sizeof(T)];
};

}  // namespace uhmm::preload
