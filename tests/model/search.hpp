// SPDX-License-Identifier: Apache-2.0
// Visits every reachable state of a configuration and checks every property on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/model/state.hpp"

namespace uhmm::model {

struct Report {
  std::size_t states = 0;
  std::size_t transitions = 0;
  bool complete = true;            // false: the limit was reached
  std::uint32_t events = 0;        // bit per PageEvent that was committed
  std::optional<Property> broken;  // what does not hold
  std::vector<std::string> trace;  // how to get there
};

Report search(const Config& config, std::size_t most_states);

}  // namespace uhmm::model
