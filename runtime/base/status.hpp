// SPDX-License-Identifier: Apache-2.0
// Expected failures travel as values. The detail text lives in a fixed thread-local buffer, so that failing never
// allocates: a service thread may fail while the program's allocator is stuck in a fault that it must serve.
#pragma once

#include <cstdarg>
#include <optional>
#include <utility>

#include "uhmm/uhmm.h"

namespace uhmm {

class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(uhmm_status code) : code_(code) {}  // NOLINT(google-explicit-constructor): a code is a status
  constexpr bool ok() const { return code_ == UHMM_OK; }
  constexpr uhmm_status code() const { return code_; }
  constexpr explicit operator bool() const { return ok(); }

 private:
  uhmm_status code_ = UHMM_OK;
};

inline constexpr std::size_t kDetailBytes = 256;

// Set the calling thread's detail text and return the status.
Status fail(uhmm_status code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// UHMM_ERR_SYSTEM (or PERMISSION / NO_MEMORY where errno says so) with "what: strerror".
Status fail_errno(const char* what, int error);
// The calling thread's text; "" if none. Never null.
const char* last_detail();
void set_detail(const char* text);
// Copies a detail text (the calling thread's by default) to where it outlives the next failure.
void save_detail(char (&to)[kDetailBytes], const char* text = last_detail());

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(status) {}     // NOLINT(google-explicit-constructor)
  Result(uhmm_status code) : status_(code) {}    // NOLINT(google-explicit-constructor)
  bool ok() const { return status_.ok(); }
  explicit operator bool() const { return ok(); }
  Status status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }
  T* operator->() { return &*value_; }
  T& operator*() { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace uhmm

// Return early with the failure of an expression that yields a Status.
#define UHMM_TRY(expression)                                                        \
  do {                                                                              \
    if (::uhmm::Status uhmm_try_ = (expression); !uhmm_try_.ok()) return uhmm_try_; \
  } while (0)
