// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/copy.hpp"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace uhmm {

void copy_pages(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__SSE2__)
  // Fewer pages are used while they are still in the caches.
  constexpr std::size_t kSmallest = std::size_t{128} << 10;
  constexpr std::size_t kLine = 64;
  if (bytes >= kSmallest) {
    for (std::size_t at = 0; at < bytes; at += kLine) {
      const auto* source = reinterpret_cast<const __m128i*>(from + at);
      auto* target = reinterpret_cast<__m128i*>(to + at);
      const __m128i a = _mm_load_si128(source);
      const __m128i b = _mm_load_si128(source + 1);
      const __m128i c = _mm_load_si128(source + 2);
      const __m128i d = _mm_load_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
    _mm_sfence();
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace uhmm
