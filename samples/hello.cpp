// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <vector>

#include <uhmm/uhmm.hpp>

int main() {
  uhmm::runtime runtime;                        // a soft device, unless configured otherwise
  std::vector<double> numbers(1'000'000, 3.0);  // ordinary memory
  uhmm::registration managed(numbers);          // devices may use it now
  uhmm::stream stream(uhmm::devices().front());

  double* data = numbers.data();  // the same pointer on both sides
  stream.launch(1000, [data](const uhmm_kernel_item& item) {
    for (int i = 0; i < 1000; ++i) data[item.index[0] * 1000 + i] *= 14.0;
  });
  stream.synchronize();

  std::printf("%g\n", numbers[123'456]);  // 42: a plain load brings the page back
}
