// SPDX-License-Identifier: Apache-2.0
//
// uhmm for C++20: RAII, exceptions, typed kernel launches and allocators over the C interface. Header-only; all the
// rules of uhmm.h hold (addresses and lengths in bytes, whole pages, any thread, nothing from signal handlers or
// kernels). Conventions here:
//  - A call that fails throws uhmm::error with the status and the detail text. A failed call has changed nothing.
//  - Destructors never throw: what they end may report an error that is then dropped. Call the named function
//    (shutdown, end, synchronize, ...) first where the answer matters.
//  - Objects are movable, not copyable, and empty after being moved from. One object is not safe to use from several
//    threads at once without a lock; different objects are.
//  - Every object must end before the uhmm::runtime (or the uhmm_shutdown) does, except memory of the allocators,
//    which stays readable but is not given back once the runtime has ended.
#ifndef UHMM_UHMM_HPP
#define UHMM_UHMM_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "uhmm/allocator.hpp"
#include "uhmm/memory.hpp"
#include "uhmm/stream.hpp"
#include "uhmm/uhmm.h"

namespace uhmm {

// ---------------------------------------------------------------------------------------------------- runtime, devices

// A configuration with every field at its default. Change fields, then give it to uhmm::runtime.
inline uhmm_config default_config() { return uhmm_config UHMM_CONFIG_INIT; }

// The runtime, while this object lives. One per process. Errors: as uhmm_init.
class runtime {
 public:
  explicit runtime(const uhmm_config& config = default_config()) { detail::check(uhmm_init(&config), "uhmm_init"); }
  runtime(const runtime&) = delete;
  runtime& operator=(const runtime&) = delete;
  ~runtime() {
    if (running_) uhmm_shutdown();
  }
  // End it early. Throws UHMM_ERR_DATA_LOST where pages were lost; it has ended all the same.
  void shutdown() {
    if (std::exchange(running_, false)) detail::check(uhmm_shutdown(), "uhmm_shutdown");
  }
  // The configuration in force, defaults and environment applied.
  static uhmm_config config() {
    uhmm_config out = default_config();
    detail::check(uhmm_get_config(&out), "uhmm_get_config");
    return out;
  }

 private:
  bool running_ = true;
};

// Ids of the devices present, ascending; lost ones count.
inline std::vector<processor> devices() {
  std::vector<processor> ids(UHMM_MAX_DEVICES);
  std::uint32_t count = 0;
  detail::check(uhmm_device_list(ids.data(), static_cast<std::uint32_t>(ids.size()), &count), "uhmm_device_list");
  ids.resize(std::min<std::size_t>(count, ids.size()));
  return ids;
}
inline uhmm_device_info device_info(processor device) {
  uhmm_device_info out = UHMM_DEVICE_INFO_INIT;
  detail::check(uhmm_device_get_info(device, &out), "uhmm_device_get_info");
  return out;
}
// Errors: as uhmm_device_add.
inline processor add_device(const uhmm_device_desc& desc = UHMM_DEVICE_DESC_INIT) {
  processor out = 0;
  detail::check(uhmm_device_add(&desc, &out), "uhmm_device_add");
  return out;
}
// Errors: as uhmm_device_remove. With UHMM_ERR_DATA_LOST the device is gone all the same.
inline void remove_device(processor device) { detail::check(uhmm_device_remove(device), "uhmm_device_remove"); }
// Errors: as uhmm_device_restart.
inline void restart_device(processor device) { detail::check(uhmm_device_restart(device), "uhmm_device_restart"); }

// --------------------------------------------------------------------------------------------------------------- pools

// What a pool's owner is told and asked. Runs on a runtime thread, possibly several at once: must not touch managed
// memory, call uhmm or throw, and should return soon.
class pool_handler {
 public:
  virtual ~pool_handler() = default;
  // The CPU touched a page whose only copy is in the pool.
  virtual uhmm_fault_action page_fault(const uhmm_fault_info&) noexcept { return UHMM_FAULT_MIGRATE; }
  // The pool's copy of the page at `address` was freed.
  virtual void page_free(std::uint64_t /*address*/, uhmm_cause) noexcept {}
};

// A part of a device's memory. Errors: as uhmm_pool_create.
class pool {
 public:
  pool(processor device, std::uint64_t bytes) { create(device, bytes, nullptr, nullptr); }
  // `handler` must outlive the pool.
  pool(processor device, std::uint64_t bytes, pool_handler& handler) {
    uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
    ops.page_fault = [](void* context, const uhmm_fault_info* fault) {
      return static_cast<pool_handler*>(context)->page_fault(*fault);
    };
    ops.page_free = [](void* context, std::uint64_t address, uhmm_cause cause) {
      static_cast<pool_handler*>(context)->page_free(address, cause);
    };
    create(device, bytes, &ops, &handler);
  }
  pool(pool&&) noexcept = default;
  pool& operator=(pool&&) noexcept = default;
  ~pool() {
    if (const uhmm_pool handle = handle_.take()) uhmm_pool_destroy(handle);
  }
  // Pages of the registered range that contains `address` go into this pool from now on. Errors: as
  // uhmm_range_set_pool.
  void place(const void* address) { detail::check(uhmm_range_set_pool(address, handle_.get()), "uhmm_range_set_pool"); }
  // Errors: as uhmm_pool_destroy. With UHMM_ERR_DATA_LOST the pool is gone all the same.
  void end() {
    if (const uhmm_pool handle = handle_.take()) detail::check(uhmm_pool_destroy(handle), "uhmm_pool_destroy");
  }
  uhmm_pool handle() const { return handle_.get(); }

