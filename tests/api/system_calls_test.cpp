// SPDX-License-Identifier: Apache-2.0
// System calls whose buffers are on a device: the kernel's own accesses bring them home.
#include <fcntl.h>
#include <liburing.h>
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "runtime/os/userfaultfd.hpp"
#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class SystemCalls : public RuntimeTest, public testing::WithParamInterface<Mode> {
 protected:
  bool starts_itself() const override { return false; }
  void SetUp() override {
    start_with([](uhmm_config& config) { config.flags |= GetParam().flags; });
    auto probe = os::Userfaultfd::open();
    if (!probe.ok() || !probe->features().kernel_mode)
      GTEST_SKIP() << "faults of the kernel itself are not served here";
  }
  void to_device(Memory& memory) { UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr)); }
};

TEST_P(SystemCalls, ReadAndWriteFiles) {
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  const int fd = memfd_create("uhmm-test", 0);
  to_device(memory);
  ASSERT_EQ(write(fd, memory.data(), memory.bytes()), static_cast<ssize_t>(memory.bytes()));
  std::memset(memory.data(), 0, memory.bytes());
  to_device(memory);
  ASSERT_EQ(pread(fd, memory.data(), memory.bytes(), 0), static_cast<ssize_t>(memory.bytes()));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
  close(fd);
}

TEST_P(SystemCalls, Pipes) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  to_device(memory);
  ASSERT_EQ(write(ends[1], memory.data() + 10, 5000), 5000);
  to_device(memory);
  ASSERT_EQ(read(ends[0], memory.data() + 4 * kPage + 10, 5000), 5000);
  EXPECT_EQ(std::memcmp(memory.data() + 10, memory.data() + 4 * kPage + 10, 5000), 0);
  close(ends[0]);
  close(ends[1]);
}

