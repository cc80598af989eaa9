// SPDX-License-Identifier: Apache-2.0
// GPUs over the doubles of their drivers: the conformance suite, and what only a driver can do wrong.
#include <sys/wait.h>
#include <unistd.h>

#include "backends/vmm/vmm_device.hpp"
#include "tests/conformance/device_conformance.hpp"
#include "tests/support/driver_double.hpp"

namespace uhmm::test {
namespace {

using backend::MapAccess;
using driver_double::Census;
using driver_double::Setting;

vmm::Options options_of(const DriverDouble& driver) {
  vmm::Options options;
  std::snprintf(options.name, sizeof(options.name), "gpu0");
  std::snprintf(options.library, sizeof(options.library), "%s", driver.library);
  options.vendor = driver.vendor;
  options.spill_bytes = std::uint64_t{64} << 20;
  return options;
}

#ifdef UHMM_CUDA_DOUBLE
backend::Device* create_over_cuda() {
  const DriverDouble driver{"Cuda", vmm::Vendor::Cuda, UHMM_CUDA_DOUBLE, "", ""};
  driver.control().reset();
  return vmm::create(options_of(driver));
}
INSTANTIATE_TEST_SUITE_P(CudaDouble, DeviceConformance,
                         testing::Values(DeviceFactory{"CudaDouble", create_over_cuda, vmm::destroy}));
#endif
#ifdef UHMM_HIP_DOUBLE
backend::Device* create_over_hip() {
  const DriverDouble driver{"Hip", vmm::Vendor::Hip, UHMM_HIP_DOUBLE, "", ""};
  driver.control().reset();
  return vmm::create(options_of(driver));
}
INSTANTIATE_TEST_SUITE_P(HipDouble, DeviceConformance,
                         testing::Values(DeviceFactory{"HipDouble", create_over_hip, vmm::destroy}));
#endif

__attribute__((no_sanitize("undefined"))) void store(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  *static_cast<volatile std::uint64_t*>(args->data) = args->value;
}
void add(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  for (std::uint64_t i = 0; i < args->words; ++i) args->data[i] += args->value;
}
// Until the first word is not 0, which only a copy can make so.
void wait_for_word(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const KernelArgs*>(raw);
  while (std::atomic_ref<std::uint64_t>(args->data[0]).load() == 0) {
  }
}

class VmmDevice : public testing::TestWithParam<DriverDouble> {
 protected:
  static constexpr std::size_t kBlocks = 4;

