// SPDX-License-Identifier: Apache-2.0
// Every public call with everything that is wrong with its arguments, as data. bad_input_test.cpp runs it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/support/runtime.hpp"

namespace uhmm::test {

// What the rows refer to. Memory: 16 registered pages in several states, 16 unregistered ones right behind them, a
// hole, and one page without write permission.
struct World {
  static constexpr std::size_t kHalf = 16 * kPage;

  std::byte* memory = nullptr;
  std::byte* loose = nullptr;
  std::byte* hole = nullptr;
  std::byte* unreadable = nullptr;
  std::byte* private_file = nullptr;
  std::byte buffer[kPage] = {};
  uhmm_stream stream = 0;
  uhmm_fence fence = 0;
  uhmm_pool pool = 0;
  uhmm_subscription subscription = 0;
  void* block = nullptr;  // of uhmm_malloc
  // What the state of the runtime makes of a correct call; read by rows whose calls return no status.
  uhmm_status when_off = UHMM_OK;
};

struct Row {
  const char* call;
  std::string what;
  uhmm_status expected;
  std::function<uhmm_status(World&)> run;
};

// Wrong arguments, runtime running.
std::vector<Row> bad_calls();

inline void ignore_event(void*, const uhmm_event*) {}
inline void empty_kernel(const uhmm_kernel_item*, void*) {}

}  // namespace uhmm::test