TEST_P(SystemCalls, ScatterAndGather) {
  Memory memory(32 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  const int fd = memfd_create("uhmm-test", 0);
  to_device(memory);
  iovec parts[] = {{memory.data() + 5, 100}, {memory.page(3), 2 * kPage}, {memory.page(9) - 50, 100}};
  ASSERT_EQ(writev(fd, parts, 3), static_cast<ssize_t>(200 + 2 * kPage));
  to_device(memory);
  iovec into[] = {{memory.page(20) + 5, 100}, {memory.page(22), 2 * kPage}, {memory.page(26) - 50, 100}};
  ASSERT_EQ(preadv(fd, into, 3, 0), static_cast<ssize_t>(200 + 2 * kPage));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(std::memcmp(parts[i].iov_base, into[i].iov_base, into[i].iov_len), 0) << i;
  close(fd);
}

TEST_P(SystemCalls, SharedMemoryToo) {
  Memory memory(16 * kPage, true, MAP_SHARED | MAP_ANONYMOUS);
  fill(memory.data(), memory.bytes(), 1);
  const int fd = memfd_create("uhmm-test", 0);
  to_device(memory);
  ASSERT_EQ(write(fd, memory.data(), memory.bytes()), static_cast<ssize_t>(memory.bytes()));
  to_device(memory);
  ASSERT_EQ(pread(fd, memory.data() + 1, memory.bytes() - 1, 1), static_cast<ssize_t>(memory.bytes() - 1));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  close(fd);
}

TEST_P(SystemCalls, Sockets) {
  Memory memory(32 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  iovec out[] = {{memory.data() + 9, 3000}, {memory.page(5), 2 * kPage}};
  iovec in[] = {{memory.page(16) + 7, 5000}, {memory.page(24), 6192}};
  // The message's own description is on the device too.
  auto* message = new (memory.page(31)) msghdr{};
  auto* parts = new (memory.page(31) + 512) iovec[2]{out[0], out[1]};
  message->msg_iov = parts;
  message->msg_iovlen = 2;
  to_device(memory);
  ASSERT_EQ(sendmsg(ends[0], message, 0), static_cast<ssize_t>(3000 + 2 * kPage));
  parts[0] = in[0];
  parts[1] = in[1];
  to_device(memory);
  ASSERT_EQ(recvmsg(ends[1], message, MSG_WAITALL), static_cast<ssize_t>(3000 + 2 * kPage));
  std::vector<std::byte> sent(memory.data() + 9, memory.data() + 3009),
      got(memory.page(16) + 7, memory.page(16) + 5007);
  sent.insert(sent.end(), memory.page(5), memory.page(7));
  got.insert(got.end(), memory.page(24), memory.page(24) + 6192);
  EXPECT_EQ(sent, got);
  close(ends[0]);
  close(ends[1]);
}

TEST_P(SystemCalls, DirectFileIo) {
  const int fd = open(".", O_TMPFILE | O_RDWR | O_DIRECT, 0600);
  if (fd < 0) GTEST_SKIP() << "no O_DIRECT in this directory's file system";
  Memory memory(64 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  to_device(memory);
  ASSERT_EQ(pwrite(fd, memory.data(), memory.bytes(), 0), static_cast<ssize_t>(memory.bytes()));
  std::memset(memory.data(), 0, memory.bytes());
  to_device(memory);
  ASSERT_EQ(pread(fd, memory.data(), memory.bytes(), 0), static_cast<ssize_t>(memory.bytes()));
  to_device(memory);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  close(fd);
}

TEST_P(SystemCalls, RegisteredBuffersOfAnIoUring) {
  if ((GetParam().flags & UHMM_CONFIG_NO_MOVE) != 0) GTEST_SKIP() << "copying can't tell what is pinned: a known limit";
  if ((GetParam().flags & UHMM_CONFIG_COHERENT) != 0)
    GTEST_SKIP() << "what is pinned in place of a coherent device's memory is the device's: a known limit";
  io_uring ring;
  if (io_uring_queue_init(4, &ring, 0) != 0) GTEST_SKIP() << "no io_uring here";
  Memory memory(16 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  const int fd = memfd_create("uhmm-test", 0);
  to_device(memory);
  const iovec buffer{memory.data(), 8 * kPage};
  ASSERT_EQ(io_uring_register_buffers(&ring, &buffer, 1), 0);
  EXPECT_EQ(pages_in_state(memory.data(), 8 * kPage, UHMM_PAGE_SYSTEM), 8u) << "pinned in system memory";
  const auto transfer = [&](bool write) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring);
    if (write)
      io_uring_prep_write_fixed(entry, fd, memory.data(), 8 * kPage, 0, 0);
    else
      io_uring_prep_read_fixed(entry, fd, memory.data(), 8 * kPage, 0, 0);
    EXPECT_EQ(io_uring_submit_and_wait(&ring, 1), 1);
    io_uring_cqe* done = nullptr;
    EXPECT_EQ(io_uring_peek_cqe(&ring, &done), 0);
    const int result = done->res;
    io_uring_cqe_seen(&ring, done);
    return result;
  };
  (void)uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr);  // what is pinned stays
  EXPECT_EQ(transfer(true), static_cast<int>(8 * kPage));
  std::memset(memory.data(), 0, 8 * kPage);
  (void)uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr);
  EXPECT_EQ(transfer(false), static_cast<int>(8 * kPage));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  ASSERT_EQ(io_uring_unregister_buffers(&ring), 0);
  to_device(memory);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 16u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  io_uring_queue_exit(&ring);
  close(fd);
}

long futex(std::atomic<std::uint32_t>* word, int operation, std::uint32_t value) {
  return syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

TEST_P(SystemCalls, Futexes) {
  for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
    const int only_here = sharing == MAP_PRIVATE ? FUTEX_PRIVATE_FLAG : 0;
    Memory memory(2 * kPage, true, sharing | MAP_ANONYMOUS);
    auto* word = memory.as<std::atomic<std::uint32_t>>();
    word->store(1);
    to_device(memory);
    EXPECT_EQ(futex(word, FUTEX_WAIT | only_here, 2), -1);
    EXPECT_EQ(errno, EAGAIN);
    // The word leaves while somebody sleeps on it.
    std::atomic<bool> awake{false};
    std::thread sleeper([&] {
      while (word->load() == 1) futex(word, FUTEX_WAIT | only_here, 1);
      awake = true;
    });
    for (int round = 0; round < 10; ++round) {
      to_device(memory);
      usleep(500);
      EXPECT_FALSE(awake);
    }
    to_device(memory);
    word->store(2);
    to_device(memory);
    while (!awake) {
      futex(word, FUTEX_WAKE | only_here, 1);
      std::this_thread::yield();
    }
    sleeper.join();
  }
}

