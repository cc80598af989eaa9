// SPDX-License-Identifier: Apache-2.0
// Proves the page protocol for one page, two CPU threads and two devices: visits every interleaving of accesses,
// launches, deaths, failures and the engine's steps. Then puts known errors in, one at a time, and expects to find
// each.
//   uhmm_model              everything
//   uhmm_model MUTATION     one error, with the shortest way to it
#include <chrono>
#include <cstdio>
#include <cstring>

#include "tests/model/search.hpp"

namespace {

using namespace uhmm;
using namespace uhmm::model;

constexpr std::size_t kMostStates = 50'000'000;

struct NamedMutation {
  Mutation value;
  const char* name;
  const char* text;
};
constexpr NamedMutation kMutations[] = {
#define UHMM_X(name, text) {Mutation::name, #name, text},
    UHMM_MUTATION_LIST(UHMM_X)
#undef UHMM_X
};

struct NamedProperty {
  Property value;
  const char* text;
};
constexpr NamedProperty kProperties[] = {
#define UHMM_X(name, text) {Property::name, text},
    UHMM_PROPERTY_LIST(UHMM_X)
#undef UHMM_X
};

Config configuration(const char* name, bool move) {
  Config config;
  config.name = name;
  config.move = move;
  return config;
}

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

void print_trace(const Report& report) {
  for (const std::string& line : report.trace) std::printf("    %s\n", line.c_str());
}

// The configuration in which an error shows soonest.
Config mutated(Mutation mutation, bool move) {
  Config config = configuration("", move);
  config.mutation = mutation;
  if (mutation == Mutation::FlushAfterLaunch) {
    config.launching = 1;
    config.second_launch = 1;
  }
  if (mutation == Mutation::LostReadsZeros) config.mortal = 1;
  // Found only when everything was visited: keep it small.
  if (mutation == Mutation::FreedStaysMapped || mutation == Mutation::NoWake) config.requests = false;
  return config;
}

bool find_mutation(const NamedMutation& mutation, bool trace) {
  bool found = true;
  for (const bool move : {true, false}) {
    // A moved page has no entry of the CPU left to be dropped late.
    if (move && mutation.value == Mutation::SettleAfterMap) continue;
    const Report report = search(mutated(mutation.value, move), kMostStates);
    std::printf("%-22s %s  %8zu states  ", mutation.name, move ? "move" : "copy", report.states);
    if (report.broken) {
      std::printf("found, breaks: %s\n", kProperties[static_cast<std::size_t>(*report.broken)].text);
    } else {
      std::printf("NOT FOUND: %s\n", mutation.text);
      found = false;
    }
    if (trace) print_trace(report);
  }
  return found;
}

bool verify(const Config& config, std::uint32_t& events) {
  const double start = seconds();
  const Report report = search(config, kMostStates);
  events |= report.events;
  std::printf("%s\n  %zu states, %zu transitions, %.1f s: ", config.name, report.states, report.transitions,
              seconds() - start);
  if (!report.complete) {
    std::printf("INCOMPLETE, too many states\n");
    return false;
  }
  if (!report.broken) {
    std::printf("every property holds\n");
    return true;
  }
  std::printf("BROKEN: %s\n", kProperties[static_cast<std::size_t>(*report.broken)].text);
  print_trace(report);
  return false;
}

bool verify_all() {
  std::puts("Properties:");
  for (const NamedProperty& property : kProperties) std::printf("  - %s\n", property.text);

  Config configs[] = {
      configuration("pages move, any step may fail, a device may die", true),
      configuration("pages are copied, any step may fail, a device may die", false),
      configuration("pages move, launches of one device overlap, it may die", true),
      configuration("faults only, both devices may die", true),
  };
  for (Config& config : configs) config.mortal = 1;
  configs[2].launching = 1;
  configs[2].second_launch = 1;
  configs[3].mortal = 3;
  configs[3].requests = false;

  bool good = true;
  std::uint32_t events = 0;
  for (const Config& config : configs) good = verify(config, events) && good;

  // Unregister changes nothing about a page: it is checked in the table's own test.
  for (unsigned i = 0; i < kPageEvents; ++i) {
    const auto event = static_cast<PageEvent>(i);
    if (event == PageEvent::Unregister || ((events >> i) & 1) != 0) continue;
    std::printf("NEVER HAPPENED: %s\n", page_event_text(event));
    good = false;
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const double start = seconds();
  bool good = true;
  if (argc > 1) {
    const NamedMutation* chosen = nullptr;
    for (const NamedMutation& mutation : kMutations)
      if (std::strcmp(mutation.name, argv[1]) == 0) chosen = &mutation;
    if (chosen == nullptr) {
      std::fprintf(stderr, "usage: uhmm_model [MUTATION]; mutations:\n");
      for (const NamedMutation& mutation : kMutations)
        std::fprintf(stderr, "  %-22s %s\n", mutation.name, mutation.text);
      return 2;
    }
    std::printf("%s\n", chosen->text);
    good = find_mutation(*chosen, true);
  } else {
    good = verify_all();
    std::puts("Errors put in on purpose:");
    for (const NamedMutation& mutation : kMutations) good = find_mutation(mutation, false) && good;
  }
  std::printf("%s, %.0f s\n", good ? "PASS" : "FAIL", seconds() - start);
  return good ? 0 : 1;
}
