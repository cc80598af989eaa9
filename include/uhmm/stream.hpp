// SPDX-License-Identifier: Apache-2.0
// Part of uhmm.hpp: streams, fences and typed kernel launches.
#ifndef UHMM_STREAM_HPP
#define UHMM_STREAM_HPP

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "uhmm/memory.hpp"
#include "uhmm/uhmm.h"

namespace uhmm {

// Completes when all work queued in its stream before it has. Errors: as uhmm_fence_record (see stream::record).
class fence {
 public:
  fence() = default;
  explicit fence(uhmm_fence handle) : handle_(handle) {}  // takes ownership
  fence(fence&&) noexcept = default;
  fence& operator=(fence&&) noexcept = default;
  ~fence() {
    if (const uhmm_fence handle = handle_.take()) uhmm_fence_destroy(handle);
  }
  // Throws the error of the stream's work before the fence, if there is one.
  void wait() const { detail::check(uhmm_fence_wait(handle_.get(), UINT64_MAX), "uhmm_fence_wait"); }
  // False when the time ran out first. A negative time polls.
  bool wait_for(std::chrono::nanoseconds time) const {
    const auto ns = static_cast<std::uint64_t>(std::max<std::int64_t>(time.count(), 0));
    const uhmm_status status = uhmm_fence_wait(handle_.get(), ns);
    if (status == UHMM_ERR_TIMEOUT) return false;
    detail::check(status, "uhmm_fence_wait");
    return true;
  }
  bool done() const { return wait_for(std::chrono::nanoseconds(0)); }
  uhmm_fence handle() const { return handle_.get(); }

 private:
  detail::unique_handle<uhmm_fence> handle_;
};

// How often a kernel is called. A plain number is a one-dimensional grid; 0 counts as 1.
struct grid {
  // NOLINTNEXTLINE(google-explicit-constructor): a number is a grid
  constexpr grid(std::uint32_t x_cells, std::uint32_t y_cells = 1, std::uint32_t z_cells = 1)
      : x(x_cells), y(y_cells), z(z_cells) {}
  std::uint32_t x;
  std::uint32_t y;
  std::uint32_t z;
};

namespace detail {

// Argument bytes are copied to the device as they are, 16-byte aligned.
template <typename Args>
concept kernel_args = std::is_trivially_copyable_v<Args> && std::is_trivially_destructible_v<Args> &&
                          sizeof(Args) <= UHMM_MAX_ARGS_BYTES
                      && alignof(Args) <= 16;

// noexcept: an exception that leaves a kernel ends the device process, which is reported as a crashed kernel.
template <auto Kernel, typename Args>
void call_function(const uhmm_kernel_item* item, void* args) noexcept {
  Kernel(*item, *static_cast<const Args*>(args));
}
template <auto Kernel>
void call_plain_function(const uhmm_kernel_item* item, void*) noexcept {
  Kernel(*item);
}
template <typename Callable>
void call_object(const uhmm_kernel_item* item, void* callable) noexcept {
  (*static_cast<const Callable*>(callable))(*item);
}

}  // namespace detail

// Work of one stream runs in order; streams run beside each other. Errors: as uhmm_stream_create.
//
// A kernel is code of the program that runs on the device, once per grid cell, by several workers at once. What it may
// do is said at uhmm_kernel in uhmm.h; in short: compute on managed memory, nothing else. Three ways to give one:
//   stream.launch<scale>(cells, scale_args{data, n});    // void scale(const uhmm_kernel_item&, const scale_args&)
//   stream.launch(cells, [data, n](const uhmm_kernel_item& item) { ... });   // captures by value, trivially copyable
//   stream.launch(desc);                                 // the C way
// Never capture by reference: the device has its own copy of the stack.
class stream {
 public:
  explicit stream(processor device) {
    uhmm_stream handle = 0;
    detail::check(uhmm_stream_create(device, &handle), "uhmm_stream_create");
    handle_ = detail::unique_handle<uhmm_stream>(handle);
  }
  stream(stream&&) noexcept = default;
  stream& operator=(stream&&) noexcept = default;
  // Waits for the stream's work; its errors are dropped.
  ~stream() {
    if (const uhmm_stream handle = handle_.take()) uhmm_stream_destroy(handle);
  }

  // Waits; throws the first error of the work since the last call.
  void synchronize() { detail::check(uhmm_stream_synchronize(handle_.get()), "uhmm_stream_synchronize"); }

  void launch(const uhmm_launch_desc& desc) { detail::check(uhmm_launch(handle_.get(), &desc), "uhmm_launch"); }
  template <auto Kernel, detail::kernel_args Args>
  requires std::is_invocable_v<decltype(Kernel), const uhmm_kernel_item&, const Args&>
  void launch(grid cells, const Args& args) { queue(&detail::call_function<Kernel, Args>, &args, sizeof(Args), cells); }
  template <auto Kernel>
  requires std::is_invocable_v<decltype(Kernel), const uhmm_kernel_item&>
  void launch(grid cells) { queue(&detail::call_plain_function<Kernel>, nullptr, 0, cells); }
  template <detail::kernel_args Callable>
  requires std::is_invocable_v<const Callable&, const uhmm_kernel_item&>
  void launch(grid cells, const Callable& callable) {
    queue(&detail::call_object<Callable>, &callable, sizeof(Callable), cells);
  }

  // In stream order; their errors come from synchronize() or a fence.
  void migrate(const_region memory, processor to) {
    detail::check(uhmm_migrate_async(detail::mutable_address(memory), memory.bytes, to, handle_.get()),
                  "uhmm_migrate_async");
  }
  void prefetch(const_region memory, processor to) {
    detail::check(uhmm_prefetch(detail::mutable_address(memory), memory.bytes, to, handle_.get()), "uhmm_prefetch");
  }

  fence record() {
    uhmm_fence out = 0;
    detail::check(uhmm_fence_record(handle_.get(), &out), "uhmm_fence_record");
    return fence(out);
  }
  // Later work waits for the fence, which may be of another stream or device.
  void wait(const fence& before) {
    detail::check(uhmm_stream_wait_fence(handle_.get(), before.handle()), "uhmm_stream_wait_fence");
  }
  uhmm_stream handle() const { return handle_.get(); }

 private:
  void queue(uhmm_kernel kernel, const void* args, std::size_t bytes, grid cells) {
    uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
    desc.kernel = kernel;
    desc.args = args;
    desc.args_size = bytes;
    desc.grid[0] = cells.x;
    desc.grid[1] = cells.y;
    desc.grid[2] = cells.z;
    launch(desc);
  }
  detail::unique_handle<uhmm_stream> handle_;
};

}  // namespace uhmm

#endif  // UHMM_STREAM_HPP