TEST_P(SystemCalls, ReadAndWrittenByAnotherProcess) {
  Memory memory(16 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  int go[2], done[2];
  ASSERT_EQ(pipe(go), 0);
  ASSERT_EQ(pipe(done), 0);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    (void)!read(go[0], &byte, 1);
    static std::byte copy[16 * kPage];
    iovec here{copy, sizeof(copy)}, there{memory.data(), sizeof(copy)};
    if (process_vm_readv(parent, &here, 1, &there, 1, 0) != static_cast<ssize_t>(sizeof(copy)))
      _exit(errno == EPERM || errno == ENOSYS ? 77 : 1);
    if (first_wrong(copy, sizeof(copy), 1) != sizeof(copy)) _exit(2);
    (void)!write(done[1], "", 1);
    (void)!read(go[0], &byte, 1);
    fill(copy, sizeof(copy), 2);
    _exit(process_vm_writev(parent, &here, 1, &there, 1, 0) == static_cast<ssize_t>(sizeof(copy)) ? 0 : 3);
  }
  close(done[1]);
  (void)prctl(PR_SET_PTRACER, child, 0, 0, 0);
  to_device(memory);
  ASSERT_EQ(write(go[1], "", 1), 1);
  char byte = 0;
  if (read(done[0], &byte, 1) == 1) {
    to_device(memory);
    ASSERT_EQ(write(go[1], "", 1), 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  for (const int fd : {go[0], go[1], done[0]}) close(fd);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "one process may not read another here";
  EXPECT_EQ(status, 0);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
}

TEST_P(SystemCalls, SplicedIntoAPipe) {
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  to_device(memory);
  const iovec part{memory.data() + 100, 3 * kPage};
  ASSERT_EQ(vmsplice(ends[1], &part, 1, 0), static_cast<ssize_t>(3 * kPage));
  std::vector<std::byte> got(3 * kPage);
  for (std::size_t all = 0; all < got.size();) {
    const ssize_t some = read(ends[0], got.data() + all, got.size() - all);
    ASSERT_GT(some, 0);
    all += static_cast<std::size_t>(some);
  }
  EXPECT_EQ(std::memcmp(got.data(), memory.data() + 100, got.size()), 0);
  close(ends[0]);
  close(ends[1]);
}

TEST_P(SystemCalls, SmallAnswersAndPaths) {
  Memory memory(4 * kPage);
  to_device(memory);
  ASSERT_EQ(getrandom(memory.data() + kPage - 20, 40, 0), 40);
  EXPECT_NE(std::count(memory.data() + kPage - 20, memory.data() + kPage + 20, std::byte{0}), 40);
  char* path = reinterpret_cast<char*>(memory.page(2)) - 5;  // over the edge of a page
  std::strcpy(path, "/proc/self/exe");
  to_device(memory);
  char* target = reinterpret_cast<char*>(memory.page(3));
  EXPECT_GT(readlink(path, target, 200), 0);
  to_device(memory);
  EXPECT_EQ(access(path, R_OK), 0);
  EXPECT_EQ(*target, '/');
}

volatile sig_atomic_t signalled_on = 0;
const Memory* stack_memory = nullptr;

TEST_P(SystemCalls, SignalsOnAnAlternateStackThere) {
  Memory memory(64 * kPage);
  const stack_t stack{memory.data(), 0, memory.bytes()};
  stack_t before{};
  ASSERT_EQ(sigaltstack(&stack, &before), 0);
  struct sigaction action {};
  struct sigaction old {};
  stack_memory = &memory;
  action.sa_handler = [](int) {
    const volatile std::byte local{};
    const auto* at = const_cast<const std::byte*>(&local);
    signalled_on = at >= stack_memory->data() && at < stack_memory->data() + stack_memory->bytes() ? 1 : 2;
  };
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR1, &action, &old);
  for (int round = 0; round < 5; ++round) {
    to_device(memory);
    signalled_on = 0;
    raise(SIGUSR1);
    EXPECT_EQ(signalled_on, 1);
  }
  sigaction(SIGUSR1, &old, nullptr);
  sigaltstack(&before, nullptr);
}

INSTANTIATE_TEST_SUITE_P(Modes, SystemCalls,
                         testing::Values(Mode{"Move", 0}, Mode{"Copy", UHMM_CONFIG_NO_MOVE},
                                         Mode{"Coherent", UHMM_CONFIG_COHERENT}),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace uhmm::test
