// SPDX-License-Identifier: Apache-2.0
// Calls of the program that change its memory map: the runtime hears of them ahead of the kernel.
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "preload/dmirror/dmirror.hpp"
#include "preload/managed.hpp"
#include "preload/real.hpp"
#include "runtime/engine/fork_heir.hpp"
#include "runtime/os/memory.hpp"
#include "uhmm/uhmm.h"

#define UHMM_INTERPOSE extern "C" __attribute__((visibility("default")))

namespace uhmm::preload {
namespace {

bool aligned(const void* address) { return (reinterpret_cast<std::uintptr_t>(address) & (kPageBytes - 1)) == 0; }

// The whole pages that a call is about; empty where the kernel will refuse it.
ByteRange pages_of(void* address, std::size_t length) {
  const VirtAddr begin{address};
  if (!aligned(address) || length == 0 || begin.value + length < begin.value || begin.value + length > kUserSpaceEnd)
    return {};
  return ByteRange{begin, begin + length}.to_pages();
}

Vector<ByteRange> parts_of(void* address, std::size_t length) {
  if (!called_by_program()) return {};
  map_changes();
  const ByteRange pages = pages_of(address, length);
  return pages.empty() ? Vector<ByteRange>{} : managed_parts(pages);
}

// Is it over with the pages, one way or the other? A runtime that has ended, or that a fork has left behind, has none.
bool ended(uhmm_status status) {
  return status == UHMM_OK || status == UHMM_ERR_DATA_LOST || status == UHMM_ERR_NOT_INITIALIZED ||
         status == UHMM_ERR_FORKED;
}

// Contents of the parts are given up. False: the runtime could not.
bool forget(const Vector<ByteRange>& parts) {
  for (const ByteRange& part : parts) {
    if (!ended(uhmm_forget(part.begin.pointer(), part.bytes()))) return false;
    unmanage(part);
  }
  return true;
}

// A new mapping in place of managed memory. It is made elsewhere first: if that fails, nothing has been given up.
void* map_over(void* address, std::size_t length, int protection, int flags, int fd, off_t offset,
               const Vector<ByteRange>& parts) {
  void* made = dmirror::map(nullptr, length, protection, flags & ~MAP_FIXED, fd, offset);
  if (made == MAP_FAILED) return made;
  if (!forget(parts)) {
    (void)real::munmap(made, length);
    errno = ENOMEM;
    return MAP_FAILED;
  }
  void* moved = real::mremap(made, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address);
  if (moved != MAP_FAILED) return moved;
  // A kind of mapping that can't be moved.
  (void)real::munmap(made, length);
  return dmirror::map(address, length, protection, flags, fd, offset);
}

// Memory that the program has just got, where that is to be managed: nobody else knows of it yet. What can't be
// registered stays as it is.
void manage_fresh(void* address, std::size_t length, int flags) {
  constexpr int kKinds = MAP_TYPE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_STACK | MAP_HUGETLB;
  if (address == MAP_FAILED || !mappings_managed() || (flags & kKinds) != (MAP_PRIVATE | MAP_ANONYMOUS) ||
      !called_by_program())
    return;
  const int error = errno;
  const ByteRange pages = pages_of(address, length);
  if (!pages.empty()) (void)manage_own(pages);
  errno = error;
}

void* map(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  const bool replaces = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
  const Vector<ByteRange> parts = replaces ? parts_of(address, length) : Vector<ByteRange>{};
  void* made = parts.empty() ? dmirror::map(address, length, protection, flags, fd, offset)
                             : map_over(address, length, protection, flags, fd, offset, parts);
  manage_fresh(made, length, flags);
  return made;
}

// What the program may do with its memory, to be put back.
class Protections {
 public:
  explicit Protections(const Vector<ByteRange>& parts) {
    os::ProcessMemory process;
    if (!process.open().ok()) return;
    for (const ByteRange& part : parts) {
      for (VirtAddr at = part.begin; at < part.end;) {
        Result<os::Mapping> found = process.find_mapping(at);
        if (!found.ok() || found->kind == os::MappingKind::None || found->range.begin >= part.end) break;
        const ByteRange pages = found->range.intersect(part);
        const int protection = (found->readable ? PROT_READ : 0) | (found->writable ? PROT_WRITE : 0) |
                               (found->executable ? PROT_EXEC : 0);
        before_.push_back({pages, protection});
        at = pages.end;
      }
    }
    process.close();
  }
  // All access is taken away from the parts. Errors: as mprotect(2); then everything is as it was.
  bool take(const Vector<ByteRange>& parts) const {
    for (const ByteRange& part : parts) {
      if (real::mprotect(part.begin.pointer(), part.bytes(), PROT_NONE) == 0) continue;
      if (errno == ENOMEM && has_hole(part)) continue;
      put_back();
      return false;
    }
    return true;
  }
  void put_back() const {
    const int error = errno;
    for (const One& one : before_) (void)real::mprotect(one.pages.begin.pointer(), one.pages.bytes(), one.protection);
    errno = error;
  }

