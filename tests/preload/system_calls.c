// SPDX-License-Identifier: Apache-2.0
// Run by `uhmm run --dmirror` on every rung: system calls whose memory is on a device work as if it were not. A program
// that knows nothing of uhmm. `signal`, `user-mode` or `auto` is what it is run on, for the messages.
#include <dirent.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/preload/mirror_program.h"

enum { PAGES = 64, BYTES = PAGES * PAGE };

static char buffer[BYTES];
static char* memory;  // what the calls are about

static char value(size_t i) { return (char)(i * 7 + i / PAGE + 1); }
static void fill(void) {
  for (size_t i = 0; i < BYTES; ++i) memory[i] = value(i);
}
static int filled(const char* at, size_t from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (at[i] != value(from + i)) return 0;
  return 1;
}
// All of it: contents are on the device, and what was never touched is watched.
static void away(void) { EXPECT(command(TO_DEVICE, memory, PAGES, buffer, NULL) == 0); }
// The device has copies, and the CPU's are protected.
static void shared(void) {
  EXPECT(command(TO_SYSTEM, memory, PAGES, buffer, NULL) == 0);
  EXPECT(command(READ, memory, PAGES, buffer, NULL) == 0);
}
static char* page(size_t i) { return memory + i * PAGE; }
// Text there, over the edge of a page.
static char* text_at(size_t i, const char* words) {
  char* at = page(i) - 3;
  strcpy(at, words);
  return at;
}

static char* volatile nowhere = (char*)8;

static void files(void) {
  const int fd = memfd_create("uhmm-test", 0);
  fill();
  away();
  EXPECT(write(fd, memory, BYTES) == BYTES);
  away();
  EXPECT(pwrite(fd, memory + 100, 2 * PAGE, 100) == 2 * PAGE);
  memset(memory, 0, BYTES);
  away();
  EXPECT(lseek(fd, 0, SEEK_SET) == 0);
  EXPECT(read(fd, memory, BYTES) == BYTES);
  EXPECT(filled(memory, 0, BYTES));
  memset(memory, 0, BYTES);
  shared();
  EXPECT(pread(fd, memory, BYTES, 0) == BYTES);
  EXPECT(filled(memory, 0, BYTES));
  EXPECT(command(READ, memory, PAGES, buffer, NULL) == 0 && filled(buffer, 0, BYTES));
  // The list of parts is there too.
  struct iovec* parts = (struct iovec*)page(60);
  parts[0] = (struct iovec){page(2) + 5, 100};
  parts[1] = (struct iovec){page(5), 3 * PAGE};
  away();
  EXPECT(pwritev(fd, parts, 2, 0) == 100 + 3 * PAGE);
  EXPECT(lseek(fd, 0, SEEK_SET) == 0);
  memset(page(2), 0, 10 * PAGE);
  away();
  EXPECT(readv(fd, parts, 2) == 100 + 3 * PAGE);
  EXPECT(filled(page(2) + 5, 2 * PAGE + 5, 100) && filled(page(5), 5 * PAGE, 3 * PAGE));
  away();
  EXPECT(lseek(fd, 0, SEEK_SET) == 0);
  EXPECT(writev(fd, parts, 2) == 100 + 3 * PAGE);
  away();
  EXPECT(preadv(fd, parts, 2, 0) == 100 + 3 * PAGE);
  // Errors are what they were.
  EXPECT(read(fd, nowhere, 10) == -1 && errno == EFAULT);
  EXPECT(write(-1, memory, 10) == -1 && errno == EBADF);
  close(fd);
}

static void streams(void) {
  FILE* file = tmpfile();
  fill();
  away();
  EXPECT(fwrite(memory, 1, BYTES, file) == BYTES);
  EXPECT(fflush(file) == 0);
  rewind(file);
  memset(memory, 0, BYTES);
  away();
  EXPECT(fread(memory, 1, BYTES, file) == BYTES);
  EXPECT(filled(memory, 0, BYTES));
  fclose(file);
}

