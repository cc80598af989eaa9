// SPDX-License-Identifier: Apache-2.0
#include "runtime/api/run_options.hpp"

#include <cstdlib>
#include <cstring>

#include "runtime/api/config.hpp"

namespace uhmm::api {
namespace {

constexpr std::uint64_t kDefaultRate = 1000;
constexpr std::uint64_t kMostRate = 1'000'000;
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 46;

bool is(const char* text, const char* word) { return std::strcmp(text, word) == 0; }

Status choose(const char* shown, const char* value, const char* off, const char* on, bool* out) {
  if (!is(value, on) && !is(value, off))
    return fail(UHMM_ERR_CONFIG, "%s=%s is neither %s nor %s", shown, value, off, on);
  *out = is(value, on);
  return {};
}

Status bytes(const char* shown, const char* value, std::uint64_t smallest, std::uint64_t* out) {
  if (!parse_number(value, out))
    return fail(UHMM_ERR_CONFIG, "%s=%s is not a number of bytes (with optional K, M, G or T)", shown, value);
  if (*out < smallest || *out > kMostBytes)
    return fail(UHMM_ERR_CONFIG, "%s=%s is out of range: %lu to %lu bytes", shown, value, smallest, kMostBytes);
  return {};
}

Status chaos(RunOptions& options, const char* shown, const char* value) {
  char seed[32];
  const char* colon = std::strchr(value, ':');
  const std::size_t length = colon != nullptr ? static_cast<std::size_t>(colon - value) : std::strlen(value);
  options.chaos_rate = kDefaultRate;
  if (length >= sizeof(seed)) return fail(UHMM_ERR_CONFIG, "%s=%s is not SEED or SEED:RATE", shown, value);
  std::memcpy(seed, value, length);
  seed[length] = '\0';
  if (!parse_number(seed, &options.chaos_seed) || (colon != nullptr && !parse_number(colon + 1, &options.chaos_rate)))
    return fail(UHMM_ERR_CONFIG, "%s=%s is not SEED or SEED:RATE, two numbers", shown, value);
  if (options.chaos_rate < 1 || options.chaos_rate > kMostRate)
    return fail(UHMM_ERR_CONFIG, "%s=%s has a rate out of range: 1 to %lu migrations a second", shown, value,
                kMostRate);
  return {};
}

Status stats(RunOptions& options, const char* shown, const char* value) {
  if (!is(value, "table") && !is(value, "json"))
    return fail(UHMM_ERR_CONFIG, "%s=%s is neither table nor json", shown, value);
  options.stats = is(value, "json") ? RunStats::Json : RunStats::Table;
  return {};
}

Status stats_file(RunOptions& options, const char* shown, const char* value) {
  const std::size_t length = std::strlen(value);
  if (value[0] != '/') return fail(UHMM_ERR_CONFIG, "%s=%s is not an absolute path", shown, value);
  if (length >= sizeof(options.stats_file)) return fail(UHMM_ERR_CONFIG, "%s is too long for a path", shown);
  std::memcpy(options.stats_file, value, length + 1);
  return {};
}

}  // namespace

Status set_run_option(RunOptions& options, const char* word, const char* shown, const char* value) {
  if (is(word, "min-size")) return bytes(shown, value, 0, &options.min_size);
  if (is(word, "mmap")) return choose(shown, value, "no", "yes", &options.mmap);
  if (is(word, "chaos")) return chaos(options, shown, value);
  if (is(word, "host-limit")) return bytes(shown, value, kLeastHostLimit, &options.host_limit);
  if (is(word, "over-budget")) return choose(shown, value, "fail", "exceed", &options.exceed);
  if (is(word, "stats")) return stats(options, shown, value);
  if (is(word, "stats-file")) return stats_file(options, shown, value);
  if (is(word, "children")) return choose(shown, value, "no", "yes", &options.children);
  if (is(word, "quiet")) return choose(shown, value, "no", "yes", &options.quiet);
#define UHMM_X(name, environment, form, meaning) \
  if (is(word, name)) return {};
  UHMM_RUN_OPTION_LIST(UHMM_X)
#undef UHMM_X
  return fail(UHMM_ERR_INVALID, "there is no option '%s'", word);
}

Status read_run_environment(RunOptions& options) {
  const char* value = nullptr;
#define UHMM_X(name, environment, form, meaning) \
  value = secure_getenv(environment);            \
  if (value != nullptr && *value != '\0') UHMM_TRY(set_run_option(options, name, environment, value));
  UHMM_RUN_OPTION_LIST(UHMM_X)
#undef UHMM_X
  return {};
}

}  // namespace uhmm::api