  void SetUp() override {
    control_ = &GetParam().control();
    control_->reset();
    options_ = options_of(GetParam());
    whole_ = mmap(nullptr, (kBlocks + 1) * kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(whole_, MAP_FAILED);
    memory_ = VirtAddr{whole_}.block_floor() + kBlockBytes;
  }
  void TearDown() override {
    close();
    control_->reset();
    munmap(whole_, (kBlocks + 1) * kBlockBytes);
  }

  Status open() {
    device_ = vmm::create(options_);
    return device_->open();
  }
  Status attach() {
    window_ = {{memory_, memory_ + kBlocks * kBlockBytes}, nullptr};
    const Status status = device_->attach({&window_, 1});
    attached_ = status.ok();
    return status;
  }
  void close() {
    if (device_ == nullptr) return;
    if (attached_) device_->detach(window_, window_.range);
    attached_ = false;
    vmm::destroy(device_);
    device_ = nullptr;
  }
  ByteRange block(std::size_t i) const { return {memory_ + i * kBlockBytes, memory_ + (i + 1) * kBlockBytes}; }
  std::uint64_t* words(std::size_t i) const { return static_cast<std::uint64_t*>(block(i).begin.pointer()); }
  Result<backend::Ticket> launch(uhmm_kernel kernel, const KernelArgs& args) {
    backend::Launch request;
    request.kernel = kernel;
    request.args = &args;
    request.args_bytes = sizeof(args);
    return device_->launch(request);
  }
  Status run(uhmm_kernel kernel, const KernelArgs& args) {
    auto ticket = launch(kernel, args);
    return ticket ? device_->wait(*ticket) : ticket.status();
  }
  void expect_nothing_left() {
    const Census left = control_->census();
    EXPECT_EQ(left.reservations, 0u);
    EXPECT_EQ(left.chunks, 0u);
    EXPECT_EQ(left.mappings, 0u);
    EXPECT_EQ(left.streams, 0u);
    EXPECT_EQ(left.events, 0u);
    EXPECT_EQ(left.pinned, 0u);
  }

  const driver_double::Control* control_ = nullptr;
  vmm::Options options_;
  backend::Device* device_ = nullptr;
  backend::Window window_;
  bool attached_ = false;
  void* whole_ = MAP_FAILED;
  VirtAddr memory_;
};

TEST_P(VmmDevice, TheProgramsMemoryAndTheDevicesAreTwoAtOneAddress) {
  ASSERT_TRUE(open().ok()) << last_detail();
  std::uint64_t* here = words(1);
  here[0] = 7;
  ASSERT_TRUE(attach().ok()) << last_detail();
  EXPECT_EQ(here[0], 7u);
  const std::vector<std::uint64_t> there(kPageBytes / 8, 100);
  const ByteRange page{block(1).begin, block(1).begin + kPageBytes};
  ASSERT_TRUE(device_->copy_in(window_, page, reinterpret_cast<const std::byte*>(there.data())).ok());
  here[0] = 8;  // not copied: a kernel doesn't see it
  ASSERT_TRUE(run(add, {here, 1, 5}).ok()) << last_detail();
  std::vector<std::uint64_t> back(kPageBytes / 8);
  ASSERT_TRUE(device_->copy_out(window_, page, reinterpret_cast<std::byte*>(back.data())).ok());
  EXPECT_EQ(back[0], 105u);
  EXPECT_EQ(here[0], 8u);
  close();
  EXPECT_EQ(here[0], 8u);
  here[1] = 9;  // the memory is the program's own, still
  expect_nothing_left();
  EXPECT_EQ(control_->census().pageable_copies, 0u);
}

TEST_P(VmmDevice, AnAccessToAnUnmappedAddressEndsTheDeviceAndItStartsAnew) {
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  ASSERT_TRUE(device_->zero(window_, block(0)).ok());
  EXPECT_EQ(run(store, {words(2), 0, 1}).code(), UHMM_ERR_KERNEL_FAILED);
  EXPECT_NE(std::string(last_detail()).find("ILLEGAL_ADDRESS"), std::string::npos) << last_detail();
  EXPECT_TRUE(device_->lost());
  pollfd entry{device_->death_fd(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 0), 1);
  char reason[192] = {};
  device_->handle_death(reason);
  EXPECT_NE(std::string(reason).find("error 700"), std::string::npos) << reason;
  EXPECT_EQ(device_->zero(window_, block(0)).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_EQ(run(store, {words(0), 0, 1}).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_EQ(device_->map(block(0), MapAccess::ReadWrite).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_FALSE(device_->busy());
  device_->detach(window_, window_.range);
  device_->close();
  expect_nothing_left();
  ASSERT_TRUE(device_->open().ok() && attach().ok()) << last_detail();
  EXPECT_FALSE(device_->lost());
  ASSERT_TRUE(device_->zero(window_, block(2)).ok());
  EXPECT_TRUE(run(store, {words(2), 0, 1}).ok()) << last_detail();
}

TEST_P(VmmDevice, OfSeveralKernelsNoneIsBlamed) {
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  ASSERT_TRUE(device_->zero(window_, block(0)).ok());
  auto innocent = launch(wait_for_word, {words(0), 0, 0});
  ASSERT_TRUE(innocent.ok()) << last_detail();
  EXPECT_EQ(run(store, {words(3), 0, 1}).code(), UHMM_ERR_DEVICE_LOST);
  EXPECT_TRUE(device_->finished(*innocent));
  EXPECT_EQ(device_->wait(*innocent).code(), UHMM_ERR_DEVICE_LOST);
}

TEST_P(VmmDevice, UnmappingWaitsForTheKernelsThatRun) {
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  ASSERT_TRUE(device_->zero(window_, block(0)).ok());
  auto ticket = launch(wait_for_word, {words(0), 0, 0});
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(device_->busy());
  std::atomic<bool> unmapped{false};
  std::thread other([&] {
    EXPECT_TRUE(device_->unmap(std::array{block(1)}).ok()) << last_detail();
    unmapped = true;
  });
  EXPECT_FALSE(device_->finished(*ticket));
  EXPECT_FALSE(unmapped);  // it may not have begun: what counts is that it ends after the kernel
  std::vector<std::uint64_t> ones(kPageBytes / 8, 1);
  const ByteRange page{block(0).begin, block(0).begin + kPageBytes};
  ASSERT_TRUE(device_->copy_in(window_, page, reinterpret_cast<std::byte*>(ones.data())).ok());
  other.join();
  EXPECT_TRUE(device_->finished(*ticket));
  EXPECT_TRUE(device_->wait(*ticket).ok());
}

TEST_P(VmmDevice, WhatDoesNotFitLiesInPinnedMemoryAndThenItIsFull) {
  options_.memory_bytes = kBlockBytes;
  options_.spill_bytes = kBlockBytes;
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  EXPECT_EQ(device_->capabilities().memory_bytes, 2 * kBlockBytes);
  ASSERT_TRUE(device_->zero(window_, block(0)).ok()) << last_detail();
  ASSERT_TRUE(device_->zero(window_, block(1)).ok()) << last_detail();
  EXPECT_EQ(control_->census().device_bytes, kBlockBytes);
  EXPECT_EQ(control_->census().host_bytes, kBlockBytes);
  ASSERT_TRUE(run(store, {words(0), 0, 3}).ok() && run(store, {words(1), 0, 4}).ok()) << last_detail();
  EXPECT_EQ(device_->zero(window_, block(2)).code(), UHMM_ERR_DEVICE_FULL);
  EXPECT_FALSE(device_->lost());
  ASSERT_TRUE(device_->free_memory(window_, block(0)).ok());
  EXPECT_TRUE(device_->zero(window_, block(2)).ok()) << last_detail();
}

TEST_P(VmmDevice, AFullGpuSpillsBeforeItsLimit) {
  control_->set(Setting::DeviceMemory, 2 * kBlockBytes);
  options_.memory_bytes = std::uint64_t{64} << 20;
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  for (std::size_t i = 0; i < 3; ++i) ASSERT_TRUE(device_->zero(window_, block(i)).ok()) << last_detail();
  EXPECT_EQ(control_->census().host_bytes, kBlockBytes);
}

TEST_P(VmmDevice, ADriverThatInsistsOnOtherAddressesIsAStatus) {
  for (const Setting setting : {Setting::RawCalls, Setting::HonourHints}) {
    control_->reset();
    control_->set(setting, setting == Setting::RawCalls ? 1 : 0);
    ASSERT_TRUE(open().ok()) << last_detail();
    EXPECT_EQ(attach().code(), UHMM_ERR_NOT_SUPPORTED);
    EXPECT_NE(*last_detail(), '\0');
    words(0)[0] = 1;
    close();
    expect_nothing_left();
  }
}

TEST_P(VmmDevice, WindowsShareBlocksAndSplit) {
  ASSERT_TRUE(open().ok()) << last_detail();
  backend::Window low{{memory_, memory_ + kBlockBytes + 4 * kPageBytes}, nullptr};
  backend::Window high{{memory_ + kBlockBytes + 4 * kPageBytes, memory_ + 3 * kBlockBytes}, nullptr};
  ASSERT_TRUE(device_->attach({&low, 1}).ok() && device_->attach({&high, 1}).ok()) << last_detail();
  EXPECT_EQ(control_->census().reservations, 2u);
  ASSERT_TRUE(device_->zero(high, {high.range.begin, high.range.begin + kPageBytes}).ok());
  device_->detach(low, low.range);
  ASSERT_TRUE(run(store, {static_cast<std::uint64_t*>(high.range.begin.pointer()), 0, 1}).ok()) << last_detail();
  ASSERT_TRUE(device_->reserve_split().ok());
  backend::Window upper = device_->split(high, memory_ + 2 * kBlockBytes + kPageBytes);
  ASSERT_TRUE(device_->zero(upper, {upper.range.begin, upper.range.begin + kPageBytes}).ok());
  device_->detach(high, high.range);
  ASSERT_TRUE(run(store, {static_cast<std::uint64_t*>(upper.range.begin.pointer()), 0, 1}).ok()) << last_detail();
  device_->detach(upper, upper.range);
  close();
  expect_nothing_left();
}

TEST_P(VmmDevice, DriversThatCantBeUsedSaySo) {
  const auto refused = [&](uhmm_status expected, const char* text) {
    const Status status = open();
    EXPECT_EQ(status.code(), expected) << last_detail();
    EXPECT_NE(std::string(last_detail()).find(text), std::string::npos) << last_detail();
    vmm::destroy(device_);
    device_ = nullptr;
    expect_nothing_left();
    control_->reset();
  };
  control_->set(Setting::NoPermission, 1);
  refused(UHMM_ERR_PERMISSION, "NOT_PERMITTED");
  control_->set(Setting::Devices, 0);
  refused(UHMM_ERR_NO_DEVICE, "NO_DEVICE");
  control_->set(Setting::Vmm, 0);
  refused(UHMM_ERR_NOT_SUPPORTED, "");
  options_.ordinal = 5;
  refused(UHMM_ERR_NO_DEVICE, "5");
  options_.ordinal = 0;
  if (GetParam().vendor == vmm::Vendor::Cuda) {
    control_->set(Setting::Version, 10020);
    refused(UHMM_ERR_NOT_SUPPORTED, "10.2");
  }
  std::snprintf(options_.library, sizeof(options_.library), "libno-such-driver.so.1");
  refused(UHMM_ERR_NOT_SUPPORTED, "libno-such-driver");
  // A library that lacks the functions, as an old driver does.
  std::snprintf(options_.library, sizeof(options_.library), "libc.so.6");
  refused(UHMM_ERR_NOT_SUPPORTED, "too old");
}

TEST_P(VmmDevice, AForkedChildLeavesItAlone) {
  ASSERT_TRUE(open().ok() && attach().ok()) << last_detail();
  ASSERT_TRUE(device_->zero(window_, block(0)).ok());
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = device_->zero(window_, block(0)).code() == UHMM_ERR_FORKED;
    device_->abandon_after_fork();
    device_->close();
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(run(store, {words(0), 0, 1}).ok()) << last_detail();
}

// Everything a device does, while the n-th call of one of the driver's functions fails: what can't be done says so, and
// nothing is left behind.
TEST_P(VmmDevice, EveryCallOfTheDriverMayFail) {
  const std::vector<std::uint64_t> ones(kBlockBytes / 8, 1);
  std::vector<std::uint64_t> back(kBlockBytes / 8);
  for (std::size_t index = 0; const char* function = control_->function(index); ++index) {
    bool failed = true;
    for (std::uint64_t n = 1; failed; n += 1 + n / 2) {
      SCOPED_TRACE(std::string(function) + ", call " + std::to_string(n));
      control_->reset();
      ASSERT_TRUE(control_->fail_call(function, n, 999));
      Status status = open();
      if (status.ok()) status = attach();
      if (status.ok()) status = device_->copy_in(window_, block(1), reinterpret_cast<const std::byte*>(ones.data()));
      if (status.ok()) status = device_->zero(window_, block(2));
      if (status.ok()) status = run(add, {words(1), 100, 4});
      if (status.ok()) status = device_->copy_out(window_, block(1), reinterpret_cast<std::byte*>(back.data()));
      if (status.ok()) {
        EXPECT_EQ(back[0], 5u);
        EXPECT_EQ(back[100], 1u);
        status = device_->free_memory(window_, block(1));
      }
      EXPECT_TRUE(status.ok() || *last_detail() != '\0');
      EXPECT_TRUE(control_->failed() || status.ok()) << last_detail();
      const bool lost = device_->lost();
      close();
      failed = control_->failed();
      // What the driver refused to give back, it still has; a lost device's is gone with its context.
      const std::string name = function;
      const bool gives_back = name.find("Free") != std::string::npos || name.find("Release") != std::string::npos ||
                              name.find("Unmap") != std::string::npos || name.find("Destroy") != std::string::npos ||
                              name.find("Unregister") != std::string::npos || lost;
      if (!failed || !gives_back) expect_nothing_left();
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Doubles, VmmDevice, testing::ValuesIn(driver_doubles()),
                         [](const auto& driver) { return std::string(driver.param.name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(VmmDevice);

}  // namespace
}  // namespace uhmm::test
