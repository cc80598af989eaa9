// SPDX-License-Identifier: Apache-2.0
// Memory of every kind, and its pages in every state.
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/preload/map_matrix.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::matrix {
namespace {

constexpr std::size_t kPages = 16;
constexpr std::size_t kBytes = kPages * kPage;
// Of the program itself there is less, and each piece is used once: what is dropped there must not be known from
// before.
constexpr std::size_t kPartBytes = 5 * kPage;
constexpr std::size_t kPieces = 400;

alignas(kPage) std::byte initialized[kPieces][kPartBytes] = {{std::byte{7}}};
alignas(kPage) std::byte zeroed[kPieces][kPartBytes];
std::size_t initialized_used = 0;
std::size_t zeroed_used = 0;

// Addresses that the kernel gives to nobody on its own: what is unmapped there stays a hole.
std::byte* next_place(std::size_t bytes) {
  static std::uintptr_t next = std::uintptr_t{1} << 40;
  const std::uintptr_t place = next;
  next += (bytes + 2 * kHuge - 1) / kHuge * kHuge;
  return reinterpret_cast<std::byte*>(place);
}

std::byte* map(std::size_t bytes, int flags, int fd = -1) {
  void* memory = mmap(next_place(bytes), bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
  if (memory == MAP_FAILED) {
    perror("mmap");
    exit(2);
  }
  return static_cast<std::byte*>(memory);
}

// A file of twice that, so that a mapping of it may grow.
int make_file(Kind kind, std::size_t bytes) {
  int fd = -1;
  if (kind == Kind::Memfd) {
    fd = memfd_create("uhmm-matrix", MFD_CLOEXEC);
  } else {
    char path[] = "/dev/shm/uhmm-test-XXXXXX";
    fd = mkstemp(path);
    // A private mapping needs no name; what has one is mirrored.
    if (kind == Kind::PrivateFile) unlink(path);
    static std::string last;
    if (kind == Kind::NamedShm) {
      static const auto remove_last = [] { unlink(last.c_str()); };
      if (last.empty())
        (void)atexit(remove_last);
      else
        unlink(last.c_str());
      last = path;
    }
  }
  std::vector<unsigned char> contents(2 * bytes);
  for (std::size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<unsigned char>(0x40 + i / kPage + i % 13);
  if (fd < 0 || write(fd, contents.data(), contents.size()) != static_cast<ssize_t>(contents.size())) {
    perror("file");
    exit(2);
  }
  return fd;
}

void with_mapped(Kind kind, const std::function<void(Memory&)>& body) {
  Memory memory{kind, nullptr, kBytes, nullptr, kBytes};
  if (kind == Kind::Huge) {
    memory.bytes = kHuge;
    memory.whole_bytes = 2 * kHuge;
    memory.whole = map(memory.whole_bytes, MAP_PRIVATE | MAP_ANONYMOUS);
    const auto address = reinterpret_cast<std::uintptr_t>(memory.whole);
    memory.data = memory.whole + (kHuge - address % kHuge) % kHuge;
    (void)madvise(memory.data, kHuge, MADV_HUGEPAGE);
  } else if (kind == Kind::Anonymous || kind == Kind::Ragged || kind == Kind::SharedAnonymous) {
    memory.data = map(kBytes, MAP_ANONYMOUS | (kind == Kind::SharedAnonymous ? MAP_SHARED : MAP_PRIVATE));
  } else {
    const int fd = make_file(kind, kBytes);
    memory.data = map(kBytes, kind == Kind::PrivateFile ? MAP_PRIVATE : MAP_SHARED, fd);
    // The program's descriptor stays: that is how the file is found where /proc/self/map_files is out of reach.
    body(memory);
    munmap(memory.data, kBytes);
    close(fd);
    return;
  }
  if (memory.whole == nullptr) memory.whole = memory.data;
  body(memory);
  munmap(memory.whole, memory.whole_bytes);
}

struct StackUse {
  const std::function<void(Memory&)>* body;
  std::byte* whole;
  std::size_t bytes;
};
void* on_stack(void* argument) {
  const StackUse& use = *static_cast<const StackUse*>(argument);
  alignas(kPage) std::byte here[kPartBytes];
  Memory memory{Kind::Stack, here, sizeof(here), use.whole, use.bytes};
  (*use.body)(memory);
  return nullptr;
}
// The thread's own: it works on pages beside those that its frames are on, which are managed as well.
void with_stack(const std::function<void(Memory&)>& body) {
  constexpr std::size_t kStack = std::size_t{512} << 10;
  const StackUse use{&body, map(kStack, MAP_PRIVATE | MAP_ANONYMOUS), kStack};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, use.whole, kStack);
  pthread_t thread;
  expect(pthread_create(&thread, &attributes, on_stack, const_cast<StackUse*>(&use)) == 0, "a thread starts");
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  munmap(use.whole, kStack);
}

// ----------------------------------------------------------------------------------------------------- looking at
// memory

sigjmp_buf* back = nullptr;
int raised = 0;
void on_signal(int signal, siginfo_t*, void*) {
  if (back == nullptr) _exit(128 + signal);
  raised = signal;
  siglongjmp(*back, 1);
}
template <typename Access>
int signal_of(Access&& access) {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGSEGV, &action, nullptr) == 0 && sigaction(SIGBUS, &action, nullptr) == 0;
  }();
  (void)installed;
  sigjmp_buf here;
  raised = 0;
  back = &here;
  if (sigsetjmp(here, 1) == 0) access();
  back = nullptr;
  return raised;
}

std::uint64_t hash(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum = 0xcbf29ce484222325;
  for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, sizeof(word));
    sum = (sum ^ word) * 0x9e3779b97f4a7c15;
    sum ^= sum >> 31;
  }
  return sum;
}

