// SPDX-License-Identifier: Apache-2.0
#include "preload/real.hpp"

#include <dlfcn.h>

#include <cstdlib>

namespace uhmm::preload::real {
namespace {

template <typename Function>
Function* find(const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  if (found == nullptr) std::abort();  // no C library has none of these
  return reinterpret_cast<Function*>(found);
}

}  // namespace

// All at once and early, by calls that do nothing: dlsym() takes the loader's lock, which a device's process may have
// inherited taken.
__attribute__((constructor)) static void resolve() {
  (void)openat(-1, "", 0, 0);
  (void)close(-1);
  (void)ioctl(-1, 0, nullptr);
  (void)mmap(nullptr, 0, 0, 0, -1, 0);
  (void)munmap(nullptr, 0);
  (void)mremap(nullptr, 0, 0, 0, nullptr);
  (void)mprotect(nullptr, 0, 0);
  (void)pkey_mprotect(nullptr, 0, 0, -1);
  (void)madvise(nullptr, 0, 0);
  (void)mlock(nullptr, 0);
  (void)mlock2(nullptr, 0, 0);
  (void)process_vm_readv(0, nullptr, 0, nullptr, 0);
  (void)process_vm_writev(0, nullptr, 0, nullptr, 0);
}

int openat(int folder, const char* path, int flags, mode_t mode) {
  static auto* const next = find<int(int, const char*, int, ...)>("openat");
  return next(folder, path, flags, mode);
}

int close(int fd) {
  static auto* const next = find<int(int)>("close");
  return next(fd);
}

int ioctl(int fd, unsigned long request, void* argument) {
  static auto* const next = find<int(int, unsigned long, ...)>("ioctl");
  return next(fd, request, argument);
}

void* mmap(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  static auto* const next = find<void*(void*, std::size_t, int, int, int, off_t)>("mmap");
  return next(address, length, protection, flags, fd, offset);
}

int munmap(void* address, std::size_t length) {
  static auto* const next = find<int(void*, std::size_t)>("munmap");
  return next(address, length);
}

void* mremap(void* address, std::size_t length, std::size_t new_length, int flags, void* new_address) {
  static auto* const next = find<void*(void*, std::size_t, std::size_t, int, ...)>("mremap");
  return next(address, length, new_length, flags, new_address);
}

int mprotect(void* address, std::size_t length, int protection) {
  static auto* const next = find<int(void*, std::size_t, int)>("mprotect");
  return next(address, length, protection);
}

int pkey_mprotect(void* address, std::size_t length, int protection, int key) {
  static auto* const next = find<int(void*, std::size_t, int, int)>("pkey_mprotect");
  return next(address, length, protection, key);
}

int madvise(void* address, std::size_t length, int advice) {
  static auto* const next = find<int(void*, std::size_t, int)>("madvise");
  return next(address, length, advice);
}

int mlock(const void* address, std::size_t length) {
  static auto* const next = find<int(const void*, std::size_t)>("mlock");
  return next(address, length);
}

int mlock2(const void* address, std::size_t length, unsigned flags) {
  static auto* const next = find<int(const void*, std::size_t, unsigned)>("mlock2");
  return next(address, length, flags);
}

using Copy = ssize_t(pid_t, const iovec*, unsigned long, const iovec*, unsigned long, unsigned long);

ssize_t process_vm_readv(pid_t process, const iovec* to, unsigned long count, const iovec* from, unsigned long others) {
  static auto* const next = find<Copy>("process_vm_readv");
  return next(process, to, count, from, others, 0);
}

ssize_t process_vm_writev(pid_t process, const iovec* from, unsigned long count, const iovec* to,
                          unsigned long others) {
  static auto* const next = find<Copy>("process_vm_writev");
  return next(process, from, count, to, others, 0);
}

}  // namespace uhmm::preload::real
