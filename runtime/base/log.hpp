// SPDX-License-Identifier: Apache-2.0
// Logging that never allocates from managed memory: callers format into a fixed-size record of a ring in .bss; the
// logger's own thread hands records to spdlog. Full ring: the record is counted as dropped, the caller never waits.
#pragma once

namespace uhmm::log {

enum class Level : unsigned char { Debug, Info, Warning, Error, Off };

// Start and stop the logger thread. Level from UHMM_LOG (debug, info, warning, error, off; default warning). Writes to
// stderr. Records written before start() are kept. stop() drains.
void start(Level level);
void stop();
// In a forked child: the thread is not there, and what others were writing is forgotten.
void forget_after_fork();
void write(Level level, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace uhmm::log
