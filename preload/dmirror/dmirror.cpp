// SPDX-License-Identifier: Apache-2.0
#include "preload/dmirror/dmirror.hpp"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <mutex>

#include "preload/dmirror/opens.hpp"
#include "preload/dmirror/pins.hpp"
#include "preload/managed.hpp"
#include "preload/real.hpp"
#include "runtime/os/memory.hpp"

namespace uhmm::preload::dmirror {
namespace {

constexpr const char* kPrefix = "/dev/hmm_dmirror";
constexpr const char* kPinsPath = "/sys/kernel/debug/gup_test";
constexpr unsigned kUnits = 4;
constexpr unsigned kFirstCoherent = 2;

bool enabled() {
  static const bool on = [] {
    const char* asked = getenv("UHMM_DMIRROR");
    return asked != nullptr && strcmp(asked, "1") == 0;
  }();
  return on;
}

// ---------------------------------------------------------------------------------------- devices

// The devices of this process, made by the first open of each. A forked child begins anew.
struct Units {
  std::mutex mutex;
  pid_t process = -1;
  std::array<uhmm_processor, kUnits> device{};  // 0: not made yet
};
Units& units() {
  static Forever<Units> only;
  return *only;
}

int errno_of(uhmm_status status) {
  fprintf(stderr, "uhmm: %s: %s\n", uhmm_status_text(status), uhmm_error_detail());
  return status == UHMM_ERR_NO_MEMORY ? ENOMEM : status == UHMM_ERR_PERMISSION ? EPERM : ENODEV;
}

// The runtime, with a device of this unit's kind as the first if it has to be started. 0 or an errno.
int start_runtime(Units& all, unsigned unit) {
  uhmm_config config = UHMM_CONFIG_INIT;
  if (unit >= kFirstCoherent) config.flags |= UHMM_CONFIG_COHERENT;
  config.soft_devices = 1;
  config.flags |= UHMM_CONFIG_DEVICE_ENTRIES;  // the program looks at its page table
  const uhmm_status status = uhmm_init(&config);
  if (status == UHMM_ERR_ALREADY) return 0;  // by the program itself
  if (status != UHMM_OK) return errno_of(status);
  std::uint32_t count = 0;
  return uhmm_device_list(&all.device[unit], 1, &count) == UHMM_OK ? 0 : ENODEV;
}

// 0 or an errno.
int device_of(unsigned unit, uhmm_processor* device) {
  Units& all = units();
  const std::scoped_lock lock(all.mutex);
  if (all.process != getpid()) {
    all.device = {};
    if (const int error = start_runtime(all, unit); error != 0) return error;
    all.process = getpid();
  }
  if (all.device[unit] == 0) {
    uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
    desc.flags = unit >= kFirstCoherent ? UHMM_DEVICE_COHERENT : 0;
    if (const uhmm_status status = uhmm_device_add(&desc, &all.device[unit]); status != UHMM_OK)
      return errno_of(status);
  }
  *device = all.device[unit];
  return 0;
}

// --------------------------------------------------------------------------------------- commands

constexpr unsigned long kFirstRequest = _IOWR('H', 0, Command);

bool valid(const Command& command) {
  return command.addr % kPageBytes == 0 && command.npages < (std::uint64_t{1} << (64 - kPageShift)) &&
         command.addr < command.addr + (command.npages << kPageShift);
}

// As much of a command as its data has room for at once. 0 or an errno.
int run_part(int fd, const Open& open, Number number, Command& part) {
  const std::size_t in = bytes_in(number, part);
  const std::size_t out = bytes_out(number, part);
  const Buffer data(std::max<std::size_t>({in, out, 1}));
  if (data.data() == nullptr) return ENOMEM;
  int error = in != 0 ? copy_from_program(data.data(), part.ptr, in) : 0;
  if (error != 0) return error;
  error =
      open.mirror != nullptr ? open.mirror->run(number, part, data.data()) : ask_opener(fd, number, part, data.data());
  if (error == 0 && out != 0) error = copy_to_program(part.ptr, data.data(), out);
  return error;
}

// Piece by piece, so that a count that nobody has the memory for ends at the first page that is not there.
int run_all(int fd, const Open& open, Number number, Command& command) {
  const std::uint64_t step = kMostPagesAtOnce;
  if (!goes_by_pages(number) || command.npages <= step) return run_part(fd, open, number, command);
  Command one = command;
  one.npages = 1;
  const std::uint64_t data_bytes = std::max(bytes_in(number, one), bytes_out(number, one));
  Command sum = command;
  sum.cpages = sum.faults = 0;
  for (std::uint64_t done = 0; done < command.npages; done += step) {
    Command part = command;
    part.addr += done << kPageShift;
    part.ptr += done * data_bytes;
    part.npages = std::min(step, command.npages - done);
    if (const int error = run_part(fd, open, number, part); error != 0) return error;
    sum.cpages += part.cpages;
    sum.faults += part.faults;
  }
  command = sum;
  return 0;
}

int run(int fd, const Open& open, unsigned long request, void* argument) {
  Command command{};
  const auto address = reinterpret_cast<std::uint64_t>(argument);
  if (const int error = copy_from_program(&command, address, sizeof(command)); error != 0) return error;
  if (!valid(command)) return EINVAL;
  const unsigned long number_bits = request - kFirstRequest;
  if (number_bits >= static_cast<unsigned long>(Number::kCount)) return EINVAL;
  const auto number = static_cast<Number>(number_bits);
  if (const int error = run_all(fd, open, number, command); error != 0) return error;
  return copy_to_program(address, &command, sizeof(command));
}

// A device's memory for its own descriptor: pages that are there, that the CPU may read, and that never move.
void* map_device(void* address, std::size_t length, int protection, int flags) {
  const int file = memfd_create(os::kDeviceMemoryName, MFD_CLOEXEC);
  if (file < 0) return MAP_FAILED;
  void* memory = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(length)) == 0 && fallocate(file, 0, 0, static_cast<off_t>(length)) == 0)
    memory = real::mmap(address, length, protection, flags, file, 0);
  const int error = errno;
  (void)real::close(file);
  errno = error;
  if (memory == MAP_FAILED) return memory;
  for (std::size_t at = 0; (protection & PROT_READ) != 0 && at < length; at += kPageBytes)
    (void)*static_cast<const volatile std::byte*>(static_cast<std::byte*>(memory) + at);
  return memory;
}

