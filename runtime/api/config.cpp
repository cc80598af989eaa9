// SPDX-License-Identifier: Apache-2.0
#include "runtime/api/config.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/base/types.hpp"
#include "runtime/os/system_memory.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::api {
namespace {

constexpr std::size_t kFirstLayout = sizeof(uhmm_config);

// nullptr when unset, empty, or when the program runs with more rights than its caller.
const char* environment(const char* name) {
  const char* value = secure_getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

Status read_number(const char* name, std::uint64_t* out) {
  const char* text = environment(name);
  if (text == nullptr) return {};
  if (!parse_number(text, out))
    return fail(UHMM_ERR_CONFIG, "%s=%s is not a number (with optional K, M, G or T)", name, text);
  return {};
}

Status read_switch(const char* name, const char* off, const char* on, std::uint32_t flag, std::uint32_t* flags) {
  const char* text = environment(name);
  if (text == nullptr) return {};
  if (std::strcmp(text, on) == 0)
    *flags |= flag;
  else if (std::strcmp(text, off) == 0)
    *flags &= ~flag;
  else
    return fail(UHMM_ERR_CONFIG, "%s=%s is neither %s nor %s", name, text, on, off);
  return {};
}

struct Rung {
  const char* name;
  uhmm_fault_rung rung;
};
constexpr Rung kRungs[] = {{"auto", UHMM_FAULTS_AUTO},
                           {"syscall", UHMM_FAULTS_SYSCALL},
                           {"device", UHMM_FAULTS_DEVICE},
                           {"user-mode", UHMM_FAULTS_USER_MODE},
                           {"signal", UHMM_FAULTS_SIGNAL}};

struct GpuKind {
  const char* name;
  std::uint32_t flags;
};
constexpr std::uint32_t kGpuFlags = UHMM_CONFIG_GPU_CUDA | UHMM_CONFIG_GPU_HIP;
constexpr GpuKind kGpuKinds[] = {{"auto", 0}, {"cuda", UHMM_CONFIG_GPU_CUDA}, {"hip", UHMM_CONFIG_GPU_HIP}};

Status read_gpu_kind(std::uint32_t* flags) {
  const char* text = environment("UHMM_GPU_KIND");
  if (text == nullptr) return {};
  for (const GpuKind& known : kGpuKinds) {
    if (std::strcmp(text, known.name) != 0) continue;
    *flags = (*flags & ~kGpuFlags) | known.flags;
    return {};
  }
  return fail(UHMM_ERR_CONFIG, "UHMM_GPU_KIND=%s is none of auto, cuda, hip", text);
}

Status read_rung(std::uint32_t* rung) {
  const char* text = environment("UHMM_FAULTS");
  if (text == nullptr) return {};
  for (const Rung& known : kRungs) {
    if (std::strcmp(text, known.name) != 0) continue;
    *rung = known.rung;
    return {};
  }
  return fail(UHMM_ERR_CONFIG, "UHMM_FAULTS=%s is none of auto, syscall, device, user-mode, signal", text);
}

template <typename Field>
Status settle(const char* field, const char* name, const char* unit, bool use_environment, Field* value,
              std::uint64_t fallback, std::uint64_t smallest, std::uint64_t largest) {
  std::uint64_t number = *value;
  bool from_environment = false;
  if (use_environment && environment(name) != nullptr) {
    UHMM_TRY(read_number(name, &number));
    from_environment = true;
  }
  if (number == 0 && (!from_environment || smallest == 0)) number = fallback;
  if (number < smallest || number > largest)
    return fail(UHMM_ERR_CONFIG, "%s = %lu is out of range: %lu to %lu %s", from_environment ? name : field, number,
                smallest, largest, unit);
  *value = static_cast<Field>(number);
  return {};
}

// A sixteenth of what there is: recycled pages come home without being allocated.
std::uint64_t default_staging() {
  constexpr std::uint64_t kLeast = std::uint64_t{64} << 20;
  return std::max(kLeast, os::system_memory().total / 16 & ~(kBlockBytes - 1));
}

}  // namespace

bool parse_number(const char* text, std::uint64_t* out) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(text, &end, 0);
  if (errno != 0 || end == text) return false;
  unsigned shift = 0;
  switch (*end) {
    case '\0': break;
    case 'k':
    case 'K': shift = 10; break;
    case 'm':
    case 'M': shift = 20; break;
    case 'g':
    case 'G': shift = 30; break;
    case 't':
    case 'T': shift = 40; break;
    default: return false;
  }
  if (shift != 0 && end[1] != '\0') return false;
  if (number > (~0ull >> shift)) return false;
  *out = static_cast<std::uint64_t>(number) << shift;
  return true;
}

