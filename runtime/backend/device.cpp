// SPDX-License-Identifier: Apache-2.0
// The checked public calls: arguments, failure injection, then the hook.
#include "runtime/backend/device.hpp"

#include "runtime/base/check.hpp"
#include "runtime/base/inject.hpp"

namespace uhmm::backend {
namespace {

[[maybe_unused]] bool page_aligned(ByteRange range) {
  return ((range.begin.value | range.end.value) & (kPageBytes - 1)) == 0 && range.begin < range.end &&
         range.end.value <= kUserSpaceEnd;
}

[[maybe_unused]] bool inside(const Window& window, ByteRange pages) {
  return page_aligned(pages) && window.range.begin <= pages.begin && pages.end <= window.range.end;
}

Status injected(inject::Point point) { return fail(UHMM_ERR_SYSTEM, "injected failure: %s", inject::name(point)); }

}  // namespace

#define UHMM_MAY_FAIL(point)                                                              \
  do {                                                                                    \
    if (inject::should_fail(inject::Point::point)) return injected(inject::Point::point); \
  } while (0)

Status Device::open() {
  UHMM_MAY_FAIL(DeviceSpawn);
  return do_open();
}

void Device::close() { do_close(); }

Status Device::attach(std::span<Window> windows) {
  for ([[maybe_unused]] const Window& window : windows) {
    UHMM_CHECK(page_aligned(window.range), "a window is whole pages of user space");
    UHMM_CHECK(window.host == nullptr, "a window is attached once");
  }
  UHMM_MAY_FAIL(DeviceReserve);
  UHMM_MAY_FAIL(DeviceAttach);
  if (windows.empty()) return {};
  return do_attach(windows);
}

void Device::detach(const Window& window, ByteRange owned) {
  UHMM_CHECK(owned.empty() || inside(window, owned), "detached pages belong to the window");
  do_detach(window, owned);
}

Status Device::reserve_split() {
  UHMM_MAY_FAIL(DeviceAttach);
  return do_reserve_split();
}

Window Device::split(Window& window, VirtAddr at) {
  UHMM_CHECK(window.range.begin < at && at < window.range.end && at.page_floor() == at,
             "a window is split at a page inside it");
  const Window low{{window.range.begin, at}, window.host};
  const Window high{{at, window.range.end}, window.host == nullptr ? nullptr : window.host + (at - window.range.begin)};
  do_split(window, low, high);
  window = low;
  return high;
}

Status Device::copy_in(const Window& window, ByteRange pages, const std::byte* from) {
  UHMM_CHECK(inside(window, pages), "copied pages belong to the window");
  UHMM_CHECK(from != nullptr, "a copy has a source");
  UHMM_MAY_FAIL(DeviceCopyIn);
  return do_copy_in(window, pages, from);
}

Status Device::copy_out(const Window& window, ByteRange pages, std::byte* to) {
  UHMM_CHECK(inside(window, pages), "copied pages belong to the window");
  UHMM_CHECK(to != nullptr, "a copy has a target");
  UHMM_MAY_FAIL(DeviceCopyOut);
  return do_copy_out(window, pages, to);
}

Status Device::zero(const Window& window, ByteRange pages) {
  UHMM_CHECK(inside(window, pages), "zeroed pages belong to the window");
  UHMM_MAY_FAIL(DeviceZero);
  return do_zero(window, pages);
}

Status Device::free_memory(const Window& window, ByteRange pages) {
  UHMM_CHECK(inside(window, pages), "freed pages belong to the window");
  UHMM_MAY_FAIL(DeviceFree);
  return do_free_memory(window, pages);
}

void Device::charge_link(std::uint64_t bytes) { do_charge_link(bytes); }

Status Device::map(ByteRange pages, MapAccess access) {
  UHMM_CHECK(page_aligned(pages), "whole pages are mapped");
  UHMM_MAY_FAIL(DeviceMap);
  return do_map(pages, access);
}

Status Device::protect(ByteRange pages, MapAccess access) {
  UHMM_CHECK(page_aligned(pages), "whole pages are protected");
  UHMM_MAY_FAIL(DeviceProtect);
  return do_protect(pages, access);
}

Status Device::unmap(std::span<const ByteRange> pages) {
  for ([[maybe_unused]] const ByteRange& range : pages) UHMM_CHECK(page_aligned(range), "whole pages are unmapped");
  UHMM_MAY_FAIL(DeviceUnmap);
  if (pages.empty()) return {};
  return do_unmap(pages);
}

Status Device::unmap_and_free(const Window& window, ByteRange pages) {
  UHMM_CHECK(inside(window, pages), "unmapped pages belong to the window");
  UHMM_MAY_FAIL(DeviceUnmap);
  return do_unmap_and_free(window, pages);
}

Status Device::poison(ByteRange pages) {
  UHMM_CHECK(page_aligned(pages), "whole pages are poisoned");
  return do_poison(pages);
}

Status Device::map_host(const Window& window, ByteRange pages) {
  UHMM_CHECK(inside(window, pages), "mapped pages belong to the window");
  if (!capabilities().coherent)
    return fail(UHMM_ERR_NOT_SUPPORTED, "device %s is private: the CPU can't map its memory", capabilities().name);
  UHMM_MAY_FAIL(DeviceMap);
  return do_map_host(window, pages);
}

Status Device::mirror(const Mirrored& source) {
  UHMM_CHECK(page_aligned(source.pages) && source.file >= 0, "whole pages of a file are mirrored");
  UHMM_MAY_FAIL(DeviceMirror);
  return do_mirror(source);
}

Status Device::do_mirror(const Mirrored& /*source*/) {
  return fail(UHMM_ERR_NOT_SUPPORTED, "device %s can't work on the program's own pages", capabilities().name);
}

void Device::unmirror(ByteRange pages) {
  UHMM_CHECK(page_aligned(pages), "whole pages are mirrored");
  do_unmirror(pages);
}

void Device::wake(ByteRange pages) {
  UHMM_CHECK(page_aligned(pages), "whole pages are woken");
  do_wake(pages);
}

Result<Ticket> Device::launch(const Launch& launch) {
  if (launch.kernel == nullptr) return fail(UHMM_ERR_INVALID, "no kernel to launch");
  if (launch.args_bytes > UHMM_MAX_ARGS_BYTES)
    return fail(UHMM_ERR_INVALID, "%zu bytes of arguments; at most %u are possible", launch.args_bytes,
                UHMM_MAX_ARGS_BYTES);
  if (launch.args == nullptr && launch.args_bytes != 0)
    return fail(UHMM_ERR_INVALID, "%zu bytes of arguments at address NULL", launch.args_bytes);
  UHMM_MAY_FAIL(DeviceLaunch);
  return do_launch(launch);
}

bool Device::finished(Ticket ticket) const { return ticket == 0 || do_finished(ticket); }

Status Device::wait(Ticket ticket) {
  if (ticket == 0) return {};
  return do_wait(ticket);
}

bool Device::busy() const { return announced_work_.load(std::memory_order_seq_cst) != 0 || do_busy(); }

Status Device::check_kernel(uhmm_kernel kernel) const {
  if (kernel == nullptr) return fail(UHMM_ERR_INVALID, "no kernel to launch");
  return do_check_kernel(kernel);
}

Status Device::access(VirtAddr address, std::byte* buffer, std::size_t bytes, bool is_write) {
  if (bytes == 0) return {};
  UHMM_CHECK(buffer != nullptr, "an access has a buffer");
  return do_access(address, buffer, bytes, is_write);
}

std::size_t Device::read_faults(std::span<DeviceFault> faults) { return faults.empty() ? 0 : do_read_faults(faults); }

void Device::handle_death(std::span<char> reason) { do_handle_death(reason); }

bool Device::lost() const { return do_lost(); }

}  // namespace uhmm::backend
