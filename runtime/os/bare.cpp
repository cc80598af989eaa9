// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/bare.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cerrno>

#include "runtime/os/userfaultfd_abi.hpp"

namespace uhmm::os::bare {
namespace {

// The kernel's own answer: a negative errno for a failure.
#if defined(__x86_64__)
long call(long number, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0, std::uint64_t d = 0,
          std::uint64_t e = 0, std::uint64_t f = 0) {
  register std::uint64_t r10 asm("r10") = d;
  register std::uint64_t r8 asm("r8") = e;
  register std::uint64_t r9 asm("r9") = f;
  long result = number;
  asm volatile("syscall" : "+a"(result) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
}
#else
#error "system calls of this architecture are not written down yet"
#endif

std::uint64_t word(const volatile void* pointer) {
  return reinterpret_cast<std::uint64_t>(const_cast<const void*>(pointer));
}
std::byte* pointer_or_null(long result) {
  return result < 0 && result > -4096 ? nullptr : reinterpret_cast<std::byte*>(result);
}
int error_of(long result) { return result < 0 ? static_cast<int>(-result) : 0; }

// Repeats a call that was interrupted.
template <typename Call>
long again(Call&& what) {
  long result = 0;
  do result = what();
  while (result == -EINTR);
  return result;
}

// The kernel writes how many bytes it did, or a negative errno, into a field of the request.
Progress progress_of(long result, std::int64_t field) {
  if (result == 0) return {static_cast<std::uint64_t>(field), 0};
  return {field > 0 ? static_cast<std::uint64_t>(field) : 0, error_of(result)};
}

struct uffdio_range to_range(ByteRange pages) {
  return {pages.begin.value, pages.bytes()};
}

long request(int fd, unsigned long number, void* argument) {
  return call(SYS_ioctl, static_cast<std::uint64_t>(fd), number, word(argument));
}

}  // namespace

int start_thread(void (*body)(void*), void* argument, void* stack_top) {
  constexpr std::uint64_t kFlags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  std::uint64_t all = ~std::uint64_t{0};
  std::uint64_t before = 0;
  (void)call(SYS_rt_sigprocmask, SIG_SETMASK, word(&all), word(&before), sizeof(all));
  register void (*body_register)(void*) asm("r12") = body;
  register void* argument_register asm("r13") = argument;
  register long ctid asm("r10") = 0;
  register long tls asm("r8") = 0;
  long ptid = 0;
  long result = SYS_clone;
  asm volatile(
      "syscall\n\t"
      "testq %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "movq %%r13, %%rdi\n\t"
      "callq *%%r12\n\t"
      "xorl %%edi, %%edi\n\t"
      "movl %[exit], %%eax\n\t"
      "syscall\n\t"
      "hlt\n"
      "1:"
      : "+a"(result)
      : "D"(kFlags), "S"(stack_top), "d"(ptid), "r"(ctid), "r"(tls), "r"(body_register),
        "r"(argument_register), [exit] "i"(SYS_exit)
      : "rcx", "r11", "memory", "cc");
  (void)call(SYS_rt_sigprocmask, SIG_SETMASK, word(&before), 0, sizeof(before));
  return error_of(result);
}

void close_all_but(std::span<const int> keep) {
  std::uint64_t from = 0;
  for (const int fd : keep) {
    if (fd < 0) continue;
    if (static_cast<std::uint64_t>(fd) > from) (void)call(SYS_close_range, from, static_cast<std::uint64_t>(fd) - 1, 0);
    from = static_cast<std::uint64_t>(fd) + 1;
  }
  (void)call(SYS_close_range, from, ~0u, 0);
}

std::byte* map_inherited(std::size_t bytes) {
  return pointer_or_null(call(SYS_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                              ~std::uint64_t{0}, 0));
}

std::byte* map_pages(std::size_t bytes) {
  std::byte* memory = map_inherited(bytes);
  if (memory != nullptr) set_inherited(memory, bytes, false);
  return memory;
}

void unmap_pages(std::byte* memory, std::size_t bytes) {
  if (memory != nullptr) (void)call(SYS_munmap, word(memory), bytes);
}

std::byte* map_shared(std::size_t bytes) {
  return pointer_or_null(call(SYS_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                              ~std::uint64_t{0}, 0));
}

void set_inherited(std::byte* memory, std::size_t bytes, bool inherited) {
  (void)call(SYS_madvise, word(memory), bytes, inherited ? MADV_DOFORK : MADV_DONTFORK);
}

void drop(VirtAddr page, std::size_t bytes) { (void)call(SYS_madvise, page.value, bytes, MADV_DONTNEED); }

bool is_present(VirtAddr page) {
  unsigned char present = 0;
  return call(SYS_mincore, page.value, kPageBytes, word(&present)) == 0 && (present & 1) != 0;
}

bool is_mapped(VirtAddr page) {
  unsigned char present = 0;
  return call(SYS_mincore, page.value, kPageBytes, word(&present)) == 0;
}

void close(int fd) {
  if (fd >= 0) (void)call(SYS_close, static_cast<std::uint64_t>(fd));
}

bool read_at(int fd, void* to, std::size_t bytes, std::uint64_t offset) {
  for (std::size_t done = 0; done < bytes;) {
    const long got = again([&] {
      return call(SYS_pread64, static_cast<std::uint64_t>(fd), word(to) + done, bytes - done, offset + done);
    });
    if (got <= 0) return false;
    done += static_cast<std::size_t>(got);
  }
  return true;
}

bool write_at(int fd, const void* from, std::size_t bytes, std::uint64_t offset) {
  for (std::size_t done = 0; done < bytes;) {
    const long put = again([&] {
      return call(SYS_pwrite64, static_cast<std::uint64_t>(fd), word(from) + done, bytes - done, offset + done);
    });
    if (put <= 0) return false;
    done += static_cast<std::size_t>(put);
  }
  return true;
}

void wait_readable(int fd) {
  struct pollfd entry {
    fd, POLLIN, 0
  };
  (void)call(SYS_poll, word(&entry), 1, ~std::uint64_t{0});
}

void futex_wait(const std::atomic<std::uint32_t>& value, std::uint32_t expected) {
  (void)call(SYS_futex, word(&value), FUTEX_WAIT_PRIVATE, expected, 0);
}

void futex_wake(const std::atomic<std::uint32_t>& value) {
  (void)call(SYS_futex, word(&value), FUTEX_WAKE_PRIVATE, ~0u >> 1);
}

bool write_own_memory(VirtAddr to, const void* from, std::size_t bytes) {
  static constexpr char kPath[] = "/proc/self/mem";
  const long fd =
      call(SYS_openat, static_cast<std::uint64_t>(AT_FDCWD), word(kPath), std::uint64_t{O_RDWR} | O_CLOEXEC);
  if (fd < 0) return false;
  const bool good = write_at(static_cast<int>(fd), from, bytes, to.value);
  close(static_cast<int>(fd));
  return good;
}

Message read_message(int uffd) {
  Message out;
  struct uffd_msg message {};
  const long got =
      again([&] { return call(SYS_read, static_cast<std::uint64_t>(uffd), word(&message), sizeof(message)); });
  if (got != static_cast<long>(sizeof(message))) return out;
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT: {
      const auto& fault = message.arg.pagefault;
      out.kind = Message::Kind::Fault;
      out.fault.address = VirtAddr{std::uint64_t{fault.address}}.page_floor();
      out.fault.is_write = (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
      out.fault.is_write_protect = (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
      out.fault.is_minor = (fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0;
      break;
    }
    case UFFD_EVENT_FORK:
      out.kind = Message::Kind::Fork;
      out.fork_fd = static_cast<int>(message.arg.fork.ufd);
      break;
    case UFFD_EVENT_REMAP: {
      const auto& move = message.arg.remap;
      out.kind = Message::Kind::Move;
      out.move = {VirtAddr{std::uint64_t{move.from}}, VirtAddr{std::uint64_t{move.to}}, move.len};
      break;
    }
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      out.kind = Message::Kind::Drop;
      out.dropped = {VirtAddr{std::uint64_t{message.arg.remove.start}},
                     VirtAddr{std::uint64_t{message.arg.remove.end}}};
      break;
    default: out.kind = Message::Kind::Other;
  }
  return out;
}

int register_missing(int uffd, ByteRange pages) {
  struct uffdio_register args {};
  args.range = to_range(pages);
  args.mode = UFFDIO_REGISTER_MODE_MISSING;
  return error_of(request(uffd, UFFDIO_REGISTER, &args));
}

int unregister(int uffd, ByteRange pages) {
  struct uffdio_range range = to_range(pages);
  return error_of(request(uffd, UFFDIO_UNREGISTER, &range));
}

Progress copy(int uffd, VirtAddr to, const void* from, std::uint64_t bytes) {
  struct uffdio_copy args {};
  args.dst = to.value;
  args.src = word(from);
  args.len = bytes;
  const long result = request(uffd, UFFDIO_COPY, &args);
  return progress_of(result, args.copy);
}

Progress zero(int uffd, VirtAddr to, std::uint64_t bytes) {
  struct uffdio_zeropage args {};
  args.range = {to.value, bytes};
  const long result = request(uffd, UFFDIO_ZEROPAGE, &args);
  return progress_of(result, args.zeropage);
}

Progress map_existing(int uffd, ByteRange pages) {
  struct uffdio_continue args {};
  args.range = to_range(pages);
  const long result = request(uffd, UFFDIO_CONTINUE, &args);
  return progress_of(result, args.mapped);
}

Progress poison(int uffd, ByteRange pages) {
  PoisonArgs args{};
  args.range = to_range(pages);
  const long result = request(uffd, kPoisonRequest, &args);
  return progress_of(result, args.updated);
}

int unprotect(int uffd, ByteRange pages) {
  struct uffdio_writeprotect args {};
  args.range = to_range(pages);
  return error_of(request(uffd, UFFDIO_WRITEPROTECT, &args));
}

void wake(int uffd, ByteRange pages) {
  struct uffdio_range range = to_range(pages);
  (void)request(uffd, UFFDIO_WAKE, &range);
}

bool process_gone(int uffd) {
  // Asked about the highest page there can be, where nothing is registered: a living process has none there.
  const VirtAddr top{kUserSpaceEnd - 2 * kPageBytes};
  return unprotect(uffd, {top, top + kPageBytes}) == ESRCH;
}

}  // namespace uhmm::os::bare
