// SPDX-License-Identifier: Apache-2.0
// A GPU on ordinary memory, by HIP: see ../gpu/checks.hpp. The kernels are in a code object beside the program.
#include <hip/hip_runtime.h>
#include <unistd.h>

#include <string>

#include "checks.hpp"

namespace {

uhmm_kernel handle_of(hipModule_t module, const char* name) {
  hipFunction_t function = nullptr;
  if (const hipError_t error = hipModuleGetFunction(&function, module, name); error != hipSuccess) {
    std::printf("hipModuleGetFunction: %s\n", hipGetErrorString(error));
    std::exit(1);
  }
  return reinterpret_cast<uhmm_kernel>(function);
}

}  // namespace

int main(int, char** arguments) {
  return run_checks(UHMM_CONFIG_GPU_HIP, [arguments] {
    const std::string file = std::string(arguments[0]) + ".co";
    hipModule_t module = nullptr;
    if (const hipError_t error = hipModuleLoad(&module, file.c_str()); error != hipSuccess) {
      std::printf("%s: %s\n", file.c_str(), hipGetErrorString(error));
      std::exit(1);
    }
    return gpu_kernels{handle_of(module, "add_vectors"), handle_of(module, "sum_list"), handle_of(module, "smooth")};
  });
}
