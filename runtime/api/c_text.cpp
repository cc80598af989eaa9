// SPDX-License-Identifier: Apache-2.0
// Texts of the public lists. Static storage, callable at any time.
#include "runtime/base/status.hpp"
#include "uhmm/uhmm.h"

extern "C" {

const char* uhmm_status_name(uhmm_status status) {
  switch (status) {
#define UHMM_X(name, value, text) \
  case name: return #name;
    UHMM_STATUS_LIST(UHMM_X)
#undef UHMM_X
  }
  return "UHMM_ERR_?";
}

const char* uhmm_status_text(uhmm_status status) {
  switch (status) {
#define UHMM_X(name, value, text) \
  case name: return text;
    UHMM_STATUS_LIST(UHMM_X)
#undef UHMM_X
  }
  return "unknown status";
}

const char* uhmm_error_detail(void) { return uhmm::last_detail(); }

const char* uhmm_cause_text(uhmm_cause cause) {
  switch (cause) {
#define UHMM_X(name, value, text) \
  case name: return text;
    UHMM_CAUSE_LIST(UHMM_X)
#undef UHMM_X
    case UHMM_CAUSE_COUNT: break;
  }
  return "?";
}

const char* uhmm_event_text(uhmm_event_kind kind) {
  switch (kind) {
#define UHMM_X(name, value, text) \
  case name: return text;
    UHMM_EVENT_LIST(UHMM_X)
#undef UHMM_X
  }
  return "?";
}

}  // extern "C"
