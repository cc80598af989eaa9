// SPDX-License-Identifier: Apache-2.0
// C++'s operators. The C++ library's own would call malloc() all the same; but a program may be linked with a library
// that defines some of them for a heap of its own (libjemalloc), and a block of one heap must not be given to the
// other.
#include <cstdlib>
#include <new>

#include "preload/heap/heap.hpp"
#include "preload/heap/jemalloc.hpp"

#define UHMM_OPERATOR __attribute__((visibility("default")))

namespace {

void* allocate(std::size_t size, std::size_t alignment) {
  for (;;) {
    void* memory = uhmm::preload::heap::allocate(size, alignment, false);
    if (memory != nullptr) return memory;
    const std::new_handler handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc();
    handler();
  }
}

void* try_to_allocate(std::size_t size, std::size_t alignment) noexcept {
  try {
    return allocate(size, alignment);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

std::size_t bytes(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

UHMM_OPERATOR void* operator new(std::size_t size) { return allocate(size, 0); }
UHMM_OPERATOR void* operator new[](std::size_t size) { return allocate(size, 0); }
UHMM_OPERATOR void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return try_to_allocate(size, 0); }
UHMM_OPERATOR void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return try_to_allocate(size, 0);
}
UHMM_OPERATOR void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, bytes(alignment));
}
UHMM_OPERATOR void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, bytes(alignment));
}
UHMM_OPERATOR void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return try_to_allocate(size, bytes(alignment));
}
UHMM_OPERATOR void* operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return try_to_allocate(size, bytes(alignment));
}

UHMM_OPERATOR void operator delete(void* block) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete[](void* block) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete(void* block, const std::nothrow_t&) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete[](void* block, const std::nothrow_t&) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete(void* block, std::size_t) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete[](void* block, std::size_t) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete(void* block, std::align_val_t) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete[](void* block, std::align_val_t) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete(void* block, std::align_val_t, const std::nothrow_t&) noexcept {
  own_je_free(block);
}
UHMM_OPERATOR void operator delete[](void* block, std::align_val_t, const std::nothrow_t&) noexcept {
  own_je_free(block);
}
UHMM_OPERATOR void operator delete(void* block, std::size_t, std::align_val_t) noexcept { own_je_free(block); }
UHMM_OPERATOR void operator delete[](void* block, std::size_t, std::align_val_t) noexcept { own_je_free(block); }