// What is read is gone from the kernel: none of it may be lost.
static void pipes_and_counters(void) {
  int ends[2];
  EXPECT(pipe(ends) == 0);
  fill();
  away();
  EXPECT(write(ends[1], memory + 10, 5000) == 5000);
  memset(page(8), 0, 4 * PAGE);
  away();
  EXPECT(read(ends[0], page(8) + 10, 3 * PAGE) == 5000);
  EXPECT(filled(page(8) + 10, 10, 5000));
  EXPECT(page(8)[10 + 5000] == 0);
  away();
  EXPECT(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
  EXPECT(read(ends[0], memory, 10) == -1 && errno == EAGAIN);
  struct iovec* parts = (struct iovec*)page(60);
  parts[0] = (struct iovec){page(20) + 5, 100};
  parts[1] = (struct iovec){page(25), 3 * PAGE};
  EXPECT(write(ends[1], buffer, 1000) == 1000);
  away();
  EXPECT(readv(ends[0], parts, 2) == 1000);
  EXPECT(memcmp(page(20) + 5, buffer, 100) == 0 && memcmp(page(25), buffer + 100, 900) == 0);
  close(ends[0]);
  close(ends[1]);

  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct itimerspec* time = (struct itimerspec*)page(1);
  struct itimerspec* before = (struct itimerspec*)page(3);
  memset(time, 0, sizeof(*time));
  time->it_value.tv_nsec = 1;
  away();
  EXPECT(timerfd_settime(timer, 0, time, before) == 0);
  EXPECT(before->it_value.tv_nsec == 0);
  struct pollfd* watched = (struct pollfd*)page(5);
  *watched = (struct pollfd){timer, POLLIN, 0};
  away();
  EXPECT(poll(watched, 1, 10000) == 1 && watched->revents == POLLIN);
  away();
  EXPECT(read(timer, page(7), 8) == 8);
  EXPECT(*(uint64_t*)page(7) == 1);
  close(timer);
}

static void datagrams(void) {
  int ends[2];
  EXPECT(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  fill();
  away();
  EXPECT(send(ends[0], memory, 3 * PAGE, 0) == 3 * PAGE);
  away();
  EXPECT(recv(ends[1], page(10), 4 * PAGE, 0) == 3 * PAGE);
  EXPECT(filled(page(10), 0, 3 * PAGE));
  EXPECT(filled(page(13), 13 * PAGE, PAGE));

  // A message with a descriptor, all of it there.
  struct msghdr* message = (struct msghdr*)page(30);
  struct iovec* parts = (struct iovec*)page(31);
  char* control = page(32);
  memset(message, 0, sizeof(*message));
  parts[0] = (struct iovec){page(2) + 5, 100};
  parts[1] = (struct iovec){page(5), PAGE};
  message->msg_iov = parts;
  message->msg_iovlen = 2;
  message->msg_control = control;
  message->msg_controllen = CMSG_SPACE(sizeof(int));
  struct cmsghdr* header = CMSG_FIRSTHDR(message);
  *header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(header), &ends[0], sizeof(int));
  away();
  EXPECT(sendmsg(ends[0], message, 0) == 100 + PAGE);
  parts[0] = (struct iovec){page(40) + 7, PAGE};
  parts[1] = (struct iovec){page(45), PAGE};
  memset(control, 0, PAGE);
  away();
  EXPECT(recvmsg(ends[1], message, 0) == 100 + PAGE);
  EXPECT(filled(page(40) + 7, 2 * PAGE + 5, 100) && memcmp(page(40) + 107, page(5), PAGE - 100) == 0);
  EXPECT(memcmp(page(45), page(6) - 100, 100) == 0);
  int passed = -1;
  header = CMSG_FIRSTHDR(message);
  EXPECT(header != NULL && header->cmsg_type == SCM_RIGHTS);
  if (header != NULL) memcpy(&passed, CMSG_DATA(header), sizeof(int));
  EXPECT(close(passed) == 0);

  // Several at once.
  struct mmsghdr* list = (struct mmsghdr*)page(33);
  memset(list, 0, 3 * sizeof(*list));
  struct iovec* one = (struct iovec*)page(34);
  for (int i = 0; i < 3; ++i) {
    one[i] = (struct iovec){page(50 + (size_t)i), 100};
    list[i].msg_hdr.msg_iov = &one[i];
    list[i].msg_hdr.msg_iovlen = 1;
    memset(page(50 + (size_t)i), 'a' + i, 100);
  }
  away();
  EXPECT(sendmmsg(ends[0], list, 3, 0) == 3);
  for (int i = 0; i < 3; ++i) {
    memset(page(50 + (size_t)i), 0, 100);
    list[i].msg_len = 0;
  }
  away();
  EXPECT(recvmmsg(ends[1], list, 3, 0, NULL) == 3);
  for (int i = 0; i < 3; ++i) EXPECT(list[i].msg_len == 100 && page(50 + (size_t)i)[99] == 'a' + i);
  close(ends[0]);
  close(ends[1]);
}

static void connections(void) {
  const int server = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in* address = (struct sockaddr_in*)page(1);
  socklen_t* length = (socklen_t*)page(3);
  memset(address, 0, sizeof(*address));
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  away();
  if (bind(server, (struct sockaddr*)address, sizeof(*address)) != 0) {
    EXPECT(errno != EFAULT);
    close(server);
    return;  // no network here
  }
  EXPECT(listen(server, 1) == 0);
  *length = sizeof(*address);
  away();
  EXPECT(getsockname(server, (struct sockaddr*)address, length) == 0);
  EXPECT(*length == sizeof(*address) && address->sin_port != 0);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  away();
  EXPECT(connect(client, (struct sockaddr*)address, sizeof(*address)) == 0);
  *length = sizeof(*address);
  away();
  const int accepted = accept(server, (struct sockaddr*)address, length);
  EXPECT(accepted >= 0 && *length == sizeof(*address) && address->sin_family == AF_INET);
  *length = sizeof(int);
  away();
  EXPECT(getsockopt(client, SOL_SOCKET, SO_TYPE, page(5), length) == 0);
  EXPECT(*(int*)page(5) == SOCK_STREAM && *length == sizeof(int));
  *(int*)page(5) = 1;
  away();
  EXPECT(setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, page(5), sizeof(int)) == 0);
  fill();
  away();
  EXPECT(send(client, memory, 4 * PAGE, 0) == 4 * PAGE);
  away();
  EXPECT(recv(accepted, page(8), 4 * PAGE, MSG_WAITALL) == 4 * PAGE);
  EXPECT(filled(page(8), 0, 4 * PAGE));
  close(accepted);
  close(client);
  close(server);
}

