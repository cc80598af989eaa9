// SPDX-License-Identifier: Apache-2.0
// Calls of the program that change its memory map: the runtime hears of them ahead of the kernel.
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

#include <algorithm>

#include "preload/dmirror/dmirror.hpp"
#include "preload/kernel_access.hpp"
#include "preload/managed.hpp"
#include "preload/next.hpp"
#include "preload/real.hpp"
#include "preload/registered.hpp"
#include "runtime/api/registered.hpp"
#include "runtime/engine/fork_heir.hpp"
#include "runtime/engine/signal_faults.hpp"
#include "uhmm/uhmm.h"

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

// Is it the program that calls, and not the runtime on one of its threads?
bool by_program() { return called_by_program() && !engine::serving_signalled_fault(); }

Parts parts_of(void* address, std::size_t length) {
  if (!by_program()) return {};
  map_changes();
  const ByteRange pages = pages_of(address, length);
  return pages.empty() ? Parts{} : registered_parts(pages);
}

// Is it over with the pages, one way or the other? A runtime that has ended, or that a fork has left behind, has none.
bool ended(uhmm_status status) {
  return status == UHMM_OK || status == UHMM_ERR_DATA_LOST || status == UHMM_ERR_NOT_INITIALIZED ||
         status == UHMM_ERR_FORKED;
}

// By way of system memory: contents stay.
bool unregister(const RegisteredPart& part) {
  if (!ended(uhmm_unregister_pages(part.pages.begin.pointer(), part.pages.bytes()))) return false;
  unmanage(part.pages);
  return true;
}

// The mappings are about to end. Contents of private memory are given up; others keep what they share. False: the
// runtime could not.
bool forget(const Parts& parts) {
  for (const RegisteredPart& part : parts) {
    if (part.shared) {
      if (!unregister(part)) return false;
      continue;
    }
    if (!ended(uhmm_forget(part.pages.begin.pointer(), part.pages.bytes()))) return false;
    unmanage(part.pages);
  }
  return true;
}

// A new mapping in place of managed memory. It is made elsewhere first: if that fails, nothing has been given up.
void* map_over(void* address, std::size_t length, int protection, int flags, int fd, off_t offset, const Parts& parts) {
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
      !by_program())
    return;
  const int error = errno;
  const ByteRange pages = pages_of(address, length);
  if (!pages.empty()) (void)manage_own(pages);
  errno = error;
}

void* map(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  const bool replaces = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
  const Parts parts = replaces ? parts_of(address, length) : Parts{};
  void* made = parts.empty() ? dmirror::map(address, length, protection, flags, fd, offset)
                             : map_over(address, length, protection, flags, fd, offset, parts);
  manage_fresh(made, length, flags);
  return made;
}

