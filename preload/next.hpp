// SPDX-License-Identifier: Apache-2.0
// The function that an interposed one stands in front of, by name. To be looked for early, in a constructor: dlsym()
// takes the loader's lock, which a device's process may have inherited taken.
#pragma once

#include <dlfcn.h>

#include <atomic>

#define UHMM_INTERPOSE extern "C" __attribute__((visibility("default")))

namespace uhmm::preload {

template <typename Function>
class Next {
 public:
  explicit constexpr Next(const char* name) : name_(name) {}
  // nullptr: this C library has none, so nobody is linked with it.
  Function* get() {
    Function* known = found_.load(std::memory_order_relaxed);
    if (known != nullptr) return known;
    known = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name_));
    found_.store(known, std::memory_order_relaxed);
    return known;
  }

 private:
  const char* name_;
  std::atomic<Function*> found_{nullptr};
};

}  // namespace uhmm::preload
