// SPDX-License-Identifier: Apache-2.0
// A C++20 program of somebody else, built against an installed uhmm.
#include <cstdint>
#include <iostream>
#include <numeric>
#include <uhmm/uhmm.hpp>

int main() {
  constexpr int kSkipped = 77;
  try {
    const uhmm::runtime runtime;
    uhmm::vector<std::uint32_t> numbers(1 << 18);
    std::iota(numbers.begin(), numbers.end(), 7U);
    const auto moved = uhmm::migrate(numbers, 1);
    if (moved.pages_moved == 0) throw std::runtime_error("nothing moved");
    for (std::uint32_t i = 0; i < numbers.size(); ++i) {
      if (numbers[i] != i + 7) throw std::runtime_error("a word is wrong");
    }
    std::cout << "uhmm " << uhmm_version_string() << ": " << moved.pages_moved << " pages there and back\n";
  } catch (const uhmm::error& error) {
    std::cerr << error.what() << "\n";
    return error.status() == UHMM_ERR_NOT_SUPPORTED || error.status() == UHMM_ERR_PERMISSION ? kSkipped : 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