bool is_registered(const std::byte* data, std::size_t bytes) {
  std::size_t count = 0;
  return uhmm_snapshot(data, bytes, nullptr, 0, &count) == UHMM_OK;
}

std::byte value(std::size_t i) { return static_cast<std::byte>(i * 7 + i / kPage * 3 + 1); }

}  // namespace

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {
      "anonymous", "ragged", "shared-anonymous", "memfd", "named-shm", "private-file", "heap", "data", "bss",
      "stack",     "huge"};
  return kNames[static_cast<int>(kind)];
}
const char* name_of(State state) {
  constexpr const char* kNames[] = {"home", "device", "shared", "exclusive", "mixed"};
  return kNames[static_cast<int>(state)];
}

bool with_memory(Kind kind, const std::function<void(Memory&)>& body) {
  if (kind == Kind::Stack) {
    with_stack(body);
  } else if (kind == Kind::Heap) {
    // Pages of their own inside a larger block, as an allocator may have them anywhere.
    void* block = nullptr;
    if (posix_memalign(&block, kPage, kBytes + 2 * kPage) != 0) return false;
    auto* all = static_cast<std::byte*>(block);
    std::memset(all, 0, kBytes + 2 * kPage);
    Memory memory{kind, all + kPage, kBytes, all, kBytes + 2 * kPage};
    body(memory);
    free(block);
  } else if (kind == Kind::Data || kind == Kind::Bss) {
    std::size_t& used = kind == Kind::Data ? initialized_used : zeroed_used;
    if (used == kPieces) {
      fail("no piece of the program is left");
      return false;
    }
    std::byte* piece = kind == Kind::Data ? initialized[used++] : zeroed[used++];
    Memory memory{kind, piece, kPartBytes, piece, kPartBytes};
    body(memory);
  } else {
    with_mapped(kind, body);
  }
  return true;
}

// ------------------------------------------------------------------------------------------------------------------
// runs

Run::~Run() {
  for (const Other& other : others_) munmap(other.data, other.bytes);
  if (managed_ && is_part(memory_.kind)) {
    std::byte* from = memory_.kind == Kind::Stack ? memory_.whole : memory_.data;
    const std::size_t bytes = memory_.kind == Kind::Stack ? memory_.whole_bytes : memory_.bytes;
    expect(uhmm_unregister_pages(from, bytes) == UHMM_OK, "unregistering");
  }
}

// Each fifth page one of these; the last one is never touched by anybody.
constexpr std::array kTurns{State::Device, State::Shared, State::Home, State::Exclusive, State::Home};
// Some of each is enough of a huge page: each single one of them is a call.
constexpr std::size_t kMostTurns = 20;

