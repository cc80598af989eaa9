// SPDX-License-Identifier: Apache-2.0
#include "preload/dmirror/pins.hpp"

#include <errno.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>

#include "preload/dmirror/memory_view.hpp"
#include "preload/managed.hpp"
#include "runtime/os/pins.hpp"

namespace uhmm::preload::dmirror {
namespace {

// struct gup_test.
struct Request {
  std::uint64_t get_microseconds;
  std::uint64_t put_microseconds;
  std::uint64_t addr;
  std::uint64_t size;
  std::uint32_t pages_per_call;
  std::uint32_t gup_flags;
  std::uint32_t test_flags;
  std::uint32_t which_pages[8];
};
constexpr unsigned long kGetFast = _IOWR('g', 1, Request), kPinFast = _IOWR('g', 2, Request),
                        kPinLongTerm = _IOWR('g', 3, Request), kGet = _IOWR('g', 4, Request),
                        kPin = _IOWR('g', 5, Request);
constexpr std::uint32_t kLongTerm = 0x10000;  // FOLL_LONGTERM

int take(ByteRange pages, bool long_term, os::PinTimes* times) {
  // Memory of a device can't be pinned for long: it comes home first.
  for (const ByteRange& part : managed_parts(long_term ? pages : ByteRange{}))
    (void)uhmm_migrate(part.begin.pointer(), part.bytes(), UHMM_CPU, nullptr);
  int error = 0;
  (void)retried(
      -1,
      [&] {
        error = long_term ? os::pin_pages(pages, times) : os::reference_pages(pages, times);
        errno = error;
        return error == 0 ? 0 : -1;
      },
      [&] { return make_ready({out(pages.begin.pointer(), pages.bytes())}); });
  return error;
}

int run(unsigned long request_number, Request& request) {
  const bool long_term = request_number == kPinLongTerm ||
                         (request_number != kGet && request_number != kGetFast && (request.gup_flags & kLongTerm) != 0);
  if (request.addr % kPageBytes != 0 || request.size == 0 || request.addr + request.size < request.addr ||
      request.pages_per_call == 0)
    return EINVAL;
  os::PinTimes times;
  const ByteRange all = ByteRange{VirtAddr{request.addr}, VirtAddr{request.addr + request.size}}.to_pages();
  // No more than a pipe or a buffer holds.
  const std::uint64_t step = std::min<std::uint64_t>(request.pages_per_call, 16) * kPageBytes;
  for (VirtAddr at = all.begin; at < all.end; at = at + step) {
    const ByteRange part = all.intersect({at, at + step});
    if (const int error = take(part, long_term, &times); error != 0) return error;
  }
  request.get_microseconds = times.get_ns / 1000;
  request.put_microseconds = times.put_ns / 1000;
  return 0;
}

}  // namespace

int control_pins(unsigned long request_number, void* argument) {
  constexpr std::array kKnown = {kGetFast, kPinFast, kPinLongTerm, kGet, kPin};
  Request request{};
  const auto address = reinterpret_cast<std::uint64_t>(argument);
  int error = std::find(kKnown.begin(), kKnown.end(), request_number) == kKnown.end() ? EINVAL : 0;
  if (error == 0) error = copy_from_program(&request, address, sizeof(request));
  if (error == 0) error = run(request_number, request);
  if (error == 0) error = copy_to_program(address, &request, sizeof(request));
  errno = error;
  return error == 0 ? 0 : -1;
}

}  // namespace uhmm::preload::dmirror
