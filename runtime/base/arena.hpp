// SPDX-License-Identifier: Apache-2.0
// The metadata arena: all memory that service threads read or write besides staging and device memory. It comes
// straight from mmap and is never registered, so no runtime structure can ever be away on a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <utility>

namespace uhmm {

class Arena {
 public:
  // The process-wide arena. Usable from the first instruction; never destroyed.
  static Arena& instance();
  // nullptr when out of memory. Thread-safe (leaf lock).
  void* allocate(std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) noexcept;
  void deallocate(void* pointer, std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) noexcept;
  // Bytes handed out and not returned.
  std::size_t bytes_in_use() const noexcept;
  // In a forked child: another thread of its parent may have been inside. What was free then is lost to the child.
  void forget_after_fork();
  // For standard containers with std::pmr; its allocate throws std::bad_alloc.
  std::pmr::memory_resource* resource() noexcept;
};

// new/delete in the arena; make_in_arena returns nullptr when out of memory.
template <typename T, typename... Args>
T* make_in_arena(Args&&... args) {
  void* memory = Arena::instance().allocate(sizeof(T), alignof(T));
  if (memory == nullptr) return nullptr;
  return new (memory) T(std::forward<Args>(args)...);
}
template <typename T>
void destroy_in_arena(T* object) {
  if (object == nullptr) return;
  object->~T();
  Arena::instance().deallocate(object, sizeof(T), alignof(T));
}
template <typename T>
T* make_array_in_arena(std::size_t count) {
  if (count > SIZE_MAX / sizeof(T)) return nullptr;
  auto* array = static_cast<T*>(Arena::instance().allocate(count * sizeof(T), alignof(T)));
  if (array != nullptr) std::uninitialized_value_construct_n(array, count);
  return array;
}
template <typename T>
void destroy_array_in_arena(T* array, std::size_t count) {
  if (array == nullptr) return;
  std::destroy_n(array, count);
  Arena::instance().deallocate(array, count * sizeof(T), alignof(T));
}
struct ArenaDelete {
  template <typename T>
  void operator()(T* object) const {
    destroy_in_arena(object);
  }
};

}  // namespace uhmm
