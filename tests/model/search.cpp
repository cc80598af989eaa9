// SPDX-License-Identifier: Apache-2.0
#include "tests/model/search.hpp"

#include <algorithm>
#include <limits>

#include "tests/model/steps.hpp"

namespace uhmm::model {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Packed states, numbered in the order they were found.
class StateTable {
 public:
  StateTable() : places_(std::size_t{1} << 16) {}
  std::size_t size() const { return states_.size(); }
  std::uint64_t operator[](std::size_t number) const { return states_[number]; }
  // The state's number; `added` says whether it is new.
  std::uint32_t number_of(std::uint64_t state, bool& added) {
    if (states_.size() * 3 >= places_.size() * 2) grow();
    Place& place = find(state);
    added = place.number == kNone;
    if (added) {
      place = {state, static_cast<std::uint32_t>(states_.size())};
      states_.push_back(state);
    }
    return place.number;
  }

 private:
  struct Place {
    std::uint64_t state = 0;
    std::uint32_t number = kNone;
  };
  Place& find(std::uint64_t state) {
    std::size_t at = (state * 0x9e3779b97f4a7c15u) >> 24;
    for (;; ++at) {
      Place& place = places_[at & (places_.size() - 1)];
      if (place.number == kNone || place.state == state) return place;
    }
  }
  void grow() {
    places_.assign(places_.size() * 2, Place{});
    for (std::uint32_t i = 0; i < states_.size(); ++i) find(states_[i]) = {states_[i], i};
  }
  std::vector<Place> places_;
  std::vector<std::uint64_t> states_;
};

// Finds the name of the step between two states.
class Namer final : public Sink {
 public:
  explicit Namer(std::uint64_t wanted) : wanted_(wanted) {}
  void step(const State& next, const char* what, unsigned who, Duty) override {
    if (pack(next) == wanted_) name = std::string(what) + " [" + std::to_string(who) + "]";
  }
  void violation(Property, const char*) override {}
  void committed(PageEvent) override {}
  std::string name;

 private:
  std::uint64_t wanted_;
};

std::string describe(std::uint64_t packed) {
  const State s = unpack(packed);
  static constexpr const char* kKinds[] = {"none", "system", "shared", "device", "exclusive", "lost"};
  static constexpr const char* kEntries[] = {"-", "r", "w", "poison"};
  std::string text = kKinds[static_cast<unsigned>(s.kind)];
  text += "{" + std::to_string(s.holders) + "} cpu " + kEntries[static_cast<unsigned>(s.entry)];
  text += s.latest != 0 ? " latest" : " old";
  for (const Device& d : s.devices) {
    text += std::string(", dev ") + kEntries[static_cast<unsigned>(d.entry)] + (d.latest != 0 ? " latest" : " old");
    if (d.mapped != 0) text += d.writable != 0 ? " mapped-w" : " mapped";
    if (d.stale != 0) text += " stale";
    if (d.running())
      text += " running";
    else if (d.busy())
      text += " launching";
    if (d.life != Life::Alive) text += " dead";
  }
  return text;
}

class Search final : public Sink {
 public:
  Search(const Config& config, std::size_t most_states) : config_(config), most_(most_states) {}

  Report run() {
    bool added = false;
    (void)table_.number_of(pack(State{}), added);
    parents_.push_back(kNone);
    for (now_ = 0; now_ < table_.size() && !report_.broken; ++now_) {
      if (table_.size() > most_) {
        report_.complete = false;
        break;
      }
      const State state = unpack(table_[now_]);
      if (const auto property = broken_invariant(state)) {
        violation(*property, "");
        break;
      }
      successors(state, config_, *this);
    }
    report_.states = table_.size();
    if (!report_.broken && report_.complete) check_progress();
    return std::move(report_);
  }

  void step(const State& next, const char*, unsigned, Duty duty) override {
    ++report_.transitions;
    bool added = false;
    const std::uint32_t number = table_.number_of(pack(next), added);
    if (added) parents_.push_back(static_cast<std::uint32_t>(now_));
    if (duty == Duty::Must) {
      musts_from_.push_back(static_cast<std::uint32_t>(now_));
      musts_to_.push_back(number);
    }
  }

  void committed(PageEvent event) override { report_.events |= 1u << static_cast<unsigned>(event); }

  void violation(Property property, const char* what) override {
    if (report_.broken) return;
    report_.broken = property;
    if (*what != '\0') report_.trace.push_back(std::string("then: ") + what);
    for (std::uint32_t at = static_cast<std::uint32_t>(now_); at != kNone; at = parents_[at]) {
      Namer namer(table_[at]);
      if (parents_[at] != kNone) successors(unpack(table_[parents_[at]]), config_, namer);
      report_.trace.push_back(namer.name + "  -> " + describe(table_[at]));
    }
    std::reverse(report_.trace.begin(), report_.trace.end());
  }

 private:
  // From every state, the steps that must happen can lead to one in which nobody waits.
  void check_progress() {
    // Predecessors in one array, bucketed by successor.
    std::vector<std::uint32_t> begin(table_.size() + 1, 0);
    for (const std::uint32_t to : musts_to_) ++begin[to + 1];
    for (std::size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
    std::vector<std::uint32_t> from(musts_to_.size());
    std::vector<std::uint32_t> fill(begin.begin(), begin.end() - 1);
    for (std::size_t i = 0; i < musts_to_.size(); ++i) from[fill[musts_to_[i]]++] = musts_from_[i];

    std::vector<bool> served(table_.size(), false);
    std::vector<std::uint32_t> work;
    for (std::uint32_t i = 0; i < table_.size(); ++i) {
      if (somebody_waits(unpack(table_[i]))) continue;
      served[i] = true;
      work.push_back(i);
    }
    while (!work.empty()) {
      const std::uint32_t at = work.back();
      work.pop_back();
      for (std::uint32_t i = begin[at]; i < begin[at + 1]; ++i) {
        if (served[from[i]]) continue;
        served[from[i]] = true;
        work.push_back(from[i]);
      }
    }
    const auto stuck = std::find(served.begin(), served.end(), false);
    if (stuck == served.end()) return;
    now_ = static_cast<std::size_t>(stuck - served.begin());
    violation(Property::NobodyStuck, "nothing that must happen serves everybody");
  }

  const Config& config_;
  const std::size_t most_;
  StateTable table_;
  std::vector<std::uint32_t> parents_;
  std::vector<std::uint32_t> musts_from_;
  std::vector<std::uint32_t> musts_to_;
  std::size_t now_ = 0;
  Report report_;
};

}  // namespace

Report search(const Config& config, std::size_t most_states) { return Search(config, most_states).run(); }

}  // namespace uhmm::model