static void paths(void) {
  char* path = text_at(2, "/proc/self/exe");
  struct stat* found = (struct stat*)page(4);
  away();
  EXPECT(readlink(path, page(6), 200) > 0 && *page(6) == '/');
  away();
  EXPECT(access(path, R_OK) == 0);
  away();
  EXPECT(stat(path, found) == 0 && S_ISREG(found->st_mode));
  away();
  const int fd = open(path, O_RDONLY);
  EXPECT(fd >= 0);
  away();
  EXPECT(fstat(fd, found) == 0 && S_ISREG(found->st_mode));
  close(fd);
  path = text_at(2, "/proc/self");
  away();
  DIR* folder = opendir(path);
  EXPECT(folder != NULL);
  if (folder != NULL) closedir(folder);
  away();
  EXPECT(getcwd(page(8), PAGE) == page(8) && *page(8) == '/');
  away();
  EXPECT(uname((struct utsname*)page(9)) == 0);
}

static void waiting(void) {
  int* ends = (int*)page(1);
  away();
  EXPECT(pipe(ends) == 0);
  EXPECT(write(ends[1], "x", 1) == 1);
  fd_set* set = (fd_set*)page(3);
  FD_ZERO(set);
  FD_SET(ends[0], set);
  const int count = ends[0] + 1;
  away();
  EXPECT(select(count, set, NULL, NULL, NULL) == 1);
  EXPECT(FD_ISSET(ends[0], set));
  const int all = epoll_create1(0);
  struct epoll_event* event = (struct epoll_event*)page(5);
  *event = (struct epoll_event){EPOLLIN, {.u32 = 7}};
  const int end = ends[0];
  away();
  EXPECT(epoll_ctl(all, EPOLL_CTL_ADD, end, event) == 0);
  event->data.u32 = 0;
  away();
  EXPECT(epoll_wait(all, event, 4, -1) == 1 && event->data.u32 == 7);
  close(all);
  close(ends[0]);
  close(ends[1]);

  struct timespec* time = (struct timespec*)page(7);
  *time = (struct timespec){0, 1000};
  away();
  EXPECT(nanosleep(time, (struct timespec*)page(8)) == 0);
  away();
  EXPECT(clock_nanosleep(CLOCK_MONOTONIC, 0, time, NULL) == 0);
  uint32_t* word = (uint32_t*)page(10);
  *word = 1;
  away();
  EXPECT(syscall(SYS_futex, word, FUTEX_WAIT, 2, NULL, NULL, 0) == -1 && errno == EAGAIN);
  away();
  EXPECT(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 1, time, NULL, 0) == -1 && errno == ETIMEDOUT);
  away();
  EXPECT(getrandom(page(12) - 20, 3 * PAGE, 0) == 3 * PAGE);
}

