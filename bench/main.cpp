// SPDX-License-Identifier: Apache-2.0
#include "bench/support.hpp"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  uhmm::bench::add_fault_rows();
  uhmm::bench::add_copy_rows();
  uhmm::bench::add_sweep_rows();
  uhmm::bench::add_scaling_rows();
  uhmm::bench::add_cost_rows();
  uhmm::bench::add_fork_rows();
  benchmark::AddCustomContext("large_bytes", std::to_string(uhmm::bench::large_bytes()));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
