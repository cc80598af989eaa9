// SPDX-License-Identifier: Apache-2.0
// A GPU on ordinary memory, by CUDA: see ../gpu/checks.hpp.
#include <cuda_runtime.h>

#include "checks.hpp"

namespace {

template <typename Kernel>
uhmm_kernel handle_of(Kernel kernel) {
  cudaFunction_t function = nullptr;
  const cudaError_t error = cudaGetFuncBySymbol(&function, reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) {
    std::printf("cudaGetFuncBySymbol: %s\n", cudaGetErrorString(error));
    std::exit(1);
  }
  return reinterpret_cast<uhmm_kernel>(function);
}

}  // namespace

int main() {
  return run_checks(UHMM_CONFIG_GPU_CUDA, [] {
    return gpu_kernels{handle_of(add_vectors), handle_of(sum_list), handle_of(smooth)};
  });
}
