// SPDX-License-Identifier: Apache-2.0
// Part of uhmm.hpp: errors, words, registered ranges and what is done to them.
#ifndef UHMM_MEMORY_HPP
#define UHMM_MEMORY_HPP

#include <cstddef>
#include <cstdint>
#include <ranges>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "uhmm/uhmm.h"

namespace uhmm {

// -------------------------------------------------------------------------------------------------------------- errors

// What every failed call throws. what() is "uhmm_register: UHMM_ERR_OVERLAP: <detail>".
class error : public std::runtime_error {
 public:
  error(uhmm_status status, const char* call) : std::runtime_error(message(status, call)), status_(status) {}
  uhmm_status status() const noexcept { return status_; }

 private:
  static std::string message(uhmm_status status, const char* call) {
    const char* detail = uhmm_error_detail();
    return std::string(call) + ": " + uhmm_status_name(status) + ": " +
           (*detail != '\0' ? detail : uhmm_status_text(status));
  }
  uhmm_status status_;
};

namespace detail {

inline void check(uhmm_status status, const char* call) {
  if (status != UHMM_OK) throw error(status, call);
}

// A handle that is 0 when empty, so that a moved-from object ends nothing.
template <typename Handle>
class unique_handle {
 public:
  unique_handle() = default;
  explicit unique_handle(Handle value) : value_(value) {}
  unique_handle(unique_handle&& other) noexcept : value_(std::exchange(other.value_, Handle{})) {}
  unique_handle& operator=(unique_handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  Handle get() const { return value_; }
  Handle take() { return std::exchange(value_, Handle{}); }

 private:
  Handle value_{};
};

}  // namespace detail

// ---------------------------------------------------------------------------------------------------------- vocabulary

// 0 is the CPU, 1..8 are devices.
using processor = uhmm_processor;
inline constexpr processor cpu = UHMM_CPU;

enum class advice {
  none = UHMM_ADVISE_NONE,
  preferred_location = UHMM_ADVISE_PREFERRED_LOCATION,  // reads the processor argument
  accessed_by = UHMM_ADVISE_ACCESSED_BY,                // reads the processor argument
  read_mostly = UHMM_ADVISE_READ_MOSTLY,
  not_read_mostly = UHMM_ADVISE_NOT_READ_MOSTLY,
  pinned = UHMM_ADVISE_PINNED,
  unpinned = UHMM_ADVISE_UNPINNED,
};

enum class access {
  read = UHMM_ACCESS_READ,
  write = UHMM_ACCESS_WRITE,  // promises that every byte is overwritten
  read_write = UHMM_ACCESS_READ_WRITE,
};

namespace detail {

template <typename Pointer>
struct basic_region {
  constexpr basic_region(Pointer start, std::size_t length_bytes) : address(start), bytes(length_bytes) {}
  // From any contiguous range (std::span, std::vector, std::array, std::string, ...) of a writable element type, or of
  // any element type for a const region.
  template <std::ranges::contiguous_range Range>
  requires std::ranges::sized_range<Range> &&
      std::is_convertible_v<std::add_pointer_t<std::ranges::range_reference_t<Range>>, Pointer>
  constexpr basic_region(Range&& range)  // NOLINT(google-explicit-constructor): a range is a region
      : address(std::ranges::data(range)),
        bytes(std::ranges::size(range) * sizeof(std::ranges::range_value_t<Range>)) {}
  template <typename Other>
  requires(!std::is_same_v<Other, Pointer> && std::is_convertible_v<Other, Pointer>) constexpr basic_region(
      const basic_region<Other>& other)  // NOLINT(google-explicit-constructor): adds const only
      : address(other.address), bytes(other.bytes) {}

  Pointer address;
  std::size_t bytes;
};

}  // namespace detail

// Some bytes of memory, as an argument. Made from a contiguous range or from {pointer, bytes}; owns nothing.
using region = detail::basic_region<void*>;
using const_region = detail::basic_region<const void*>;

namespace detail {
// For calls that move memory but never change its contents.
inline void* mutable_address(const_region memory) { return const_cast<void*>(memory.address); }
}  // namespace detail

// ------------------------------------------------------------------------------------------- ranges and where they are

// Existing memory that is managed while this object lives. Must end before the memory does. Errors: as uhmm_register.
class registration {
 public:
  registration() = default;
  explicit registration(region memory) : start_(memory.address) {
    detail::check(uhmm_register(memory.address, memory.bytes), "uhmm_register");
  }
  registration(registration&&) noexcept = default;
  registration& operator=(registration&&) noexcept = default;
  ~registration() {
    if (void* start = start_.take()) uhmm_unregister(start);
  }
  // Bring the memory back and end its management now. Errors: as uhmm_unregister; after UHMM_ERR_BUSY it is still
  // managed and this may be called again.
  void end() {
    if (start_.get() == nullptr) return;
    const uhmm_status status = uhmm_unregister(start_.get());
    if (status != UHMM_ERR_BUSY) start_.take();
    detail::check(status, "uhmm_unregister");
  }
  explicit operator bool() const { return start_.get() != nullptr; }

