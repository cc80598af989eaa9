// SPDX-License-Identifier: Apache-2.0
// The calls of kernel_calls.hpp.
#include "preload/kernel_calls.hpp"
#include "preload/next.hpp"

using namespace uhmm::preload;

#define UHMM_NEXT(name, type, failed, parameters, ...) \
  namespace {                                          \
  constinit Next<type parameters> next_##name(#name);  \
  }
UHMM_RETRIED_CALL_LIST(UHMM_NEXT)

// NOLINTBEGIN(bugprone-macro-parentheses, readability-inconsistent-declaration-parameter-name, misc-include-cleaner)
#define UHMM_RETRY(name, type, failed, parameters, arguments, ready)                       \
  UHMM_INTERPOSE type name parameters {                                                    \
    return retried<type>(                                                                  \
        failed, [&] { return next_##name.get() arguments; }, [&] { return bool(ready); }); \
  }
UHMM_RETRIED_CALL_LIST(UHMM_RETRY)
// NOLINTEND(bugprone-macro-parentheses, readability-inconsistent-declaration-parameter-name, misc-include-cleaner)

#define UHMM_FIND(name, ...) (void)next_##name.get();
__attribute__((constructor)) static void find_all() { UHMM_RETRIED_CALL_LIST(UHMM_FIND) }
