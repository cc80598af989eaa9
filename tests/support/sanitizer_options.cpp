// SPDX-License-Identifier: Apache-2.0
// Device processes are made by fork() and start threads, which ThreadSanitizer refuses unless told.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }
