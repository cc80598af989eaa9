// SPDX-License-Identifier: Apache-2.0
// The functions behind those that are interposed: the next library's in the search order, usually the C library's.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>

namespace uhmm::preload::real {

int openat(int folder, const char* path, int flags, mode_t mode);
int close(int fd);
int ioctl(int fd, unsigned long request, void* argument);
void* mmap(void* address, std::size_t length, int protection, int flags, int fd, off_t offset);
int munmap(void* address, std::size_t length);
void* mremap(void* address, std::size_t length, std::size_t new_length, int flags, void* new_address);
int mprotect(void* address, std::size_t length, int protection);
int pkey_mprotect(void* address, std::size_t length, int protection, int key);
int madvise(void* address, std::size_t length, int advice);
int mlock(const void* address, std::size_t length);
int mlock2(const void* address, std::size_t length, unsigned flags);
ssize_t process_vm_readv(pid_t process, const iovec* to, unsigned long count, const iovec* from, unsigned long others);
ssize_t process_vm_writev(pid_t process, const iovec* from, unsigned long count, const iovec* to, unsigned long others);

}  // namespace uhmm::preload::real