std::optional<int> open_device(const char* path, int flags) {
  const bool close_on_exec = (flags & O_CLOEXEC) != 0;
  if (strcmp(path, kPinsPath) == 0) {
    // The runtime first: its fork handlers have to be there before those of opens.
    uhmm_processor ignored = 0;
    errno = device_of(0, &ignored);
    return errno == 0 ? make_open(nullptr, close_on_exec) : -1;
  }
  const std::size_t length = strlen(kPrefix);
  if (strncmp(path, kPrefix, length) != 0 || path[length] < '0' || path[length] >= '0' + static_cast<int>(kUnits) ||
      path[length + 1] != '\0')
    return std::nullopt;
  const auto unit = static_cast<unsigned>(path[length] - '0');
  uhmm_processor device = 0;
  if (const int error = device_of(unit, &device); error != 0) {
    errno = error;
    return -1;
  }
  return make_open(std::allocate_shared<Mirror>(OwnAllocator<Mirror>(), device, unit >= kFirstCoherent), close_on_exec);
}

std::optional<int> control_device(int fd, unsigned long request, void* argument) {
  const std::optional<Open> open = find_open(fd);
  if (!open) return std::nullopt;
  request = static_cast<std::uint32_t>(request);  // all that the kernel looks at; programs sign-extend it
  if (open->pins) return control_pins(request, argument);
  const int error = run(fd, *open, request, argument);
  errno = error;
  return error == 0 ? 0 : -1;
}

}  // namespace

void lock_units_for_fork() { units().mutex.lock(); }
void unlock_units_after_fork() { units().mutex.unlock(); }

std::optional<int> open(const char* path, int flags) {
  if (!enabled() || path == nullptr) return std::nullopt;
  return without_exceptions([&] { return open_device(path, flags); }, -1);
}

std::optional<int> control(int fd, unsigned long request, void* argument) {
  if (!enabled()) return std::nullopt;
  return without_exceptions([&] { return control_device(fd, request, argument); }, -1);
}

void* map(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 && (flags & MAP_ANONYMOUS) == 0 && enabled() && called_by_program() && find_open(fd).has_value())
    return map_device(address, length, protection, flags);
  return real::mmap(address, length, protection, flags, fd, offset);
}

int close(int fd) {
  const bool ours = enabled() && find_open(fd).has_value();
  const int result = real::close(fd);
  const int error = errno;
  if (ours && result == 0) settle_closes();
  errno = error;
  return result;
}

}  // namespace uhmm::preload::dmirror