 private:
  void create(processor device, std::uint64_t bytes, const uhmm_pool_ops* ops, void* context) {
    uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
    desc.device = device;
    desc.bytes = bytes;
    desc.ops = ops;
    desc.context = context;
    uhmm_pool out = 0;
    detail::check(uhmm_pool_create(&desc, &out), "uhmm_pool_create");
    handle_ = detail::unique_handle<uhmm_pool>(out);
  }
  detail::unique_handle<uhmm_pool> handle_;
};

// --------------------------------------------------------------------------------------------------------- observation

// Totals since uhmm_init.
inline uhmm_stats stats() {
  uhmm_stats out{};
  out.size = sizeof(out);
  detail::check(uhmm_get_stats(&out), "uhmm_get_stats");
  return out;
}
// Of the registered range that contains `address`.
inline uhmm_stats range_stats(const void* address) {
  uhmm_stats out{};
  out.size = sizeof(out);
  detail::check(uhmm_get_range_stats(address, &out), "uhmm_get_range_stats");
  return out;
}
// States of the pages that `memory` touches, first page first.
inline std::vector<uhmm_page_info> snapshot(const_region memory) {
  std::size_t count = 0;
  detail::check(uhmm_snapshot(memory.address, memory.bytes, nullptr, 0, &count), "uhmm_snapshot");
  std::vector<uhmm_page_info> pages(count);
  detail::check(uhmm_snapshot(memory.address, memory.bytes, pages.data(), count, &count), "uhmm_snapshot");
  return pages;
}

// Calls a function for each event of the given kinds, on a runtime thread, while this object lives.
class subscription {
 public:
  using callback = std::function<void(const uhmm_event&)>;
  // A set of kinds: mask(UHMM_EVENT_TO_DEVICE, UHMM_EVENT_TO_SYSTEM).
  template <typename... Kinds>
  static constexpr std::uint64_t mask(Kinds... kinds) {
    return ((std::uint64_t{1} << kinds) | ... | std::uint64_t{0});
  }
  // An exception that leaves `function` ends the program. Errors: as uhmm_event_subscribe.
  subscription(std::uint64_t kinds, callback function) : function_(std::make_unique<callback>(std::move(function))) {
    uhmm_subscription out = 0;
    const auto call = [](void* context, const uhmm_event* event) noexcept {
      (*static_cast<callback*>(context))(*event);
    };
    detail::check(uhmm_event_subscribe(kinds, call, function_.get(), &out), "uhmm_event_subscribe");
    handle_ = detail::unique_handle<uhmm_subscription>(out);
  }
  subscription(subscription&&) noexcept = default;
  subscription& operator=(subscription&& other) noexcept {
    std::swap(function_, other.function_);  // never without its handle: the old one may still be called
    std::swap(handle_, other.handle_);
    return *this;
  }
  // No call runs after the return.
  ~subscription() {
    if (const uhmm_subscription handle = handle_.take()) uhmm_event_unsubscribe(handle);
  }

 private:
  std::unique_ptr<callback> function_;
  detail::unique_handle<uhmm_subscription> handle_;
};

}  // namespace uhmm

#endif  // UHMM_UHMM_HPP
