// SPDX-License-Identifier: Apache-2.0
// A program that uses its heap in every way there is, and checks each byte. It knows nothing of uhmm; its tests run it
// plain and under `uhmm run`. heap_program [ROUNDS] [SEED]
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace {

#define EXPECT(condition) expect(condition, __LINE__, #condition)

void expect(bool holds, int line, const char* condition) {
  if (holds) return;
  fprintf(stderr, "line %d: not so: %s\n", line, condition);
  abort();
}

// Made by a constructor of the program, read at the end.
struct Early {
  Early() {
    for (int i = 0; i < 1000; ++i) words.push_back("word " + std::to_string(i));
  }
  void check() const {
    for (int i = 0; i < 1000; ++i) EXPECT(words[static_cast<std::size_t>(i)] == "word " + std::to_string(i));
  }
  std::vector<std::string> words;
} early;

// The compiler may drop an allocation that nothing uses.
template <typename T>
T* used(T* pointer) {
  __asm__ volatile("" : "+r"(pointer)::"memory");
  return pointer;
}

struct Block {
  unsigned char* bytes = nullptr;
  std::size_t size = 0;
  std::uint64_t seed = 0;

  unsigned char at(std::size_t i) const { return static_cast<unsigned char>((seed + i) * 0x9e3779b97f4a7c15 >> 56); }
  void fill() {
    for (std::size_t i = 0; i < size; ++i) bytes[i] = at(i);
  }
  void check(std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) EXPECT(bytes[i] == at(i));
  }
};

bool aligned(const void* pointer, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0;
}

std::size_t random_size(std::mt19937_64& random) {
  const unsigned bits = random() % 64 == 0 ? 23 : random() % 16 == 0 ? 17 : 10;
  return random() % (std::size_t{1} << (random() % bits + 1));
}

Block make_block(std::mt19937_64& random) {
  Block block{nullptr, random_size(random), random()};
  const std::size_t alignment = std::size_t{8} << random() % 12;
  void* memory = nullptr;
  switch (random() % 9) {
    case 0: memory = malloc(block.size); break;
    case 1: {
      memory = calloc(block.size / 7 + 1, 7);
      block.size = (block.size / 7 + 1) * 7;
      for (std::size_t i = 0; i < block.size; ++i) EXPECT(static_cast<char*>(memory)[i] == 0);
      break;
    }
    case 2: EXPECT(posix_memalign(&memory, alignment, block.size) == 0 && aligned(memory, alignment)); break;
    case 3:
      memory = aligned_alloc(alignment, block.size);
      EXPECT(aligned(memory, alignment));
      break;
    case 4:
      memory = memalign(alignment, block.size);
      EXPECT(aligned(memory, alignment));
      break;
    case 5:
      memory = valloc(block.size);
      EXPECT(aligned(memory, 4096));
      break;
    case 6:
      memory = pvalloc(block.size);
      EXPECT(aligned(memory, 4096));
      break;
    case 7: memory = reallocarray(nullptr, block.size, 1); break;
    default: memory = realloc(nullptr, block.size);
  }
  if (memory == nullptr && block.size == 0) memory = malloc(1);
  EXPECT(memory != nullptr && aligned(memory, sizeof(void*)) && malloc_usable_size(memory) >= block.size);
  block.bytes = static_cast<unsigned char*>(memory);
  block.fill();
  return block;
}

void churn(std::uint64_t seed, int rounds) {
  std::mt19937_64 random(seed);
  std::vector<Block> blocks;
  for (int round = 0; round < rounds; ++round) {
    if (blocks.size() < 200 && random() % 3 != 0) {
      blocks.push_back(make_block(random));
      continue;
    }
    if (blocks.empty()) continue;
    Block& block = blocks[random() % blocks.size()];
    block.check(block.size);
    if (random() % 3 == 0) {
      const std::size_t size = random_size(random) + 1;
      auto* moved = static_cast<unsigned char*>(realloc(block.bytes, size));
      EXPECT(moved != nullptr);
      block.bytes = moved;
      block.check(std::min(size, block.size));
      block.size = size;
      block.fill();
    } else {
      free(block.bytes);
      block = blocks.back();
      blocks.pop_back();
    }
    if (random() % 1024 == 0) malloc_trim(0);
  }
  for (Block& block : blocks) block.check(block.size), free(block.bytes);
}

