// SPDX-License-Identifier: Apache-2.0
// Part of uhmm.hpp, usable alone: allocators over the uhmm_malloc family.
#ifndef UHMM_ALLOCATOR_HPP
#define UHMM_ALLOCATOR_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <vector>

#include "uhmm/uhmm.h"

namespace uhmm {

// Managed memory for std::pmr containers. All objects are equal: what one allocates another may free.
class memory_resource final : public std::pmr::memory_resource {
 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* memory = uhmm_aligned_alloc(alignment, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void do_deallocate(void* memory, std::size_t, std::size_t) override { uhmm_free(memory); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return dynamic_cast<const memory_resource*>(&other) != nullptr;
  }
};
// One that lives until the process ends.
inline memory_resource* managed_resource() {
  // Never destroyed: static containers may still hold memory of it.
  static memory_resource* const resource = new memory_resource;
  return resource;
}

// Managed memory for std containers: std::vector<float, uhmm::allocator<float>>. Stateless; all are equal.
template <typename T>
class allocator {
 public:
  using value_type = T;
  using is_always_equal = std::true_type;
  using propagate_on_container_move_assignment = std::true_type;

  constexpr allocator() noexcept = default;
  template <typename U>
  constexpr allocator(const allocator<U>&) noexcept {}  // NOLINT(google-explicit-constructor): required of allocators

  [[nodiscard]] T* allocate(std::size_t count) {
    if (count > std::numeric_limits<std::ptrdiff_t>::max() / sizeof(T)) throw std::bad_array_new_length();
    void* memory = uhmm_aligned_alloc(std::max<std::size_t>(alignof(T), 16), count * sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) noexcept { uhmm_free(memory); }

  template <typename U>
  constexpr bool operator==(const allocator<U>&) const noexcept {
    return true;
  }
};

// A std::vector whose elements are managed from the start: no registration needed.
template <typename T>
using vector = std::vector<T, allocator<T>>;

}  // namespace uhmm

#endif  // UHMM_ALLOCATOR_HPP