Result<uhmm_config> resolve_config(const uhmm_config* given) {
  uhmm_config config = UHMM_CONFIG_INIT;
  if (given != nullptr) {
    if (given->size < kFirstLayout)
      return fail(UHMM_ERR_INVALID, "uhmm_config.size is %zu, at least %zu is needed (use UHMM_CONFIG_INIT)",
                  given->size, kFirstLayout);
    config = *given;
    config.size = sizeof(config);
  }
  constexpr std::uint32_t kKnownFlags = UHMM_CONFIG_NO_MOVE | UHMM_CONFIG_NO_ENV | UHMM_CONFIG_COHERENT |
                                        UHMM_CONFIG_NO_REPORT | UHMM_CONFIG_DEVICE_ENTRIES | UHMM_CONFIG_FORK_HOME |
                                        kGpuFlags;
  if ((config.flags & ~kKnownFlags) != 0)
    return fail(UHMM_ERR_CONFIG, "uhmm_config.flags has unknown bits: %#x", config.flags & ~kKnownFlags);
  const bool use_environment = (config.flags & UHMM_CONFIG_NO_ENV) == 0;
  const std::uint32_t cpus = os::usable_cpu_count();
  const std::uint64_t staging = default_staging();
  if (use_environment) {
    UHMM_TRY(read_switch("UHMM_NO_MOVE", "0", "1", UHMM_CONFIG_NO_MOVE, &config.flags));
    UHMM_TRY(read_switch("UHMM_SOFT_KIND", "private", "coherent", UHMM_CONFIG_COHERENT, &config.flags));
    UHMM_TRY(read_switch("UHMM_NO_REPORT", "0", "1", UHMM_CONFIG_NO_REPORT, &config.flags));
    UHMM_TRY(read_switch("UHMM_DEVICE_ENTRIES", "0", "1", UHMM_CONFIG_DEVICE_ENTRIES, &config.flags));
    UHMM_TRY(read_switch("UHMM_FORK_HOME", "0", "1", UHMM_CONFIG_FORK_HOME, &config.flags));
    UHMM_TRY(read_gpu_kind(&config.flags));
    UHMM_TRY(read_rung(&config.fault_rung));
  }
  if (config.fault_rung > UHMM_FAULTS_SIGNAL)
    return fail(UHMM_ERR_CONFIG, "uhmm_config.fault_rung = %u is out of range", config.fault_rung);
  if ((config.flags & kGpuFlags) == kGpuFlags)
    return fail(UHMM_ERR_CONFIG, "uhmm_config.flags names two vendors; a GPU is of one");
#define UHMM_X(field, name, fallback, smallest, largest, unit) \
  UHMM_TRY(settle("uhmm_config." #field, name, unit, use_environment, &config.field, fallback, smallest, largest));
  UHMM_SETTING_LIST(UHMM_X)
#undef UHMM_X
  config.device_memory = (config.device_memory + kBlockBytes - 1) & ~(kBlockBytes - 1);
  config.fault_around &= ~(kPageBytes - 1);
  return config;
}

const char* driver_library(uhmm_device_kind kind, bool use_environment) {
  if (!use_environment) return nullptr;
  return environment(kind == UHMM_DEVICE_CUDA ? "UHMM_CUDA_LIBRARY" : "UHMM_HIP_LIBRARY");
}

Result<log::Level> resolve_log_level(bool use_environment) {
  const char* text = use_environment ? environment("UHMM_LOG") : nullptr;
  if (text == nullptr) return log::Level::Warning;
  constexpr struct {
    const char* name;
    log::Level level;
  } kLevels[] = {{"debug", log::Level::Debug},
                 {"info", log::Level::Info},
                 {"warning", log::Level::Warning},
                 {"error", log::Level::Error},
                 {"off", log::Level::Off}};
  for (const auto& known : kLevels)
    if (std::strcmp(text, known.name) == 0) return known.level;
  return fail(UHMM_ERR_CONFIG, "UHMM_LOG=%s is none of debug, info, warning, error, off", text);
}

}  // namespace uhmm::api