static void signals(void) {
  sigset_t* set = (sigset_t*)page(1);
  sigset_t* before = (sigset_t*)page(3);
  sigset_t start;
  sigprocmask(SIG_SETMASK, NULL, &start);
  sigemptyset(set);
  sigaddset(set, SIGUSR1);
  away();
  EXPECT(sigprocmask(SIG_BLOCK, set, before) == 0);
  EXPECT(!sigismember(before, SIGUSR1));
  EXPECT(kill(getpid(), SIGUSR1) == 0);
  siginfo_t* info = (siginfo_t*)page(5);
  away();
  EXPECT(sigwaitinfo(set, info) == SIGUSR1 && info->si_pid == getpid());
  sigprocmask(SIG_SETMASK, &start, NULL);
}

static void children(void) {
  int* status = (int*)page(1);
  struct rusage* usage = (struct rusage*)page(3);
  pid_t child = fork();
  if (child == 0) _exit(7);
  away();
  EXPECT(waitpid(child, status, 0) == child && WIFEXITED(*status) && WEXITSTATUS(*status) == 7);
  child = fork();
  if (child == 0) _exit(8);
  away();
  EXPECT(wait4(child, status, 0, usage) == child && WEXITSTATUS(*status) == 8);
  child = fork();
  if (child == 0) _exit(9);
  away();
  siginfo_t* info = (siginfo_t*)page(5);
  EXPECT(waitid(P_PID, (id_t)child, info, WEXITED) == 0 && info->si_status == 9);

  // A program whose name, arguments and environment are there; one argument is longer than a page.
  char** words = (char**)page(10);
  words[0] = text_at(12, "sh");
  words[1] = text_at(14, "-c");
  words[2] = text_at(16, "test ${#1} = 9000 && test \"$UHMM_THERE\" = 1 && exit 5");
  words[3] = text_at(18, "name");
  words[4] = page(20) - 3;
  memset(words[4], 'x', 9000);
  words[4][9000] = '\0';
  words[5] = NULL;
  char** environment = (char**)page(30);
  environment[0] = text_at(32, "UHMM_THERE=1");
  environment[1] = NULL;
  char* path = text_at(34, "/bin/sh");
  away();
  EXPECT(posix_spawn(&child, path, NULL, NULL, words, environment) == 0);
  EXPECT(waitpid(child, status, 0) == child && WIFEXITED(*status) && WEXITSTATUS(*status) == 5);
  away();
  child = vfork();
  if (child == 0) {
    execve(path, words, environment);
    _exit(1);
  }
  EXPECT(waitpid(child, status, 0) == child && WIFEXITED(*status) && WEXITSTATUS(*status) == 5);
}