// Has it no contents at all? Files have some, and a huge page comes whole.
bool Run::is_untouched(std::size_t page) const {
  const Kind kind = memory_.kind;
  return page % kTurns.size() == 4 && (kind == Kind::Anonymous || kind == Kind::Ragged ||
                                       kind == Kind::SharedAnonymous || kind == Kind::Bss || kind == Kind::Stack);
}

void Run::set_up() {
  for (std::size_t page = 0; page < pages(); ++page) {
    if (state_ == State::Mixed && page % kTurns.size() == 4) continue;
    for (std::size_t i = page * kPage; i < (page + 1) * kPage; ++i) data()[i] = value(i);
  }
  if (managed_) put_pages();
  // One byte of the first pages is the device's, if there is one; it may be where only a device can write.
  for (std::size_t page = 0; page < std::min(pages(), kMostTurns); ++page) {
    if (state_ == State::Mixed && page % kTurns.size() != 0) continue;
    const std::byte mark{0xa5};
    if (managed_ && (state_ == State::Device || state_ == State::Mixed))
      expect(uhmm_device_write(1, memory_.page(page) + 100, &mark, 1, nullptr) == UHMM_OK, "a device writes");
    else if (!managed_ && (state_ == State::Device || state_ == State::Mixed))
      memory_.page(page)[100] = mark;
  }
  if (managed_) check_states();
}

void Run::put(std::byte* at, std::size_t length, State state) {
  static std::vector<std::byte> copy(kHuge);
  std::byte* const from = std::max(at, data() + ragged_by(memory_.kind));
  length = static_cast<std::size_t>(std::min(at + length, data() + bytes() - ragged_by(memory_.kind)) - from);
  uhmm_status status = UHMM_OK;
  if (state == State::Device) status = uhmm_migrate(from, length, 1, nullptr);
  if (state == State::Home) status = uhmm_migrate(from, length, UHMM_CPU, nullptr);
  if (state == State::Shared) status = uhmm_device_read(1, from, copy.data(), length, nullptr);
  if (state == State::Exclusive) status = uhmm_make_exclusive(from, length, 1, nullptr);
  if (status != UHMM_OK) fail(std::string("to ") + name_of(state) + ": " + uhmm_error_detail());
}

void Run::put_pages() {
  // Of a stack all of it is managed: also what this runs on.
  const bool stack = memory_.kind == Kind::Stack;
  const std::size_t ragged = ragged_by(memory_.kind);
  std::byte* const from = stack ? memory_.whole : data() + ragged;
  const std::size_t all = stack ? memory_.whole_bytes : bytes() - 2 * ragged;
  const std::size_t first = ragged != 0 ? all / 2 + 3 * ragged : all;
  uhmm_status registered = uhmm_register(from, first);
  if (registered == UHMM_OK && first != all) registered = uhmm_register(from + first, all - first);
  if (registered != UHMM_OK) {
    fail(std::string("registering ") + name_of(memory_.kind) + ": " + uhmm_error_detail());
    return;
  }
  if (state_ == State::Mixed) {
    // A device that reads gets neighbours as well: those go home again before the others are given their places.
    for (const State now : {State::Shared, State::Home, State::Device, State::Exclusive})
      for (std::size_t page = 0; page < std::min(pages(), kMostTurns); ++page)
        if (kTurns[page % kTurns.size()] == now && !is_untouched(page)) put(memory_.page(page), kPage, now);
  } else {
    put(data(), bytes(), state_);
    if (stack && state_ == State::Device) (void)uhmm_migrate(memory_.whole, memory_.whole_bytes, 1, nullptr);
  }
}

// It would be no test of a state that the pages are not in.
void Run::check_states() {
  constexpr std::uint8_t kStates[] = {UHMM_PAGE_SYSTEM, UHMM_PAGE_DEVICE, UHMM_PAGE_SHARED, UHMM_PAGE_EXCLUSIVE};
  const std::size_t ragged = ragged_by(memory_.kind);
  std::vector<uhmm_page_info> seen(pages());
  std::size_t count = 0;
  expect(uhmm_snapshot(data() + ragged, bytes() - 2 * ragged, seen.data(), seen.size(), &count) == UHMM_OK,
         "a snapshot");
  for (std::size_t page = 0; page < std::min(pages(), kMostTurns) && !is_mirrored(memory_.kind); ++page) {
    const State wanted = state_ == State::Mixed ? kTurns[page % kTurns.size()] : state_;
    const bool right = state_ == State::Mixed && is_untouched(page)
                           ? seen[page].devices == 0
                           : seen[page].state == kStates[static_cast<int>(wanted)];
    if (!right) fail("page " + std::to_string(page) + " is in state " + std::to_string(seen[page].state));
  }
}

