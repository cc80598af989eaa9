// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/status.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace uhmm {
namespace {

// Plain zero-initialised storage: with the initial-exec TLS model an access neither allocates nor runs a constructor.
thread_local char detail_text[kDetailBytes];

}  // namespace

const char* last_detail() { return detail_text; }

void set_detail(const char* text) {
  const std::size_t length = text == nullptr ? 0 : strnlen(text, kDetailBytes - 1);
  std::memmove(detail_text, text == nullptr ? "" : text, length);
  detail_text[length] = '\0';
}

Status fail(uhmm_status code, const char* format, ...) {
  // By way of a local buffer, because an argument may be last_detail() itself.
  char text[kDetailBytes];
  va_list arguments;
  va_start(arguments, format);
  if (std::vsnprintf(text, sizeof text, format, arguments) < 0) text[0] = '\0';
  va_end(arguments);
  set_detail(text);
  return code;
}

Status fail_errno(const char* what, int error) {
  uhmm_status code = UHMM_ERR_SYSTEM;
  if (error == EPERM || error == EACCES) code = UHMM_ERR_PERMISSION;
  if (error == ENOMEM) code = UHMM_ERR_NO_MEMORY;
  // Not strerror: it translates, and loading a message catalogue allocates.
  const char* text = strerrordesc_np(error);
  const char* name = strerrorname_np(error);
  if (text == nullptr || name == nullptr) return fail(code, "%s: error %d", what, error);
  return fail(code, "%s: %s (%s)", what, text, name);
}

void save_detail(char (&to)[kDetailBytes], const char* text) {
  const std::size_t length = strnlen(text, kDetailBytes - 1);
  std::memmove(to, text, length);
  to[length] = '\0';
}

}  // namespace uhmm
