// SPDX-License-Identifier: Apache-2.0
// What can happen next. See steps.cpp.
#pragma once

#include "tests/model/state.hpp"

namespace uhmm::model {

enum class Duty : std::uint8_t {
  May,   // somebody's wish, or bad luck
  Must,  // happens sooner or later if nothing else does
};

// Receives successors and violations.
class Sink {
 public:
  virtual void step(const State& next, const char* what, unsigned who, Duty duty) = 0;
  virtual void violation(Property property, const char* what) = 0;
  virtual void committed(PageEvent event) = 0;

 protected:
  ~Sink() = default;
};

void successors(const State& state, const Config& config, Sink& sink);
// A property of states that this one breaks.
std::optional<Property> broken_invariant(const State& state);
// Does a processor wait for the page?
bool somebody_waits(const State& state);

}  // namespace uhmm::model