int unmap(void* address, std::size_t length) {
  const Parts parts = parts_of(address, length);
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

// `call` is the kernel's mprotect, or its like.
template <typename Call>
int protect(void* address, std::size_t length, Call&& call) {
  const Parts parts = parts_of(address, length);
  const int result = call();
  const int error = errno;
  // Also after a failure: a part may have been changed.
  for (const RegisteredPart& part : parts) (void)uhmm_revoke(part.pages.begin.pointer(), part.pages.bytes());
  // Memory that came home meanwhile may have been given the protection that it had before.
  if (result == 0 && !parts.empty()) (void)call();
  errno = error;
  return result;
}

// Calls that touch each page: what the kernel would stumble over comes home first. Devices may take it again meanwhile,
// so a failure is worth more than one try.
template <typename Call>
int filled(const void* address, std::size_t length, Call&& call) {
  constexpr int kMostTries = 10;
  for (int tries = 1;; ++tries) {
    const bool helped = make_ready({{address, length, true}});
    const int result = call();
    if (result == 0 || !helped || tries == kMostTries || (errno != ENOMEM && errno != EFAULT)) return result;
  }
}

// What advice means for memory that is managed.
enum class Advice {
  Fills,    // each page is touched
  Plain,    // the kernel sees to it wherever the pages are
  Mapping,  // is about the mapping, not about its pages
  Drops,    // private contents end
  DropsLazily,
  Guards,   // the same, and then the pages can't be reached
  Removes,  // shared contents end, for everybody
};
Advice meaning_of(int advice) {
  // Numbers that older headers have no names for.
  constexpr int kFillsToRead = 22;
  constexpr int kFillsToWrite = 23;
  constexpr int kDropsLocked = 24;
  constexpr int kCollapses = 25;
  constexpr int kGuards = 102;
  constexpr int kGuardsNoMore = 103;
  switch (advice) {
    case MADV_DONTNEED:
    case kDropsLocked: return Advice::Drops;
    case MADV_FREE: return Advice::DropsLazily;
    case MADV_REMOVE: return Advice::Removes;
    case kGuards: return Advice::Guards;
    case kFillsToRead:
    case kFillsToWrite: return Advice::Fills;
    case kGuardsNoMore:
    case kCollapses:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_DONTDUMP:
    case MADV_DODUMP: return Advice::Mapping;
    default: return Advice::Plain;
  }
}

bool any_private(const Parts& parts) {
  return std::any_of(parts.begin(), parts.end(), [](const RegisteredPart& part) { return !part.shared; });
}

// Linux 6.18 never comes back from making guard pages where userfaultfd has left a mark: so nothing is away meanwhile,
// and shared memory is not managed any more, where a page that comes home would end the guard, too.
int guard(void* address, std::size_t length, int advice, const Parts& parts) {
  Parts shared;
  for (const RegisteredPart& part : parts) {
    if (part.shared) {
      if (unregister(part)) shared.push_back(part);
    } else {
      (void)uhmm_migrate(part.bytes.begin.pointer(), part.bytes.bytes(), UHMM_CPU, nullptr);
    }
  }
  const int result = real::madvise(address, length, advice);
  const int error = errno;
  const ByteRange pages = pages_of(address, length);
  if (result != 0) register_again(shared, pages.begin, pages);
  errno = error;
  return result;
}

// What the kernel says of private mappings of files to advice for anonymous memory: also of those that anonymous memory
// stands in for. 0: it has nothing against it.
int refusal(int advice, const Parts& parts) {
  const int error = advice == MADV_REMOVE ? EACCES : advice == MADV_FREE || advice == MADV_WIPEONFORK ? EINVAL : 0;
  if (error == 0) return 0;
  const bool file = std::any_of(parts.begin(), parts.end(), [](const RegisteredPart& part) {
    return !part.shared && !api::first_file_part(part.pages).pages.empty();
  });
  return file ? error : 0;
}

int advise(void* address, std::size_t length, int advice) {
  const Advice meaning = meaning_of(advice);
  const bool drops = meaning == Advice::Drops || meaning == Advice::DropsLazily || meaning == Advice::Guards;
  const bool plain = meaning == Advice::Plain || meaning == Advice::Fills;
  const Parts parts = plain ? Parts{} : parts_of(address, length);
  if (const int error = refusal(advice, parts); error != 0) {
    errno = error;
    return -1;
  }
  // In a forked child that is served from devices: what is dropped reads as zeros, not as what it was at the fork.
  if (drops && by_program()) engine::give_up_inheritance(pages_of(address, length));
  if (meaning != Advice::Drops && meaning != Advice::DropsLazily) bring_mappings_home(parts);
  const auto call = [&] { return real::madvise(address, length, advice); };
  int result = meaning == Advice::Guards  ? guard(address, length, advice, parts)
               : meaning == Advice::Fills ? filled(address, length, call)
                                          : call();
  // Where a coherent device's memory is mapped in place, only this can be done; pages that are free may go at once.
  if (meaning == Advice::DropsLazily && result != 0 && errno == EINVAL && any_private(parts))
    result = real::madvise(address, length, MADV_DONTNEED);
  const int error = errno;
  // What is away the kernel could not drop.
  if (result == 0 || error == ENOMEM) {
    if (drops || meaning == Advice::Removes) drop_edges(parts, advice);
    if (drops) discard(parts, false, meaning == Advice::Drops);
    if (meaning == Advice::Removes) discard(parts, true, false);
  }
  errno = error;
  return result;
}

// What the preloaded library has registered is registered again when it is needed, or as any new mapping.
Parts by_program_itself(const Parts& parts) {
  Parts own;
  for (const RegisteredPart& part : parts) {
    ByteRange left = part.bytes;
    const auto add_until = [&](VirtAddr end) {
      const ByteRange bytes = left.intersect({left.begin, end});
      if (!bytes.empty()) own.push_back({bytes, bytes.to_pages(), part.shared});
    };
    for (const ByteRange& managed : managed_parts(part.pages)) {
      add_until(managed.begin);
      left.begin = std::max(left.begin, std::min(managed.end, left.end));
    }
    add_until(left.end);
  }
  return own;
}

void* remap(void* address, std::size_t length, std::size_t new_length, int flags, void* new_address) {
  const ByteRange old_pages = pages_of(address, length != 0 ? length : new_length);
  const Parts moved = parts_of(address, length != 0 ? length : new_length);
  const Parts replaced = (flags & MREMAP_FIXED) != 0 ? parts_of(new_address, new_length) : Parts{};
  if (moved.empty() && replaced.empty()) return real::mremap(address, length, new_length, flags, new_address);
  const bool managed = !managed_parts(old_pages).empty();
  const Parts own = by_program_itself(moved);
  const Parts own_replaced = by_program_itself(replaced);
  // By way of system memory: contents follow the move, and a call that the kernel refuses has lost nothing.
  for (const Parts* parts : {&moved, &replaced}) {
    for (const RegisteredPart& part : *parts) {
      if (unregister(part)) continue;
      register_again(own, old_pages.begin, old_pages);
      register_again(own_replaced, VirtAddr{new_address}, pages_of(new_address, new_length));
      errno = ENOMEM;
      return MAP_FAILED;
    }
  }
  void* now = real::mremap(address, length, new_length, flags, new_address);
  const int error = errno;
  // What was managed is so again where it is now, or where it still is.
  constexpr int kStays = 4;  // MREMAP_DONTUNMAP; and length 0 is a second mapping of the same memory
  if (now == MAP_FAILED || (flags & kStays) != 0 || length == 0) register_again(own, old_pages.begin, old_pages);
  if (now == MAP_FAILED) register_again(own_replaced, VirtAddr{new_address}, pages_of(new_address, new_length));
  if (now != MAP_FAILED && length != 0) register_again(own, old_pages.begin, pages_of(now, new_length));
  if (managed && mappings_managed())
    now != MAP_FAILED ? manage_fresh(now, new_length, MAP_PRIVATE | MAP_ANONYMOUS)
                      : manage_fresh(address, length, MAP_PRIVATE | MAP_ANONYMOUS);
  errno = error;
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
  const auto call = [&] { return real::mprotect(address, length, protection); };
  return without_exceptions([&] { return protect(address, length, call); }, -1);
}

UHMM_INTERPOSE int pkey_mprotect(void* address, size_t length, int protection, int key) noexcept {
  const auto call = [&] { return real::pkey_mprotect(address, length, protection, key); };
  return without_exceptions([&] { return protect(address, length, call); }, -1);
}

UHMM_INTERPOSE int madvise(void* address, size_t length, int advice) {
  return without_exceptions([&] { return advise(address, length, advice); }, -1);
}

UHMM_INTERPOSE int mlock(const void* address, size_t length) noexcept {
  return filled(address, length, [&] { return real::mlock(address, length); });
}

UHMM_INTERPOSE int mlock2(const void* address, size_t length, unsigned flags) noexcept {
  const auto call = [&] { return real::mlock2(address, length, flags); };
  return (flags & MLOCK_ONFAULT) != 0 ? call() : filled(address, length, call);
}
