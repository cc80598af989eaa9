// SPDX-License-Identifier: Apache-2.0
// Run by `uhmm run --dmirror`: what the newest kernel's suite asks of huge pages on a device, and of a device that
// reads memory whose faults the program serves itself. A program that knows nothing of uhmm.
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/preload/mirror_program.h"

enum { HUGE_BYTES = 2 << 20, HUGE_PAGES = HUGE_BYTES / PAGE };

static char buffer[HUGE_BYTES];
static int coherent;

static int run(int number, void* at, size_t pages) { return command(number, at, pages, buffer, NULL); }

static int value(size_t i) { return (int)(i * 2654435761u + 1); }
static void set_values(void* memory) {
  for (size_t i = 0; i < HUGE_BYTES / sizeof(int); ++i) ((int*)memory)[i] = value(i);
}
// The first byte from `from` on that differs, or `to`.
static size_t first_wrong(const void* memory, size_t from, size_t to) {
  for (size_t i = from / sizeof(int); i < to / sizeof(int); ++i)
    if (((const int*)memory)[i] != value(i)) return i * sizeof(int);
  return to;
}
static int right(const void* memory) { return first_wrong(memory, 0, HUGE_BYTES) == HUGE_BYTES; }
static int zeros(const char* memory) {
  for (size_t i = 0; i < HUGE_BYTES; ++i)
    if (memory[i] != 0) return 0;
  return 1;
}

