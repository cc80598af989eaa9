// SPDX-License-Identifier: Apache-2.0
// Three tiers of checks. UHMM_REQUIRE: always on, cheap, guards data. UHMM_CHECK: builds with UHMM_CHECKS (dev, asan,
// tsan). Expected failures are neither: they are statuses.
#pragma once

namespace uhmm {
// Writes one line to stderr without allocating, then aborts.
[[noreturn]] void panic(const char* file, int line, const char* expression, const char* why);
}  // namespace uhmm

#define UHMM_REQUIRE(condition, why) \
  ((condition) ? static_cast<void>(0) : ::uhmm::panic(__FILE__, __LINE__, #condition, why))
#ifdef UHMM_CHECKS
#define UHMM_CHECK(condition, why) UHMM_REQUIRE(condition, why)
#else
#define UHMM_CHECK(condition, why) static_cast<void>(0)
#endif
