// SPDX-License-Identifier: Apache-2.0
// madvise, mlock, fork.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/preload/map_matrix.hpp"

namespace uhmm::matrix {
namespace {

// Numbers that older headers have no names for.
constexpr int kDropsLocked = 24;
constexpr int kCollapse = 25;
constexpr int kGuardInstall = 102;
constexpr int kGuardRemove = 103;
constexpr int kOnFault = 1;  // MLOCK_ONFAULT

std::byte* middle(Run& run) { return run.data() + run.pages() / 4 * kPage; }
std::size_t middle_bytes(Run& run) { return std::max<std::size_t>(run.pages() / 2, 1) * kPage; }

// Contents stay, and so does what the advice says of the mapping.
template <int kAdvice, int kBack = -1>
void keeps(Run& run) {
  run.call("madvise", madvise(run.data(), run.bytes(), kAdvice));
  run.flags("flags", run.data());
  run.look("contents", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  run.flags("flags after a journey", run.data());
  if (kBack >= 0) run.call("back", madvise(run.data(), run.bytes(), kBack));
  run.call("of no page", madvise(run.data() + 1, kPage, kAdvice));
}
// Whether the kernel can do it at this moment depends on more than the memory.
void collapse(Run& run) {
  (void)madvise(run.data(), run.bytes(), kCollapse);
  run.look("contents", run.data(), run.bytes());
}

template <int kAdvice>
void drops(Run& run) {
  run.call("madvise", madvise(middle(run), middle_bytes(run), kAdvice));
  run.look("around", run.data(), run.bytes());
  run.poke("a write", middle(run), std::byte{6});
  run.call("madvise all", madvise(run.data(), run.bytes(), kAdvice));
  run.look("all", run.data(), run.bytes());
}
void drops_read_only(Run& run) {
  run.call("mprotect", mprotect(run.data(), run.bytes(), PROT_READ));
  run.call("madvise", madvise(run.data(), run.bytes(), MADV_DONTNEED));
  run.look("contents", run.data(), run.bytes());
  run.poke("a write", run.data(), std::byte{6});
  run.call("mprotect back", mprotect(run.data(), run.bytes(), PROT_READ | PROT_WRITE));
}
void drops_locked(Run& run) {
  run.call("mlock", mlock(run.data(), run.bytes()));
  run.call("refused", madvise(run.data(), run.bytes(), MADV_DONTNEED));
  run.look("as before", run.data(), run.bytes());
  run.call("madvise", madvise(run.data(), run.bytes(), kDropsLocked));
  run.look("dropped", run.data(), run.bytes());
  run.call("munlock", munlock(run.data(), run.bytes()));
}
void drops_with_a_hole(Run& run) {
  run.call("munmap", munmap(middle(run), kPage));
  run.call("madvise", madvise(run.data(), run.bytes(), MADV_DONTNEED));
  run.look("around", run.data(), run.bytes());
}
// The kernel may free a page at any moment, or not: each is as it was or zeros, and what is written stays.
void frees(Run& run) {
  std::vector<std::byte> before(run.data(), run.data() + run.bytes());
  run.travel(run.data(), run.bytes());
  const int result = madvise(run.data(), run.bytes(), MADV_FREE);
  run.call("madvise", result);
  std::uint64_t wrong = 0;
  for (std::size_t i = 0; i < run.bytes(); ++i)
    if (run.data()[i] != before[i] && (result != 0 || run.data()[i] != std::byte{0})) ++wrong;
  run.note("neither as it was nor zero", wrong);
  std::memset(run.data(), 0x21, run.bytes());
}
void frees_away(Run& run) {
  const int result = madvise(run.data(), run.bytes(), MADV_FREE);
  run.call("madvise", result);
  if (result == 0) std::memset(run.data(), 0x22, run.bytes());
}
void guards(Run& run) {
  run.call("install", madvise(middle(run), middle_bytes(run), kGuardInstall));
  run.look("guarded", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  run.look("guarded after a journey", run.data(), run.bytes());
  run.call("remove", madvise(middle(run), middle_bytes(run), kGuardRemove));
  run.look("again", run.data(), run.bytes());
  run.poke("a write", middle(run), std::byte{3});
}

void lock(Run& run) {
  run.call("mlock", mlock(run.data(), run.bytes()));
  run.flags("flags", run.data());
  run.look("locked", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  run.flags("flags after a journey", run.data());
  run.look("after a journey", run.data(), run.bytes());
  run.call("munlock", munlock(run.data(), run.bytes()));
  run.flags("flags in the end", run.data());
}
void lock_on_fault(Run& run) {
  run.call("mlock2", mlock2(run.data(), run.bytes(), kOnFault));
  run.flags("flags", run.data());
  run.travel(run.data(), run.bytes());
  run.flags("flags after a journey", run.data());
  run.look("contents", run.data(), run.bytes());
  run.call("munlock", munlock(run.data(), run.bytes()));
}

// What a child finds: 0 all as expected, 1 something else, 2 a signal.
template <typename Body>
void in_child(Run& run, const char* what, Body&& body) {
  const pid_t child = fork();
  if (child == 0) {
    for (const int signal : {SIGSEGV, SIGBUS}) (void)::signal(signal, [](int) { _exit(2); });
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  (void)waitpid(child, &status, 0);
  run.note(what, static_cast<std::uint64_t>(status));
}
void forks(Run& run) {
  std::vector<std::byte> before(run.data(), run.data() + run.bytes());
  run.travel(run.data(), run.bytes());
  in_child(run, "a child that reads and writes", [&] {
    const bool same = std::memcmp(run.data(), before.data(), run.bytes()) == 0;
    std::memset(run.data(), 0x55, run.bytes() / 2);
    return same && run.data()[0] == std::byte{0x55};
  });
  run.look("after the child", run.data(), run.bytes());
  run.poke("a write", run.data(), std::byte{7});
  in_child(run, "another", [&] { return run.data()[0] == std::byte{7}; });
}
void forks_away(Run& run) {
  in_child(run, "a child that writes", [&] {
    std::memset(run.data(), 0x56, run.bytes() / 2);
    return run.data()[1] == std::byte{0x56};
  });
  run.look("after the child", run.data(), run.bytes());
}
void keeps_from_children(Run& run) {
  run.call("madvise", madvise(run.data(), run.bytes(), MADV_DONTFORK));
  run.flags("flags", run.data());
  in_child(run, "a child", [&] { return *static_cast<volatile std::byte*>(run.data()) != std::byte{0xff}; });
  run.look("contents", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  in_child(run, "a child after a journey",
           [&] { return *static_cast<volatile std::byte*>(run.data()) != std::byte{0xff}; });
  run.call("back", madvise(run.data(), run.bytes(), MADV_DOFORK));
  in_child(run, "a child in the end", [&] { return *static_cast<volatile std::byte*>(run.data()) != std::byte{0xff}; });
}
bool all_zeros(Run& run) {
  for (std::size_t i = 0; i < run.bytes(); ++i)
    if (run.data()[i] != std::byte{0}) return false;
  return true;
}
void wipes_in_children(Run& run) {
  run.call("madvise", madvise(run.data(), run.bytes(), MADV_WIPEONFORK));
  run.flags("flags", run.data());
  in_child(run, "a child", [&] { return all_zeros(run); });
  run.look("contents", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  in_child(run, "a child after a journey", [&] { return all_zeros(run); });
  run.call("back", madvise(run.data(), run.bytes(), MADV_KEEPONFORK));
  in_child(run, "a child in the end", [&] { return all_zeros(run); });
}

}  // namespace

const std::vector<Operation>& advice_operations() {
  static const std::vector<Operation> all{
      {"NORMAL", keeps<MADV_NORMAL>, true},
      {"RANDOM", keeps<MADV_RANDOM, MADV_NORMAL>, true},
      {"SEQUENTIAL", keeps<MADV_SEQUENTIAL, MADV_NORMAL>, true},
      {"WILLNEED", keeps<MADV_WILLNEED>, true},
      {"DONTDUMP", keeps<MADV_DONTDUMP, MADV_DODUMP>, true},
      {"HUGEPAGE", keeps<MADV_HUGEPAGE>, true},
      {"NOHUGEPAGE", keeps<MADV_NOHUGEPAGE>, true},
      {"MERGEABLE", keeps<MADV_MERGEABLE, MADV_UNMERGEABLE>, true},
      {"COLD", keeps<MADV_COLD>, true},
      {"PAGEOUT", keeps<MADV_PAGEOUT>, true},
      {"POPULATE_READ", keeps<22>, true},
      {"POPULATE_WRITE", keeps<23>, true},
      {"COLLAPSE", collapse, true},
      {"DONTNEED", drops<MADV_DONTNEED>, true},
      {"DONTNEED, read-only", drops_read_only, true},
      {"DONTNEED with a hole", drops_with_a_hole},
      {"DONTNEED_LOCKED", drops_locked, true},
      {"REMOVE", drops<MADV_REMOVE>, true},
      {"FREE", frees, true},
      {"FREE, away", frees_away, true},
      {"GUARD", guards, true},
      {"mlock", lock, true},
      {"mlock2 ONFAULT", lock_on_fault, true},
      {"fork", forks, true},
      {"fork, away", forks_away, true},
      {"DONTFORK", keeps_from_children, true},
      {"WIPEONFORK", wipes_in_children, true},
  };
  return all;
}

}  // namespace uhmm::matrix
