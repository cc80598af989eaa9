/* SPDX-License-Identifier: Apache-2.0 */
/* Event ABI: what happened to pages and why. Included by uhmm.h. */
#ifndef UHMM_TRACE_H
#define UHMM_TRACE_H

#include <stdint.h>

/* X-macro: name, value, text. `pages`, `bytes` and `duration_ns` have the units their names say. */
#define UHMM_EVENT_LIST(X)                                                      \
  X(UHMM_EVENT_NONE, 0, "none")                                                 \
  X(UHMM_EVENT_REGISTER, 1, "range registered")                                 \
  X(UHMM_EVENT_UNREGISTER, 2, "range unregistered")                             \
  X(UHMM_EVENT_CPU_FAULT, 3, "CPU fault served; duration: fetch to wake")       \
  X(UHMM_EVENT_DEVICE_FAULT, 4, "device fault served; duration: fetch to wake") \
  X(UHMM_EVENT_TO_DEVICE, 5, "pages copied to `processor`")                     \
  X(UHMM_EVENT_TO_SYSTEM, 6, "pages copied to system memory from `processor`")  \
  X(UHMM_EVENT_POPULATE, 7, "pages given zeroed backing on `processor`")        \
  X(UHMM_EVENT_FREE, 8, "copies freed on `processor`")                          \
  X(UHMM_EVENT_EVICT, 9, "block evicted from `processor`")                      \
  X(UHMM_EVENT_REVOKE, 10, "exclusive access revoked")                          \
  X(UHMM_EVENT_LOST, 11, "pages lost")                                          \
  X(UHMM_EVENT_DEVICE_ADDED, 12, "device added or restarted")                   \
  X(UHMM_EVENT_DEVICE_REMOVED, 13, "device removed")                            \
  X(UHMM_EVENT_DEVICE_LOST, 14, "device lost")                                  \
  X(UHMM_EVENT_LAUNCH, 15, "kernel finished; address: function; duration: run") \
  X(UHMM_EVENT_DROPPED, 16, "pages: how many events a subscriber missed")

typedef enum uhmm_event_kind {
#define UHMM_X(name, value, text) name = (value),
  UHMM_EVENT_LIST(UHMM_X)
#undef UHMM_X
} uhmm_event_kind;

/* 64 bytes; new fields only replace `reserved`. */
typedef struct uhmm_event {
  uint64_t number;      /* 1, 2, 3, ... in order of recording */
  uint64_t time_ns;     /* CLOCK_MONOTONIC, when it ended */
  uint64_t address;     /* first byte concerned */
  uint64_t bytes;       /* length concerned */
  uint64_t duration_ns; /* 0 where it has none */
  uint32_t pages;       /* 4 KiB pages concerned */
  uint16_t kind;        /* uhmm_event_kind */
  uint16_t cause;       /* uhmm_cause */
  uint32_t processor;   /* device concerned, or 0 */
  uint32_t thread;      /* kernel thread id that recorded it */
  uint64_t reserved;
} uhmm_event;

#ifdef __cplusplus
extern "C" {
#endif
/* Text of an event kind; "?" if unknown. Static storage; callable at any time. */
const char* uhmm_event_text(uhmm_event_kind kind) __attribute__((visibility("default")));
#ifdef __cplusplus
}
#endif
#endif /* UHMM_TRACE_H */