void edges() {
  volatile std::size_t huge = SIZE_MAX;
  errno = 0;
  EXPECT(malloc(huge) == nullptr && errno == ENOMEM);
  errno = 0;
  EXPECT(malloc(huge / 2 + 1) == nullptr && errno == ENOMEM);
  errno = 0;
  EXPECT(calloc(huge / 2, 3) == nullptr && errno == ENOMEM);
  // Through a volatile pointer: the compiler believes that it is gone.
  char* volatile kept = static_cast<char*>(malloc(10));
  strcpy(kept, "kept");
  errno = 0;
  EXPECT(reallocarray(kept, huge / 2, 3) == nullptr && errno == ENOMEM);
  errno = 0;
  EXPECT(realloc(kept, huge - 100) == nullptr && errno == ENOMEM);
  EXPECT(strcmp(kept, "kept") == 0);
  free(kept);
  free(nullptr);
  void* none = &none;
  EXPECT(posix_memalign(&none, 3, 8) == EINVAL && none == &none);
  EXPECT(posix_memalign(&none, 4, 8) == EINVAL && none == &none);
  EXPECT(malloc_usable_size(nullptr) == 0);
  void* empty = used(malloc(0));
  EXPECT(empty != nullptr);
  EXPECT(realloc(empty, 0) == nullptr);
  EXPECT(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1);
  std::vector<char> held(3 << 20, 'x');
  EXPECT(mallinfo2().uordblks + mallinfo2().hblkhd >= held.size());
  // errno is the program's: freeing leaves it alone.
  void* large = used(malloc(64 << 20));
  memset(large, 1, 64 << 20);
  errno = 77;
  free(large);
  EXPECT(errno == 77);
  // What comes back from the allocator after that reads as zeros where calloc() promises it.
  malloc_trim(0);
  auto* zeros = static_cast<char*>(calloc(1, 64 << 20));
  EXPECT(std::all_of(zeros, zeros + (64 << 20), [](char byte) { return byte == 0; }));
  free(zeros);
}

struct alignas(256) Wide {
  char bytes[512];
};

