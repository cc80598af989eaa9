// SPDX-License-Identifier: Apache-2.0
// jemalloc, as it is linked into the preloaded library: its names are ours with a prefix (jemalloc.syms), because the
// plain ones are what we answer, and its system calls go past our own interposers.
#pragma once

#include <stddef.h>

extern "C" {

void* own_je_malloc(size_t size) noexcept;
void* own_je_calloc(size_t count, size_t size) noexcept;
void* own_je_realloc(void* pointer, size_t size) noexcept;
void own_je_free(void* pointer) noexcept;
void* own_je_aligned_alloc(size_t alignment, size_t size) noexcept;
int own_je_posix_memalign(void** out, size_t alignment, size_t size) noexcept;
void* own_je_memalign(size_t alignment, size_t size) noexcept;
size_t own_je_malloc_usable_size(void* pointer) noexcept;
void* own_je_mallocx(size_t size, int flags) noexcept;
void* own_je_rallocx(void* pointer, size_t size, int flags) noexcept;
size_t own_je_xallocx(void* pointer, size_t size, size_t extra, int flags) noexcept;
size_t own_je_sallocx(const void* pointer, int flags) noexcept;
void own_je_dallocx(void* pointer, int flags) noexcept;
void own_je_sdallocx(void* pointer, size_t size, int flags) noexcept;
size_t own_je_nallocx(size_t size, int flags) noexcept;
int own_je_mallctl(const char* name, void* old_value, size_t* old_size, void* new_value, size_t new_size) noexcept;
int own_je_mallctlnametomib(const char* name, size_t* mib, size_t* length) noexcept;
int own_je_mallctlbymib(const size_t* mib, size_t length, void* old_value, size_t* old_size, void* new_value,
                        size_t new_size) noexcept;
void own_je_malloc_stats_print(void (*write)(void*, const char*), void* context, const char* options) noexcept;

}  // extern "C"