 private:
  struct One {
    ByteRange pages;
    int protection;
  };
  bool has_hole(ByteRange part) const {
    std::uint64_t mapped = 0;
    for (const One& one : before_) mapped += one.pages.intersect(part).bytes();
    return mapped != part.bytes();
  }
  Vector<One> before_;
};

int unmap(void* address, std::size_t length) {
  const Vector<ByteRange> parts = parts_of(address, length);
  if (parts.empty()) return real::munmap(address, length);
  // The kernel may have no room for the mappings that are left beside the hole, or refuse for other reasons: it says so
  // here, where nothing is lost yet. Nobody reads zeros meanwhile, either.
  const Protections protections(parts);
  if (!protections.take(parts)) return -1;
  if (!forget(parts)) {
    protections.put_back();
    errno = ENOMEM;
    return -1;
  }
  return real::munmap(address, length);
}

int protect(void* address, std::size_t length, int protection) {
  const Vector<ByteRange> parts = parts_of(address, length);
  const int result = real::mprotect(address, length, protection);
  const int error = errno;
  // Also after a failure: a part may have been changed.
  for (const ByteRange& part : parts) (void)uhmm_revoke(part.begin.pointer(), part.bytes());
  // Memory that came home meanwhile may have been given the protection that it had before.
  if (result == 0 && !parts.empty()) (void)real::mprotect(address, length, protection);
  errno = error;
  return result;
}

int advise(void* address, std::size_t length, int advice) {
#ifndef MADV_DONTNEED_LOCKED
  constexpr int MADV_DONTNEED_LOCKED = 24;
#endif
  const bool drops = advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED;
  const Vector<ByteRange> parts = drops ? parts_of(address, length) : Vector<ByteRange>{};
  // In a forked child that is served from devices: what is dropped reads as zeros, not as what it was at the fork.
  if (drops && called_by_program()) engine::give_up_inheritance(pages_of(address, length));
  int result = real::madvise(address, length, advice);
  // Where a coherent device's memory is mapped in place, only this can be done; pages that are free may go at once.
  if (advice == MADV_FREE && result != 0 && errno == EINVAL && !parts.empty())
    result = real::madvise(address, length, MADV_DONTNEED);
  const int error = errno;
  // What is away the kernel could not drop. Only private memory is registered here.
  for (const ByteRange& part : parts)
    if (result == 0 || error == ENOMEM) (void)uhmm_discard(part.begin.pointer(), part.bytes());
  errno = error;
  return result;
}

void* remap(void* address, std::size_t length, std::size_t new_length, int flags, void* new_address) {
  const Vector<ByteRange> moved = parts_of(address, length != 0 ? length : new_length);
  const Vector<ByteRange> replaced =
      (flags & MREMAP_FIXED) != 0 ? parts_of(new_address, new_length) : Vector<ByteRange>{};
  // By way of system memory: contents follow the move, and a call that the kernel refuses has lost nothing.
  for (const Vector<ByteRange>* parts : {&moved, &replaced}) {
    for (const ByteRange& part : *parts) {
      if (!ended(uhmm_unregister_pages(part.begin.pointer(), part.bytes()))) {
        errno = ENOMEM;
        return MAP_FAILED;
      }
      unmanage(part);
    }
  }
  void* now = real::mremap(address, length, new_length, flags, new_address);
  // What was managed is so again where it is now, or where it still is.
  if (!moved.empty() && mappings_managed())
    now != MAP_FAILED ? manage_fresh(now, new_length, MAP_PRIVATE | MAP_ANONYMOUS)
                      : manage_fresh(address, length, MAP_PRIVATE | MAP_ANONYMOUS);
  return now;
}

}  // namespace
}  // namespace uhmm::preload

using namespace uhmm;
using namespace uhmm::preload;

UHMM_INTERPOSE void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  return without_exceptions([&] { return preload::map(address, length, protection, flags, fd, offset); }, MAP_FAILED);
}

UHMM_INTERPOSE void* mmap64(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  return without_exceptions([&] { return preload::map(address, length, protection, flags, fd, offset); }, MAP_FAILED);
}

UHMM_INTERPOSE int munmap(void* address, size_t length) {
  return without_exceptions([&] { return unmap(address, length); }, -1);
}

UHMM_INTERPOSE void* mremap(void* address, size_t length, size_t new_length, int flags, ...) {
  void* new_address = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    new_address = va_arg(arguments, void*);
    va_end(arguments);
  }
  return without_exceptions([&] { return remap(address, length, new_length, flags, new_address); }, MAP_FAILED);
}

UHMM_INTERPOSE int mprotect(void* address, size_t length, int protection) {
  return without_exceptions([&] { return protect(address, length, protection); }, -1);
}

UHMM_INTERPOSE int madvise(void* address, size_t length, int advice) {
  return without_exceptions([&] { return advise(address, length, advice); }, -1);
}
