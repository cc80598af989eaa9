// SPDX-License-Identifier: Apache-2.0
// The doubles of the GPU drivers, as tests reach them.
#pragma once

#include <dlfcn.h>

#include <ostream>
#include <vector>

#include "backends/vmm/driver.hpp"
#include "runtime/os/process.hpp"
#include "tests/driver_double/control.hpp"

namespace uhmm::test {

struct DriverDouble {
  const char* name = "";
  vmm::Vendor vendor = vmm::Vendor::Cuda;
  const char* library = "";
  const char* create_call = "";  // the vendor's name of some of the calls
  const char* launch_call = "";

  // The library stays loaded, so that its settings outlive the devices over it.
  const driver_double::Control& control() const {
    static std::vector<void*> loaded;
    void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    loaded.push_back(handle);
    const auto get = reinterpret_cast<driver_double::GetControl>(dlsym(handle, driver_double::kControlSymbol));
    get()->tell_of_copies(&os::announce_copy);
    return *get();
  }
};
inline void PrintTo(const DriverDouble& one, std::ostream* out) { *out << one.name; }

// Of the drivers that this build knows.
inline std::vector<DriverDouble> driver_doubles() {
  return {
#ifdef UHMM_CUDA_DOUBLE
      {"Cuda", vmm::Vendor::Cuda, UHMM_CUDA_DOUBLE, "cuMemCreate", "cuLaunchKernel"},
#endif
#ifdef UHMM_HIP_DOUBLE
      {"Hip", vmm::Vendor::Hip, UHMM_HIP_DOUBLE, "hipMemCreate", "hipModuleLaunchKernel"},
#endif
  };
}

}  // namespace uhmm::test
