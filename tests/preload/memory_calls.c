// SPDX-License-Identifier: Apache-2.0
// Run by `uhmm run --dmirror`: memory is on a device while its mapping is changed. A program that knows nothing of
// uhmm.
#include <sys/wait.h>

#include "tests/preload/mirror_program.h"

enum { PAGES = 64, BYTES = PAGES * PAGE };

static char buffer[BYTES];

static int run(int number, void* at, size_t pages) { return command(number, at, pages, buffer, NULL); }
static char value(size_t i) { return (char)(i * 7 + i / PAGE + 1); }
static int holds_values(const char* memory, size_t from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (memory[i] != value(from + i)) return 0;
  return 1;
}
static int zeros(const char* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (memory[i] != 0) return 0;
  return 1;
}
// Memory with values, on the device.
static char* on_device(void) {
  char* memory = map(BYTES);
  for (size_t i = 0; i < BYTES; ++i) memory[i] = value(i);
  EXPECT(run(TO_DEVICE, memory, PAGES) == 0);
  EXPECT(run(SNAPSHOT, memory, PAGES) == 0);
  EXPECT(buffer[0] == 0x22 && buffer[PAGES - 1] == 0x22);
  return memory;
}

static char* move_to(char* place, char* memory) {
  char* moved = mremap(memory, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  EXPECT(moved == place);
  return moved;
}

static void unmap_and_map_again(void) {
  char* memory = move_to((char*)0x7e9000000000, on_device());
  EXPECT(run(TO_DEVICE, memory, PAGES) == 0);
  EXPECT(munmap(memory, BYTES) == 0);
  EXPECT(run(READ, memory, 1) == EFAULT);
  EXPECT(mmap(memory, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(zeros(buffer, BYTES));
  EXPECT(zeros(memory, BYTES));
  munmap(memory, BYTES);
}

static void unmap_a_part(void) {
  // Where the kernel puts nothing on its own, so that the hole stays one.
  char* memory = move_to((char*)0x7e9000000000, on_device());
  EXPECT(run(TO_DEVICE, memory, PAGES) == 0);
  EXPECT(munmap(memory + 10 * PAGE, 20 * PAGE) == 0);
  EXPECT(run(READ, memory, PAGES) == EFAULT);
  EXPECT(run(SNAPSHOT, memory, PAGES) == 0);
  EXPECT(buffer[9] == 0x22 && (unsigned char)buffer[10] == 0xff && (unsigned char)buffer[29] == 0xff &&
         buffer[30] == 0x22);
  EXPECT(holds_values(memory, 0, 10 * PAGE));
  EXPECT(holds_values(memory + 30 * PAGE, 30 * PAGE, BYTES - 30 * PAGE));
  EXPECT(munmap(memory, BYTES) == 0);  // across the hole
}

// The kernel has no room for the mappings that would be left: what it refuses has changed nothing.
static void refused_unmapping(void) {
  enum { MOST = 200000 };
  FILE* limit = fopen("/proc/sys/vm/max_map_count", "r");
  long most = 0;
  const int known = limit != NULL && fscanf(limit, "%ld", &most) == 1;
  if (limit != NULL) fclose(limit);
  if (!known || most > MOST) {
    fprintf(stderr, "vm.max_map_count is unknown or above %d: not reached here\n", MOST);
    return;
  }
  char* memory = on_device();
  char* fillers = mmap(NULL, (size_t)MOST * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EXPECT(fillers != MAP_FAILED);
  // Each other page is a mapping of its own, until there is room for none.
  size_t filled = 0;
  while (filled < MOST && mprotect(fillers + filled * PAGE, PAGE, PROT_READ) == 0) filled += 2;
  EXPECT(filled < MOST && errno == ENOMEM);
  const int refused = munmap(memory + 10 * PAGE, 20 * PAGE);
  const int error = errno;
  EXPECT(munmap(fillers, (size_t)MOST * PAGE) == 0);
  EXPECT(refused == -1 && error == ENOMEM);
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(holds_values(buffer, 0, BYTES));
  EXPECT(holds_values(memory, 0, BYTES));
  memset(memory, 5, BYTES);
  EXPECT(memory[20 * PAGE] == 5);
  EXPECT(munmap(memory + 10 * PAGE, 20 * PAGE) == 0);
  EXPECT(munmap(memory, BYTES) == 0);
}

static void map_over_a_part(void) {
  char* memory = on_device();
  EXPECT(mmap(memory + 5 * PAGE, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
         memory + 5 * PAGE);
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(holds_values(buffer, 0, 5 * PAGE));
  EXPECT(zeros(buffer + 5 * PAGE, 5 * PAGE));
  EXPECT(holds_values(buffer + 10 * PAGE, 10 * PAGE, BYTES - 10 * PAGE));
  // A call that the kernel refuses changes nothing.
  EXPECT(mmap(memory, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED);
  EXPECT(holds_values(memory, 0, 5 * PAGE));
  munmap(memory, BYTES);
}

static void move_and_grow(void) {
  char* memory = on_device();
  char* place = map(2 * BYTES);
  char* moved = mremap(memory, BYTES, 2 * BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  EXPECT(moved == place);
  EXPECT(holds_values(moved, 0, BYTES));
  EXPECT(zeros(moved + BYTES, BYTES));
  EXPECT(run(TO_DEVICE, moved, PAGES) == 0);
  EXPECT(holds_values(buffer, 0, BYTES));
  EXPECT(run(READ, memory, 1) == EFAULT);
  EXPECT(mremap(moved, 2 * BYTES, BYTES / 2, 0) == moved);
  EXPECT(holds_values(moved, 0, BYTES / 2));
  EXPECT(mremap(moved, BYTES / 2, BYTES, MREMAP_MAYMOVE) != MAP_FAILED);
  munmap(moved, BYTES);
}

static void move_onto_another_range_of_the_device(void) {
  char* memory = on_device();
  char* other = on_device();
  memset(other, 1, BYTES);
  EXPECT(run(TO_DEVICE, other, PAGES) == 0);
  EXPECT(mremap(memory, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
  EXPECT(run(READ, other, PAGES) == 0);
  EXPECT(holds_values(buffer, 0, BYTES));
  EXPECT(holds_values(other, 0, BYTES));
  munmap(other, BYTES);
}

static void move_and_leave_the_mapping(void) {
  char* memory = on_device();
  char* moved = mremap(memory, BYTES, BYTES, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */);
  if (moved == MAP_FAILED && errno == EINVAL) return;  // before 5.7
  EXPECT(moved != MAP_FAILED);
  EXPECT(holds_values(moved, 0, BYTES));
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(zeros(buffer, BYTES));
  EXPECT(zeros(memory, BYTES));
  munmap(memory, BYTES);
  munmap(moved, BYTES);
}

static void refused_moves_lose_nothing(void) {
  char* memory = on_device();
  EXPECT(mremap(memory, BYTES, BYTES, MREMAP_FIXED, memory + BYTES) == MAP_FAILED);  // without MAYMOVE
  EXPECT(holds_values(memory, 0, BYTES));
  munmap(memory, BYTES);
}

static void drop_contents(void) {
  char* memory = on_device();
  EXPECT(madvise(memory + PAGE, 10 * PAGE, MADV_DONTNEED) == 0);
  EXPECT(zeros(memory + PAGE, 10 * PAGE));
  EXPECT(holds_values(memory, 0, PAGE));
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(zeros(buffer + PAGE, 10 * PAGE));
  EXPECT(madvise(memory + 20 * PAGE, PAGE, MADV_FREE) == 0);
  EXPECT(holds_values(memory + 20 * PAGE, 20 * PAGE, PAGE) || zeros(memory + 20 * PAGE, PAGE));
  EXPECT(madvise(memory + 1, PAGE, MADV_DONTNEED) == -1);
  EXPECT(holds_values(memory + 30 * PAGE, 30 * PAGE, BYTES - 30 * PAGE));
  munmap(memory, BYTES);
}

static void other_advice_keeps_contents(void) {
  const int advice[] = {MADV_NORMAL,   MADV_RANDOM,     MADV_SEQUENTIAL, MADV_WILLNEED,
                        MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP,   MADV_DODUMP,
                        MADV_COLD,     MADV_PAGEOUT,    MADV_MERGEABLE,  25 /* MADV_COLLAPSE */};
  for (size_t i = 0; i < sizeof(advice) / sizeof(*advice); ++i) {
    char* memory = on_device();
    (void)madvise(memory, BYTES, advice[i]);  // whatever this kernel says to it
    EXPECT(holds_values(memory, 0, BYTES));
    EXPECT(run(READ, memory, PAGES) == 0);
    EXPECT(holds_values(buffer, 0, BYTES));
    munmap(memory, BYTES);
  }
}

static void protect(void) {
  char* memory = on_device();
  EXPECT(mprotect(memory, BYTES, PROT_READ) == 0);
  EXPECT(run(WRITE, memory, 1) == EPERM);
  EXPECT(run(READ, memory, PAGES) == 0);
  EXPECT(mprotect(memory, BYTES, PROT_NONE) == 0);
  EXPECT(run(READ, memory, 1) == EFAULT);
  EXPECT(mprotect(memory, BYTES, PROT_READ | PROT_WRITE) == 0);
  EXPECT(holds_values(memory, 0, BYTES));
  munmap(memory, BYTES);
}

static void close_brings_home(void) {
  const int other = open("/dev/hmm_dmirror1", O_RDWR | O_CLOEXEC);
  EXPECT(other >= 0);
  char* memory = map(BYTES);
  for (size_t i = 0; i < BYTES; ++i) memory[i] = value(i);
  struct command command = {(uint64_t)memory, (uint64_t)buffer, PAGES, 0, 0};
  EXPECT(ioctl(other, _IOWR('H', TO_DEVICE, struct command), &command) == 0);
  EXPECT(close(other) == 0);
  EXPECT(run(SNAPSHOT, memory, PAGES) == 0);
  EXPECT(buffer[0] == 2);
  EXPECT(holds_values(memory, 0, BYTES));
  munmap(memory, BYTES);
}

// A file that other processes may map is mirrored where it is, and what the mirror has learned ends with the mapping.
static void unmap_a_shared_file(void) {
  char path[] = "/tmp/uhmm-test-XXXXXX";
  const int file = mkstemp(path);
  EXPECT(file >= 0 && unlink(path) == 0);
  for (size_t i = 0; i < BYTES; ++i) buffer[i] = value(i);
  EXPECT(write(file, buffer, BYTES) == BYTES);
  char* place = (char*)0x7e9100000000;
  char* memory = mmap(place, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  EXPECT(memory == place);
  EXPECT(run(READ, memory, PAGES) == 0 && holds_values(buffer, 0, BYTES));
  memset(buffer, 9, PAGE);
  EXPECT(run(WRITE, memory, 1) == 0 && memory[0] == 9);
  EXPECT(munmap(memory, BYTES) == 0);
  EXPECT(run(READ, memory, 1) == EFAULT);
  EXPECT(run(WRITE, memory, 1) == EFAULT);
  char first = 0;
  EXPECT(pread(file, &first, 1, 0) == 1 && first == 9);
  // Nothing of the file is known of what takes its place: it is one fault again.
  EXPECT(mmap(place, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place);
  struct command done;
  EXPECT(command(READ, place, PAGES, buffer, &done) == 0 && done.faults == 1);
  EXPECT(zeros(buffer, BYTES));
  munmap(place, BYTES);
  close(file);
}

// Another program's: it has no memory that the device could mirror.
static void an_open_means_nothing_to_another_program(const char* self) {
  char number[16];
  snprintf(number, sizeof(number), "%d", device);
  const pid_t child = fork();
  if (child == 0) {
    execl(self, self, "inherited", number, NULL);
    _exit(2);
  }
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child && status == 0);
  char* memory = on_device();
  EXPECT(holds_values(memory, 0, BYTES));
  munmap(memory, BYTES);
}

int main(int count, char** words) {
  if (count == 3 && strcmp(words[1], "inherited") == 0) {
    device = atoi(words[2]);
    return command(READ, buffer, 1, buffer, NULL) == ENOTTY ? 0 : 1;
  }
  device = open("/dev/hmm_dmirror0", O_RDWR);
  if (device < 0) {
    perror("/dev/hmm_dmirror0");
    return 1;
  }
  unmap_and_map_again();
  unmap_a_part();
  refused_unmapping();
  map_over_a_part();
  move_and_grow();
  move_onto_another_range_of_the_device();
  move_and_leave_the_mapping();
  refused_moves_lose_nothing();
  drop_contents();
  other_advice_keeps_contents();
  protect();
  close_brings_home();
  unmap_a_shared_file();
  an_open_means_nothing_to_another_program(words[0]);
  return failures == 0 ? 0 : 1;
}
