// SPDX-License-Identifier: Apache-2.0
// Settings: one list with default, range, environment name and meaning. docs/tuning.md describes the same list.
#pragma once

#include <cstdint>

#include "runtime/base/log.hpp"
#include "runtime/base/status.hpp"

namespace uhmm::api {

// X(field of uhmm_config, environment name, default expression, smallest, largest, unit)
#define UHMM_SETTING_LIST(X)                                                                                   \
  X(gpus, "UHMM_GPUS", 0, 0, 1, "GPUs")                                                                        \
  X(soft_devices, "UHMM_SOFT_DEVICES", (config.gpus != 0 ? 0 : 1), (config.gpus != 0 ? 0 : 1), 8, "devices")   \
  X(device_memory, "UHMM_DEVICE_MEMORY", std::uint64_t{2} << 30, kBlockBytes, std::uint64_t{1} << 46, "bytes") \
  X(device_workers, "UHMM_DEVICE_WORKERS", cpus, 1, 256, "threads")                                            \
  X(service_threads, "UHMM_SERVICE_THREADS", (cpus < 8 ? cpus : 8), 1, 64, "threads")                          \
  X(staging_memory, "UHMM_STAGING", staging, kBlockBytes, std::uint64_t{1} << 40, "bytes")                     \
  X(fault_around, "UHMM_FAULT_AROUND", kBlockBytes, kPageBytes, kBlockBytes, "bytes")                          \
  X(link_latency_ns, "UHMM_LINK_LATENCY_NS", 0, 0, std::uint64_t{10'000'000'000}, "nanoseconds")               \
  X(link_bytes_per_sec, "UHMM_LINK_BANDWIDTH", 0, 0, std::uint64_t{1} << 50, "bytes per second")

// A number with an optional suffix K, M, G or T (powers of 1024).
bool parse_number(const char* text, std::uint64_t* out);
// The configuration in force: struct (may be NULL), then environment, then defaults. Errors: INVALID, CONFIG.
Result<uhmm_config> resolve_config(const uhmm_config* given);
// From UHMM_CUDA_LIBRARY or UHMM_HIP_LIBRARY: a driver other than the usual one. nullptr: none is named.
const char* driver_library(uhmm_device_kind kind, bool use_environment);
// From UHMM_LOG. Errors: CONFIG.
Result<log::Level> resolve_log_level(bool use_environment);

}  // namespace uhmm::api