// A huge page's worth of memory inside a mapping of twice that.
struct block {
  char* whole;
  char* data;
};
static struct block make_block(int protection, int advice) {
  struct block block;
  block.whole = mmap(NULL, 2 * HUGE_BYTES, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  block.data = (char*)(((uintptr_t)block.whole + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
  EXPECT(madvise(block.data, HUGE_BYTES, advice) == 0);
  return block;
}
static void end_block(struct block block) { EXPECT(munmap(block.whole, 2 * HUGE_BYTES) == 0); }
static void to_device(char* memory) {
  struct command done;
  EXPECT(command(TO_DEVICE, memory, HUGE_PAGES, buffer, &done) == 0);
  EXPECT(done.cpages == HUGE_PAGES);
}

static void empty(void) {
  struct block block = make_block(PROT_READ, MADV_HUGEPAGE);
  memset(buffer, 0xff, sizeof(buffer));
  to_device(block.data);
  EXPECT(zeros(buffer));
  EXPECT(zeros(block.data));
  end_block(block);
}

static void page_of_zeros(void) {
  struct block block = make_block(PROT_READ, MADV_HUGEPAGE);
  EXPECT(*(volatile char*)block.data == 0);
  to_device(block.data);
  EXPECT(zeros(buffer));
  EXPECT(zeros(block.data));
  end_block(block);
}

static void freed(void) {
  struct block block = make_block(PROT_READ | PROT_WRITE, MADV_HUGEPAGE);
  set_values(block.data);
  to_device(block.data);
  EXPECT(right(buffer));
  EXPECT(madvise(block.data, HUGE_BYTES, MADV_FREE) == 0);
  // Each page is either as it was or zero.
  for (size_t page = 0; page < HUGE_PAGES; ++page) {
    const int* words = (const int*)(block.data + page * PAGE);
    const size_t first = page * PAGE / sizeof(int);
    EXPECT(words[5] == 0 || words[5] == value(first + 5));
  }
  end_block(block);
}

static void faults_back(void) {
  struct block block = make_block(PROT_READ | PROT_WRITE, MADV_NORMAL);
  set_values(block.data);
  EXPECT(madvise(block.data, HUGE_BYTES, 25 /* MADV_COLLAPSE */) == 0);
  to_device(block.data);
  EXPECT(right(buffer));
  if (!coherent) {
    EXPECT(run(SNAPSHOT, block.data, HUGE_PAGES) == 0);
    for (size_t i = 0; i < HUGE_PAGES; ++i) EXPECT(buffer[i] == (0x20 | 0x02 | 0x04));
    static uint64_t entries[HUGE_PAGES];
    const int pagemap = open("/proc/self/pagemap", O_RDONLY);
    EXPECT(pread(pagemap, entries, sizeof(entries), (off_t)((uintptr_t)block.data / PAGE * 8)) ==
           (ssize_t)sizeof(entries));
    close(pagemap);
    for (size_t i = 0; i < HUGE_PAGES; ++i) EXPECT((entries[i] >> 63) == 0 && (entries[i] >> 62 & 1) == 1);
  }
  EXPECT(right(block.data));
  end_block(block);
}

static void partly_unmapped(void) {
  for (int huge = 0; huge < 2; ++huge) {
    for (size_t offset = 0; offset <= HUGE_BYTES / 2; offset += HUGE_BYTES / 4) {
      struct block block = make_block(PROT_READ | PROT_WRITE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
      set_values(block.data);
      to_device(block.data);
      EXPECT(munmap(block.data + offset, HUGE_BYTES / 2) == 0);
      EXPECT(first_wrong(block.data, 0, offset) == offset);
      EXPECT(first_wrong(block.data, offset + HUGE_BYTES / 2, HUGE_BYTES) == HUGE_BYTES);
      end_block(block);
    }
  }
}

static void moved_one(int before, int flags, int huge, size_t offset) {
  char* whole = map(8 * (size_t)HUGE_BYTES);
  char* data = (char*)(((uintptr_t)whole + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
  EXPECT(madvise(data, HUGE_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0);
  EXPECT(munmap(data + HUGE_BYTES, 2 * (size_t)HUGE_BYTES) == 0);
  set_values(data);
  char* now = data;
  if (before) now = mremap(data, HUGE_BYTES, HUGE_BYTES, flags, data + HUGE_BYTES + offset);
  EXPECT(now != MAP_FAILED);
  to_device(now);
  EXPECT(right(buffer));
  if (!before) now = mremap(data, HUGE_BYTES, HUGE_BYTES, flags, data + HUGE_BYTES + offset);
  EXPECT(now != MAP_FAILED);
  EXPECT(right(now));
  if ((flags & MREMAP_DONTUNMAP) != 0) EXPECT(zeros(data));
  EXPECT(munmap(now, HUGE_BYTES) == 0);
  EXPECT(munmap(whole, 8 * (size_t)HUGE_BYTES) == 0);
}
static void moved(void) {
  for (int before = 0; before < 2; ++before)
    for (int keep = 0; keep < 2; ++keep)
      for (int huge = 0; huge < 2; ++huge)
        for (size_t offset = 0; offset <= HUGE_BYTES / 2; offset += HUGE_BYTES / 4)
          moved_one(before, MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0), huge, offset);
}

static void no_huge_page_to_be_had(void) {
  struct block block = make_block(PROT_READ | PROT_WRITE, MADV_HUGEPAGE);
  set_values(block.data);
  EXPECT(run(FLAGS, block.data, 1) == 0);
  to_device(block.data);
  EXPECT(right(buffer));
  if (!coherent) {
    EXPECT(run(SNAPSHOT, block.data, HUGE_PAGES) == 0);
    for (size_t i = 0; i < HUGE_PAGES; ++i) EXPECT(buffer[i] == (0x20 | 0x02));
  }
  EXPECT(((int*)block.data)[2048] == value(2048));
  end_block(block);

  block = make_block(PROT_READ | PROT_WRITE, MADV_HUGEPAGE);
  set_values(block.data);
  to_device(block.data);
  EXPECT(run(FLAGS, block.data, 1) == 0);
  EXPECT(run(TO_SYSTEM, block.data, HUGE_PAGES) == 0);
  EXPECT(right(block.data));
  end_block(block);

  block = make_block(PROT_READ, MADV_HUGEPAGE);
  EXPECT(run(FLAGS, block.data, 1) == 0);
  to_device(block.data);
  EXPECT(zeros(buffer));
  EXPECT(zeros(block.data));
  end_block(block);
}

static void written_by_a_child(void) {
  for (int huge = 0; huge < 2; ++huge) {
    struct block block = make_block(PROT_READ | PROT_WRITE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    set_values(block.data);
    to_device(block.data);
    const pid_t child = fork();
    if (child == 0) {
      failures = 0;
      EXPECT(right(block.data));
      device = open(coherent ? "/dev/hmm_dmirror2" : "/dev/hmm_dmirror0", O_RDWR);
      memset(buffer, 0x5a, sizeof(buffer));
      struct command done;
      EXPECT(command(WRITE, block.data, HUGE_PAGES, buffer, &done) == 0);
      EXPECT(done.cpages == HUGE_PAGES && done.faults == 1);
      EXPECT(memcmp(block.data, buffer, HUGE_BYTES) == 0);
      close(device);
      _exit(failures == 0 ? 0 : 1);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(right(block.data));
    end_block(block);
  }
}

// ------------------------------------------------------------ the program has a userfaultfd of its own

struct server {
  int uffd;
  char* memory;
};
static void* serve(void* argument) {
  const struct server* server = argument;
  static char page[PAGE];
  for (;;) {
    struct uffd_msg message;
    if (read(server->uffd, &message, sizeof(message)) != (ssize_t)sizeof(message)) return NULL;
    const uint64_t at = message.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
    memset(page, (int)((at - (uintptr_t)server->memory) / PAGE) + 1, PAGE);
    struct uffdio_copy copy = {at, (uintptr_t)page, PAGE, 0, 0};
    if (ioctl(server->uffd, UFFDIO_COPY, &copy) != 0 && errno != EEXIST) return NULL;
    if (at == (uintptr_t)server->memory + 7 * PAGE) return NULL;
  }
}
static void read_of_what_the_program_serves(void) {
  struct server server = {(int)syscall(SYS_userfaultfd, O_CLOEXEC), map(8 * PAGE)};
  struct uffdio_api api = {UFFD_API, 0, 0};
  if (server.uffd < 0 || ioctl(server.uffd, UFFDIO_API, &api) != 0) {
    fprintf(stderr, "no userfaultfd here\n");
    exit(77);
  }
  struct uffdio_register watched = {{(uintptr_t)server.memory, 8 * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
  EXPECT(ioctl(server.uffd, UFFDIO_REGISTER, &watched) == 0);
  pthread_t thread;
  EXPECT(pthread_create(&thread, NULL, serve, &server) == 0);
  EXPECT(run(READ_UNLOCKED, server.memory, 8) == 0);
  for (int i = 0; i < 8; ++i) EXPECT(buffer[i * PAGE] == i + 1 && buffer[i * PAGE + PAGE - 1] == i + 1);
  pthread_join(thread, NULL);
  close(server.uffd);
  munmap(server.memory, 8 * PAGE);
}

int main(int argc, char** argv) {
  coherent = argc > 1 && strcmp(argv[1], "coherent") == 0;
  device = open(coherent ? "/dev/hmm_dmirror2" : "/dev/hmm_dmirror0", O_RDWR);
  EXPECT(device >= 0);
  empty();
  page_of_zeros();
  freed();
  faults_back();
  partly_unmapped();
  moved();
  no_huge_page_to_be_had();
  written_by_a_child();
  read_of_what_the_program_serves();
  EXPECT(close(device) == 0);
  return failures == 0 ? 0 : 1;
}
