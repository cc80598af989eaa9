// SPDX-License-Identifier: Apache-2.0
// A runtime whose first device is a GPU over a double of its driver.
#pragma once

#include <stdlib.h>

#include "tests/support/driver_double.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {

// The configuration for it; the environment names the library, as users may.
inline uhmm_config gpu_config(const DriverDouble& driver) {
  const bool cuda = driver.vendor == vmm::Vendor::Cuda;
  setenv("UHMM_CUDA_LIBRARY", cuda ? driver.library : "libno-such-driver.so.1", 1);
  setenv("UHMM_HIP_LIBRARY", cuda ? "libno-such-driver.so" : driver.library, 1);
  uhmm_config config = UHMM_CONFIG_INIT;
  config.gpus = 1;
  config.device_memory = std::uint64_t{64} << 20;
  return config;
}

inline void expect_nothing_left(const driver_double::Control& control) {
  const driver_double::Census left = control.census();
  EXPECT_EQ(left.reservations, 0u);
  EXPECT_EQ(left.chunks, 0u);
  EXPECT_EQ(left.mappings, 0u);
  EXPECT_EQ(left.streams, 0u);
  EXPECT_EQ(left.events, 0u);
  EXPECT_EQ(left.pinned, 0u);
}

class GpuTest : public RuntimeTest, public testing::WithParamInterface<DriverDouble> {
 protected:
  void SetUp() override {
    control_ = &GetParam().control();
    control_->reset();
    if (starts_itself()) start(gpu_config(GetParam()));
  }
  void TearDown() override {
    stop();
    if (!leaves_something_) expect_nothing_left(*control_);
    control_->reset();
    unsetenv("UHMM_CUDA_LIBRARY");
    unsetenv("UHMM_HIP_LIBRARY");
  }

  const driver_double::Control* control_ = nullptr;
  bool leaves_something_ = false;
};

inline std::string driver_name(const testing::TestParamInfo<DriverDouble>& driver) { return driver.param.name; }

}  // namespace uhmm::test
