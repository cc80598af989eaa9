// SPDX-License-Identifier: Apache-2.0
#include "backends/vmm/adoption.hpp"

#include <sys/mman.h>

#include <atomic>

#include "runtime/base/arena.hpp"
#include "runtime/os/call_redirect.hpp"

namespace uhmm::vmm {
namespace {

// What this thread is asking the driver for.
struct Wanted {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  bool answered = false;
};
thread_local Wanted wanted;

// What was answered and not carried out, so that it is not unmapped either, whoever asks and whenever: drivers tidy up
// at exit too. Read by threads of the program without a lock; entries are made once and used again.
struct Adopted {
  std::atomic<std::uint64_t> begin{0};
  std::atomic<std::uint64_t> end{0};  // 0: not in use
  Adopted* next = nullptr;
};
std::atomic<Adopted*> adopted{nullptr};

bool note(std::uint64_t begin, std::uint64_t bytes) {
  for (Adopted* entry = adopted.load(); entry != nullptr; entry = entry->next) {
    std::uint64_t free = 0;
    if (!entry->end.compare_exchange_strong(free, begin + bytes)) continue;
    entry->begin.store(begin);
    return true;
  }
  auto* fresh = make_in_arena<Adopted>();
  if (fresh == nullptr) return false;
  fresh->begin.store(begin);
  fresh->end.store(begin + bytes);
  fresh->next = adopted.load();
  while (!adopted.compare_exchange_weak(fresh->next, fresh)) {
  }
  return true;
}

Adopted* find(std::uint64_t begin, std::uint64_t end) {
  for (Adopted* entry = adopted.load(); entry != nullptr; entry = entry->next)
    if (entry->begin.load() < end && begin < entry->end.load()) return entry;
  return nullptr;
}

void* answer_mmap(void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) {
  const auto begin = reinterpret_cast<std::uint64_t>(at);
  if (begin != 0 && begin == wanted.begin && bytes == wanted.bytes && protection == PROT_NONE && !wanted.answered) {
    wanted.answered = true;
    return at;
  }
  return mmap(at, bytes, protection, flags, file, offset);
}

int answer_munmap(void* at, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uint64_t>(at);
  if (wanted.answered && begin == wanted.begin) return 0;  // the driver gives up what it was answered just now
  return find(begin, begin + bytes) != nullptr ? 0 : munmap(at, bytes);
}

}  // namespace

bool Adoption::prepare(void* library) {
  const os::Redirect redirects[] = {{"mmap", reinterpret_cast<void*>(answer_mmap)},
                                    {"mmap64", reinterpret_cast<void*>(answer_mmap)},
                                    {"munmap", reinterpret_cast<void*>(answer_munmap)}};
  return os::redirect_calls(library, redirects, std::size(redirects)) >= 2;
}

Status Adoption::reserve(Driver& driver, std::uint64_t begin, std::uint64_t bytes) {
  wanted = {begin, bytes, false};
  Result<std::uint64_t> got = driver.reserve(bytes, begin);
  const bool there = got.ok() && *got == begin;
  const bool kept = there && (!wanted.answered || note(begin, bytes));
  if (got.ok() && !kept) (void)driver.unreserve(*got, bytes);
  wanted = {};
  if (!got.ok()) return got.status();
  if (!there)
    return fail(UHMM_ERR_NOT_SUPPORTED, "the driver doesn't give the GPU the addresses at %#lx, where memory lies",
                begin);
  return kept ? Status{} : fail(UHMM_ERR_NO_MEMORY, "no memory to note an address range");
}

Status Adoption::unreserve(Driver& driver, std::uint64_t begin, std::uint64_t bytes) {
  UHMM_TRY(driver.unreserve(begin, bytes));
  if (Adopted* entry = find(begin, begin + bytes)) {
    entry->begin.store(0);
    entry->end.store(0);
  }
  return {};
}

}  // namespace uhmm::vmm