 private:
  detail::unique_handle<void*> start_;
};

// Make pages resident on `to` and nowhere else; what could be moved is in the result. Errors: as uhmm_migrate.
inline uhmm_migrate_result migrate(const_region memory, processor to) {
  uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
  detail::check(uhmm_migrate(detail::mutable_address(memory), memory.bytes, to, &result), "uhmm_migrate");
  return result;
}
// A hint: pages become current on `to` at some time soon. stream::prefetch does it in order with other work.
inline void prefetch(const_region memory, processor to) {
  detail::check(uhmm_prefetch(detail::mutable_address(memory), memory.bytes, to, 0), "uhmm_prefetch");
}
// The memory is about to be unmapped, or its protection has changed. Page-aligned addresses.
inline void forget(region memory) { detail::check(uhmm_forget(memory.address, memory.bytes), "uhmm_forget"); }
inline void revoke(region memory) { detail::check(uhmm_revoke(memory.address, memory.bytes), "uhmm_revoke"); }
// Drop the contents of every page wholly inside; it reads as zeros afterwards.
inline void discard(region memory) { detail::check(uhmm_discard(memory.address, memory.bytes), "uhmm_discard"); }
// Advice for the registered ranges that `memory` touches; `where` is read by preferred_location and accessed_by.
inline void advise(const_region memory, advice what, processor where = cpu) {
  detail::check(uhmm_advise(detail::mutable_address(memory), memory.bytes, static_cast<uhmm_advice>(what), where),
                "uhmm_advise");
}

// Memory held current and mapped on a processor, for work that the runtime doesn't launch. Errors: as uhmm_acquire.
class acquisition {
 public:
  acquisition() = default;
  acquisition(const_region memory, processor where, access how)
      : bytes_(memory.bytes), where_(where), how_(static_cast<uhmm_access>(how)) {
    detail::check(uhmm_acquire(detail::mutable_address(memory), bytes_, where_, how_), "uhmm_acquire");
    start_ = detail::unique_handle<void*>(detail::mutable_address(memory));
  }
  acquisition(acquisition&&) noexcept = default;
  acquisition& operator=(acquisition&& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(bytes_, other.bytes_);
    std::swap(where_, other.where_);
    std::swap(how_, other.how_);
    return *this;
  }
  ~acquisition() {
    if (void* start = start_.take()) uhmm_release(start, bytes_, where_, how_);
  }
  // Errors: as uhmm_release.
  void release() {
    if (void* start = start_.take()) detail::check(uhmm_release(start, bytes_, where_, how_), "uhmm_release");
  }

 private:
  detail::unique_handle<void*> start_;
  std::size_t bytes_ = 0;
  processor where_ = cpu;
  uhmm_access how_ = UHMM_ACCESS_READ;
};

// Read or write managed memory through a device's page table. Both return the number of device faults taken.
inline std::uint64_t device_read(processor device, const void* from, region into) {
  std::uint64_t faults = 0;
  detail::check(uhmm_device_read(device, from, into.address, into.bytes, &faults), "uhmm_device_read");
  return faults;
}
inline std::uint64_t device_write(processor device, void* to, const_region from) {
  std::uint64_t faults = 0;
  detail::check(uhmm_device_write(device, to, from.address, from.bytes, &faults), "uhmm_device_write");
  return faults;
}
// Until a CPU touches a page, only `device` can. Returns the pages made exclusive. Errors: as uhmm_make_exclusive.
inline std::uint64_t make_exclusive(region memory, processor device) {
  std::uint64_t pages = 0;
  detail::check(uhmm_make_exclusive(memory.address, memory.bytes, device, &pages), "uhmm_make_exclusive");
  return pages;
}

}  // namespace uhmm

#endif  // UHMM_MEMORY_HPP