void Run::note(const std::string& what, std::uint64_t value_seen) { notes_.push_back({what, value_seen}); }

void Run::call(const char* what, long result) {
  notes_.push_back({what, result == 0 ? 0 : static_cast<std::uint64_t>(errno)});
}

void Run::look(const char* what, const std::byte* data, std::size_t bytes) {
  // The device first: the CPU's look brings everything home.
  std::vector<std::byte> seen;
  if (managed_ && is_registered(data, bytes)) {
    seen.resize(bytes);
    if (uhmm_device_read(1, data, seen.data(), bytes, nullptr) != UHMM_OK) seen.clear();
  }
  for (std::size_t at = 0; at < bytes; at += kPage) {
    std::uint64_t sum = 0;
    if (const int signal = signal_of([&] { sum = hash(data + at, kPage); }); signal != 0)
      sum = static_cast<std::uint64_t>(signal);
    notes_.push_back({std::string(what) + ", page " + std::to_string(at / kPage), sum});
    if (!seen.empty() && sum > 64 && hash(seen.data() + at, kPage) != sum)
      notes_.push_back({std::string(what) + ", page " + std::to_string(at / kPage) + " as the device sees it", 0});
  }
}

void Run::poke(const char* what, std::byte* page, std::byte value_put) {
  note(what, static_cast<std::uint64_t>(signal_of([&] { *static_cast<volatile std::byte*>(page) = value_put; })));
}

void Run::flags(const char* what, const std::byte* data) {
  // Not whether children get it: that is seen in children.
  constexpr std::array kNames{"dd", "wf", "hg", "nh", "mg", "lo", "lf"};
  FILE* maps = fopen("/proc/self/smaps", "r");
  char line[512];
  bool here = false;
  std::uint64_t found = 0;
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  while (maps != nullptr && fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (sscanf(line, "%lx-%lx ", &begin, &end) == 2) here = begin <= address && address < end;
    if (!here || strncmp(line, "VmFlags:", 8) != 0) continue;
    for (std::size_t i = 0; i < kNames.size(); ++i)
      if (strstr(line, (std::string(" ") + kNames[i]).c_str()) != nullptr) found |= std::uint64_t{1} << i;
    break;
  }
  if (maps != nullptr) fclose(maps);
  note(what, found);
}

void Run::travel(std::byte* data, std::size_t bytes) {
  if (!managed_ || !is_registered(data, bytes)) return;
  (void)uhmm_migrate(data, bytes, 1, nullptr);
  (void)uhmm_migrate(data, bytes, UHMM_CPU, nullptr);
}

void Run::depart(std::byte* data, std::size_t bytes) {
  if (managed_ && is_registered(data, bytes)) (void)uhmm_migrate(data, bytes, 1, nullptr);
}

void Run::registered(const char* what, std::byte* data, std::size_t bytes) {
  const std::size_t ragged = ragged_by(memory_.kind);
  note(what, !managed_ || is_registered(data + ragged, bytes - 2 * ragged) ? 1 : 0);
}

std::byte* Run::another(std::size_t bytes, std::byte value_of_all) {
  std::byte* memory = map(bytes, MAP_PRIVATE | MAP_ANONYMOUS);
  std::memset(memory, static_cast<int>(value_of_all), bytes);
  if (managed_) {
    expect(uhmm_register(memory, bytes) == UHMM_OK, "registering another");
    expect(uhmm_migrate(memory, bytes, 1, nullptr) == UHMM_OK, "migrating another");
  }
  also(memory, bytes);
  return memory;
}

std::byte* Run::empty_place(std::size_t bytes) { return next_place(bytes); }

}  // namespace uhmm::matrix