void operators() {
  auto* one = used(new std::string("one"));
  auto* many = used(new std::string[100]);
  many[99] = *one + "!";
  auto* quiet = used(new (std::nothrow) char[1 << 20]);
  EXPECT(quiet != nullptr);
  memset(quiet, 7, 1 << 20);
  auto* wide = used(new Wide);
  auto* wides = used(new Wide[3]);
  EXPECT(aligned(wide, 256) && aligned(wides, 256));
  auto* wide_quiet = used(new (std::nothrow) Wide);
  void* raw = used(::operator new (100, std::align_val_t{4096}));
  EXPECT(aligned(raw, 4096));
  ::operator delete (raw, std::align_val_t{4096});
  ::operator delete (used(::operator new(100)), std::size_t{100});
  EXPECT(many[99] == "one!" && quiet[12345] == 7);
  delete wide_quiet;
  delete[] wides;
  delete wide;
  delete[] quiet;
  delete[] many;
  delete one;
  volatile std::size_t huge = SIZE_MAX / 2;
  bool thrown = false;
  try {
    used(::operator new(huge));
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  EXPECT(thrown && ::operator new(huge, std::nothrow) == nullptr);
  // An exception with a text of its own, caught in another frame.
  try {
    std::map<int, std::unique_ptr<std::string>> map;
    for (int i = 0; i < 1000; ++i) map[i] = std::make_unique<std::string>(static_cast<std::size_t>(i), 'm');
    throw std::runtime_error("thrown " + *map[3]);
  } catch (const std::runtime_error& error) {
    EXPECT(strcmp(error.what(), "thrown mmm") == 0);
  }
}

// Blocks made by one thread and freed by another.
void exchange(std::uint64_t seed) {
  constexpr int kThreads = 4;
  std::atomic<Block*> slots[64] = {};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&slots, seed, t] {
      std::mt19937_64 random(seed * 31 + static_cast<unsigned>(t));
      for (int i = 0; i < 3000; ++i) {
        Block* mine = new Block(make_block(random));
        Block* theirs = slots[random() % 64].exchange(mine);
        if (theirs == nullptr) continue;
        theirs->check(theirs->size);
        free(theirs->bytes);
        delete theirs;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (auto& slot : slots) {
    if (Block* left = slot.load()) {
      left->check(left->size);
      free(left->bytes);
      delete left;
    }
  }
}

void check_child(pid_t child) {
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

// Both sides have the heap as it was, and go on with it apart.
void forks(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Block> blocks;
  for (int i = 0; i < 300; ++i) blocks.push_back(make_block(random));
  std::atomic<bool> stop{false};
  std::thread busy([&stop, seed] {
    for (std::uint64_t i = 0; !stop.load(); ++i) churn(seed + i, 200);
  });
  for (int i = 0; i < 5; ++i) {
    const pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) {
      for (Block& block : blocks) block.check(block.size), block.seed = 1, block.fill();
      churn(seed + 99, 500);
      for (Block& block : blocks) block.check(block.size), free(block.bytes);
      malloc_trim(0);
      auto* zeros = static_cast<char*>(calloc(1, 8 << 20));
      EXPECT(std::all_of(zeros, zeros + (8 << 20), [](char byte) { return byte == 0; }));
      _exit(7);
    }
    for (Block& block : blocks) block.check(block.size), block.seed += 1, block.fill();
    check_child(child);
    for (Block& block : blocks) block.check(block.size);
  }
  stop.store(true);
  busy.join();
  for (Block& block : blocks) free(block.bytes);
  // A child that shares the memory until it has executed something.
  const pid_t child = vfork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", "exit 7", nullptr);
    _exit(1);
  }
  check_child(child);
  pid_t spawned = -1;
  std::string shell = "sh";
  std::string option = "-c";
  std::string script = "test \"$WORD\" = there && exit 7";
  char* arguments[] = {shell.data(), option.data(), script.data(), nullptr};
  setenv("WORD", "there", 1);
  EXPECT(posix_spawn(&spawned, "/bin/sh", nullptr, nullptr, arguments, environ) == 0);
  check_child(spawned);
}

// System calls read and write memory of the heap; a handler runs on a stack that is one.
std::atomic<int> signals{0};
void system_calls() {
  std::vector<char> out(1 << 20);
  std::vector<char> in(1 << 20);
  int ends[2];
  EXPECT(pipe(ends) == 0);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>(i * 7);
  std::thread writer([&] { EXPECT(write(ends[1], out.data(), out.size()) == static_cast<ssize_t>(out.size())); });
  for (std::size_t got = 0; got < in.size();) {
    const ssize_t part = read(ends[0], in.data() + got, in.size() - got);
    EXPECT(part > 0);
    got += static_cast<std::size_t>(part);
  }
  writer.join();
  EXPECT(in == out);
  stack_t stack{};
  stack.ss_size = 64 << 10;
  stack.ss_sp = malloc(stack.ss_size);
  EXPECT(sigaltstack(&stack, nullptr) == 0);
  struct sigaction action {};
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = [](int) { signals.fetch_add(1); };
  EXPECT(sigaction(SIGUSR1, &action, nullptr) == 0);
  for (int i = 0; i < 200; ++i) EXPECT(raise(SIGUSR1) == 0);
  EXPECT(signals.load() == 200);
  stack.ss_flags = SS_DISABLE;
  EXPECT(sigaltstack(&stack, nullptr) == 0);
  free(stack.ss_sp);
  // Locks in heap memory: the kernel waits on them.
  struct Shared {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    int turn = 0;
  };
  auto shared = std::make_unique<Shared>();
  auto play = [&shared](int me) {
    for (int i = 0; i < 500; ++i) {
      pthread_mutex_lock(&shared->mutex);
      while (shared->turn % 2 != me) pthread_cond_wait(&shared->changed, &shared->mutex);
      ++shared->turn;
      pthread_cond_broadcast(&shared->changed);
      pthread_mutex_unlock(&shared->mutex);
    }
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT(shared->turn == 1000);
}

// The program does to pages of its heap what it may do to any.
void page_calls() {
  constexpr std::size_t kBytes = 1 << 20;
  auto* memory = static_cast<char*>(aligned_alloc(4096, kBytes));
  memset(memory, 5, kBytes);
  EXPECT(mprotect(memory, kBytes, PROT_READ) == 0);
  for (int round = 0; round < 100; ++round) EXPECT(memory[round * 4096] == 5);
  EXPECT(mprotect(memory, kBytes, PROT_READ | PROT_WRITE) == 0);
  memset(memory, 6, kBytes);
  for (int round = 0; round < 50; ++round) {
    memset(memory + 4096, round, 8192);
    EXPECT(madvise(memory + 4096, 8192, MADV_DONTNEED) == 0);
    EXPECT(memory[4096] == 0 && memory[3 * 4096 - 1] == 0 && memory[0] == 6 && memory[3 * 4096] == 6);
  }
  free(memory);
  auto* mapped = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  EXPECT(mapped != MAP_FAILED);
  for (std::size_t i = 0; i < kBytes; ++i) mapped[i] = static_cast<char>(i >> 12);
  for (std::size_t size = kBytes; size < 8 * kBytes; size *= 2) {
    mapped = static_cast<char*>(mremap(mapped, size, size * 2, MREMAP_MAYMOVE));
    EXPECT(mapped != MAP_FAILED);
    memcpy(mapped + size, mapped, size);
  }
  for (std::size_t i = 0; i < 8 * kBytes; ++i) EXPECT(mapped[i] == static_cast<char>((i % kBytes) >> 12));
  EXPECT(munmap(mapped + kBytes, kBytes) == 0);
  EXPECT(mapped[kBytes - 1] == static_cast<char>(255) && mapped[2 * kBytes] == 0);
  EXPECT(munmap(mapped, 8 * kBytes) == 0);
}

void closes_everything() {
  std::vector<int> numbers(100'000, 3);
  const pid_t child = fork();
  if (child == 0) {
    closefrom(3);
    for (int i = 3; i < 1024; ++i) close(i);
    EXPECT(std::all_of(numbers.begin(), numbers.end(), [](int number) { return number == 3; }));
    _exit(7);
  }
  check_child(child);
  EXPECT(close_range(3, ~0u, 0) == 0);
  for (int i = 3; i < 2048; ++i) EXPECT(close(i) == -1 && errno == EBADF);
  closefrom(3);
  const int lowest = open("/dev/null", O_RDONLY);
  EXPECT(lowest == 3);
  close(lowest);
  // Nobody has descriptors of an earlier fork left that he would close now that their numbers are the program's.
  std::vector<int> mine;
  for (int round = 0; round < 60; ++round) {
    std::fill(numbers.begin(), numbers.end(), 3);
    const pid_t next = fork();
    if (next == 0) _exit(numbers[numbers.size() / 2] == 3 ? 7 : 1);
    for (const int fd : mine) EXPECT(close(fd) == 0);  // there since the last fork
    EXPECT(close_range(3, ~0u, 0) == 0);
    mine.assign(8, -1);
    for (int& fd : mine) EXPECT((fd = open("/dev/null", O_RDONLY)) >= 3);
    check_child(next);
  }
  EXPECT(std::all_of(numbers.begin(), numbers.end(), [](int number) { return number == 3; }));
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 20'000;
  const std::uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 0) : std::random_device{}();
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  fflush(stdout);
  edges();
  operators();
  churn(seed, rounds);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) threads.emplace_back(churn, seed + t, rounds / 4);
  for (std::thread& thread : threads) thread.join();
  exchange(seed);
  system_calls();
  page_calls();
  forks(seed);
  closes_everything();
  early.check();
  puts("done");
  return 42;
}