static volatile sig_atomic_t signalled;
static char *stack_begin, *stack_end;
static void on_signal(int number) {
  (void)number;
  char here;
  signalled = &here >= stack_begin && &here < stack_end ? 1 : 2;
}

static void alternate_stack(void) {
  stack_begin = page(8);
  stack_end = page(40);
  stack_t* stack = (stack_t*)page(1);
  *stack = (stack_t){.ss_sp = stack_begin, .ss_flags = 0, .ss_size = (size_t)(stack_end - stack_begin)};
  stack_t* before = (stack_t*)page(3);
  away();
  EXPECT(sigaltstack(stack, before) == 0);
  EXPECT((before->ss_flags & SS_DISABLE) != 0);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
  EXPECT(sigaction(SIGUSR1, &action, NULL) == 0);
  for (int i = 0; i < 5; ++i) {
    (void)command(TO_DEVICE, memory, PAGES, buffer, NULL);
    signalled = 0;
    raise(SIGUSR1);
    EXPECT(signalled == 1);
  }
  const stack_t none = {.ss_flags = SS_DISABLE};
  EXPECT(sigaltstack(&none, NULL) == 0);
  fill();
  away();  // it may go again
  EXPECT(filled(memory, 0, BYTES));
}

// A device takes the memory again and again, while it is in use.
static volatile int stop_thief;
static void* thief(void* data) {
  while (!stop_thief) (void)command(TO_DEVICE, memory, PAGES, data, NULL);
  return NULL;
}

static void while_a_device_takes_it(void) {
  static char taken[BYTES];
  int ends[2];
  EXPECT(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  const int file = memfd_create("uhmm-test", 0);
  char* copy = malloc(BYTES);
  for (size_t i = 0; i < BYTES; ++i) copy[i] = value(i);
  EXPECT(write(file, copy, BYTES) == BYTES);
  pthread_t thread;
  EXPECT(pthread_create(&thread, NULL, thief, taken) == 0);
  for (int round = 0; round < 200; ++round) {
    uint32_t* number = (uint32_t*)page(2);
    number[0] = (uint32_t)round;
    const pid_t child = round % 20 == 0 ? fork() : 0;
    if (child == 0 && round % 20 == 0) _exit(3);
    EXPECT(send(ends[0], page(2), 2 * PAGE, 0) == 2 * PAGE);
    number[0] = 0;
    // None is lost: the next one would come instead, or none at all.
    EXPECT(recv(ends[1], page(2), 8 * PAGE, 0) == 2 * PAGE);
    EXPECT(number[0] == (uint32_t)round);
    memset(page(20), 0, 40 * PAGE);
    EXPECT(pread(file, page(20), 40 * PAGE, 100) == 40 * PAGE);
    EXPECT(filled(page(20), 100, 40 * PAGE));
    if (child != 0) EXPECT(waitpid(child, (int*)page(1), 0) == child && WEXITSTATUS(*(int*)page(1)) == 3);
  }
  stop_thief = 1;
  pthread_join(thread, NULL);
  free(copy);
  close(file);
  close(ends[0]);
  close(ends[1]);
}

int main(void) {
  device = open("/dev/hmm_dmirror0", O_RDWR);
  if (device < 0) {
    perror("/dev/hmm_dmirror0");
    return 1;
  }
  memory = map(BYTES);
  files();
  streams();
  pipes_and_counters();
  datagrams();
  connections();
  paths();
  waiting();
  signals();
  children();
  alternate_stack();
  while_a_device_takes_it();
  return failures == 0 ? 0 : 1;
}
