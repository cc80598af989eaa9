// SPDX-License-Identifier: Apache-2.0
// Where threads run, who they are, and what time it is.
#pragma once

#include <atomic>
#include <cstdint>

namespace uhmm::os {

// The n-th CPU that the process may use; -1 when there are fewer.
int usable_cpu(std::uint32_t n);
std::uint32_t usable_cpu_count();
void pin_thread(int cpu);
std::uint32_t thread_id();
void forget_thread_id();  // in a forked child: it is another one
std::uint64_t now_ns();
// Sleep until the word differs from `expected`, somebody wakes it, or the time is over. May return early.
void futex_wait_for(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns);

}  // namespace uhmm::os
