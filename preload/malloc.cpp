// SPDX-License-Identifier: Apache-2.0
// The malloc family, complete. operator new and delete of the C++ library call it.
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <bit>

#include "preload/heap/heap.hpp"
#include "preload/heap/jemalloc.hpp"
#include "runtime/base/types.hpp"

#define UHMM_INTERPOSE extern "C" __attribute__((visibility("default")))

namespace {

using uhmm::kPageBytes;
using uhmm::preload::heap::Mode;
namespace heap = uhmm::preload::heap;

bool direct() { return __builtin_expect(static_cast<long>(heap::mode == Mode::Direct), 1) != 0; }

void* aligned(std::size_t alignment, std::size_t size) {
  if (!std::has_single_bit(alignment)) {
    errno = EINVAL;
    return nullptr;
  }
  return heap::allocate(size, alignment, false);
}

bool overflows(std::size_t count, std::size_t size, std::size_t* bytes) {
  if (!__builtin_mul_overflow(count, size, bytes)) return false;
  errno = ENOMEM;
  return true;
}

// All that jemalloc knows in mallinfo's words, which are glibc's heap's.
template <typename Info, typename Number>
Info info() {
  const heap::HeapStats stats = heap::heap_stats();
  Info out{};
  out.arena = static_cast<Number>(stats.mapped);
  out.ordblks = 1;
  out.uordblks = static_cast<Number>(stats.allocated);
  out.fordblks = static_cast<Number>(stats.active - std::min(stats.active, stats.allocated));
  out.keepcost = static_cast<Number>(stats.resident - std::min(stats.resident, stats.active));
  return out;
}

}  // namespace

UHMM_INTERPOSE void* malloc(size_t size) noexcept {
  return direct() ? own_je_malloc(size) : heap::allocate(size, 0, false);
}

UHMM_INTERPOSE void* calloc(size_t count, size_t size) noexcept {
  if (direct()) return own_je_calloc(count, size);
  std::size_t bytes = 0;
  return overflows(count, size, &bytes) ? nullptr : heap::allocate(bytes, 0, true);
}

UHMM_INTERPOSE void* realloc(void* pointer, size_t size) noexcept { return heap::reallocate(pointer, size); }

UHMM_INTERPOSE void* reallocarray(void* pointer, size_t count, size_t size) noexcept {
  std::size_t bytes = 0;
  return overflows(count, size, &bytes) ? nullptr : realloc(pointer, bytes);
}

UHMM_INTERPOSE void free(void* pointer) noexcept { own_je_free(pointer); }

UHMM_INTERPOSE void* aligned_alloc(size_t alignment, size_t size) noexcept { return aligned(alignment, size); }

UHMM_INTERPOSE void* memalign(size_t alignment, size_t size) noexcept {
  // As the C library does: the next power of two.
  return alignment > SIZE_MAX / 2 ? aligned(0, size) : aligned(std::bit_ceil(alignment), size);
}

UHMM_INTERPOSE int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
  if (alignment % sizeof(void*) != 0 || !std::has_single_bit(alignment)) return EINVAL;
  const int before = errno;
  void* memory = heap::allocate(size, alignment, false);
  errno = before;
  if (memory == nullptr) return ENOMEM;
  *out = memory;
  return 0;
}

UHMM_INTERPOSE void* valloc(size_t size) noexcept { return aligned(kPageBytes, size); }

UHMM_INTERPOSE void* pvalloc(size_t size) noexcept {
  const std::size_t pages = (std::max<std::size_t>(size, 1) + kPageBytes - 1) & ~(kPageBytes - 1);
  return aligned(kPageBytes, pages < size ? SIZE_MAX : pages);
}

UHMM_INTERPOSE size_t malloc_usable_size(void* pointer) noexcept {
  return pointer != nullptr ? own_je_malloc_usable_size(pointer) : 0;
}

UHMM_INTERPOSE int malloc_trim(size_t) noexcept { return heap::trim() ? 1 : 0; }

// Tunes the C library's heap, which is not used.
UHMM_INTERPOSE int mallopt(int, int) noexcept { return 1; }

UHMM_INTERPOSE struct mallinfo mallinfo(void) noexcept { return info<struct mallinfo, int>(); }
UHMM_INTERPOSE struct mallinfo2 mallinfo2(void) noexcept { return info<struct mallinfo2, size_t>(); }

UHMM_INTERPOSE void malloc_stats(void) noexcept { own_je_malloc_stats_print(nullptr, nullptr, nullptr); }

UHMM_INTERPOSE int malloc_info(int options, FILE* stream) noexcept {
  if (options != 0) return EINVAL;
  const heap::HeapStats stats = heap::heap_stats();
  const int written =
      fprintf(stream,
              "<malloc version=\"uhmm-1\">\n<total type=\"allocated\" size=\"%lu\"/>\n"
              "<total type=\"active\" size=\"%lu\"/>\n<total type=\"resident\" size=\"%lu\"/>\n</malloc>\n",
              stats.allocated, stats.active, stats.resident);
  return written < 0 ? -1 : 0;
}

// jemalloc's own interface, for programs that are linked with it: their blocks are of this heap, too.
UHMM_INTERPOSE void* mallocx(size_t size, int flags) noexcept {
  return direct() || flags != 0 ? own_je_mallocx(size, flags) : heap::allocate(size, 0, false);
}
UHMM_INTERPOSE void* rallocx(void* pointer, size_t size, int flags) noexcept {
  return own_je_rallocx(pointer, size, flags);
}
UHMM_INTERPOSE size_t xallocx(void* pointer, size_t size, size_t extra, int flags) noexcept {
  return own_je_xallocx(pointer, size, extra, flags);
}
UHMM_INTERPOSE size_t sallocx(const void* pointer, int flags) noexcept { return own_je_sallocx(pointer, flags); }
UHMM_INTERPOSE void dallocx(void* pointer, int flags) noexcept { own_je_dallocx(pointer, flags); }
UHMM_INTERPOSE void sdallocx(void* pointer, size_t size, int flags) noexcept { own_je_sdallocx(pointer, size, flags); }
UHMM_INTERPOSE size_t nallocx(size_t size, int flags) noexcept { return own_je_nallocx(size, flags); }
UHMM_INTERPOSE int mallctl(const char* name, void* old_value, size_t* old_size, void* new_value,
                           size_t new_size) noexcept {
  return own_je_mallctl(name, old_value, old_size, new_value, new_size);
}
UHMM_INTERPOSE int mallctlnametomib(const char* name, size_t* mib, size_t* length) noexcept {
  return own_je_mallctlnametomib(name, mib, length);
}
UHMM_INTERPOSE int mallctlbymib(const size_t* mib, size_t length, void* old_value, size_t* old_size, void* new_value,
                                size_t new_size) noexcept {
  return own_je_mallctlbymib(mib, length, old_value, old_size, new_value, new_size);
}
UHMM_INTERPOSE void malloc_stats_print(void (*write)(void*, const char*), void* context, const char* options) noexcept {
  own_je_malloc_stats_print(write, context, options);
}
