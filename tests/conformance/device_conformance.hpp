// SPDX-License-Identifier: Apache-2.0
// What every backend must do, as a suite over a factory. Instantiate it with
//   INSTANTIATE_TEST_SUITE_P(Soft, DeviceConformance, testing::Values(DeviceFactory{...}));
//   INSTANTIATE_TEST_SUITE_P(Soft, FaultingDeviceConformance, testing::Values(DeviceFactory{...}));
// Kernels here are C++ functions: a backend whose kernels are something else gives its own.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/backend/device.hpp"

namespace uhmm::test {

struct DeviceFactory {
  const char* name = "";
  backend::Device* (*create)() = nullptr;
  void (*destroy)(backend::Device*) = nullptr;
  void PrintTo(std::ostream* out) const { *out << name; }
};
inline void PrintTo(const DeviceFactory& factory, std::ostream* out) { *out << factory.name; }

// Arguments of the test kernels.
struct KernelArgs {
  std::uint64_t* data = nullptr;
  std::uint64_t words = 0;
  std::uint64_t value = 0;
};

// Serves a device's faults on its own thread, as the runtime's service threads do. The default answer is a zeroed,
// writable page; `answer` replaces it.
class FaultServer {
 public:
  explicit FaultServer(backend::Device& device, const backend::Window& window) : device_(device), window_(window) {}
  ~FaultServer() { stop(); }

  void start(std::function<void(const backend::DeviceFault&)> answer = {}) {
    answer_ = std::move(answer);
    thread_ = std::thread([this] { serve(); });
  }
  void stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  std::vector<backend::DeviceFault> seen() const {
    std::scoped_lock lock(mutex_);
    return seen_;
  }

 private:
  void serve() {
    while (!stop_) {
      pollfd entry{device_.fault_fd(), POLLIN, 0};
      if (poll(&entry, 1, 10) <= 0) continue;
      std::array<backend::DeviceFault, 16> faults;
      const std::size_t count = device_.read_faults(faults);
      for (std::size_t i = 0; i < count; ++i) {
        {
          std::scoped_lock lock(mutex_);
          seen_.push_back(faults[i]);
        }
        if (answer_)
          answer_(faults[i]);
        else
          give_page(faults[i].address);
      }
    }
  }
  void give_page(VirtAddr address) {
    const ByteRange page{address, address + kPageBytes};
    if (device_.lost()) return;
    EXPECT_TRUE(device_.zero(window_, page).ok()) << last_detail();
    EXPECT_TRUE(device_.map(page, backend::MapAccess::ReadWrite).ok()) << last_detail();
  }

  backend::Device& device_;
  const backend::Window& window_;
  std::function<void(const backend::DeviceFault&)> answer_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  mutable std::mutex mutex_;
  std::vector<backend::DeviceFault> seen_;
};

class DeviceConformance : public testing::TestWithParam<DeviceFactory> {
 protected:
  static constexpr std::size_t kPages = 600;  // more than a block
  static constexpr std::size_t kBytes = kPages * kPageBytes;
  static constexpr std::size_t kSparePages = 8;  // behind the window
  static constexpr std::size_t kWhole = 4 * kBlockBytes;
  static_assert(3 * kPageBytes + kBytes + kSparePages * kPageBytes <= 2 * kBlockBytes);

  void SetUp() override {
    device_ = GetParam().create();
    ASSERT_NE(device_, nullptr);
    ASSERT_TRUE(device_->open().ok()) << last_detail();
    // Blocks of its own, begun and ended inside one: a device may map memory in whole blocks.
    whole_ = mmap(nullptr, kWhole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(whole_, MAP_FAILED);
    memory_ = (VirtAddr{whole_}.block_floor() + kBlockBytes + 3 * kPageBytes).pointer();
    attach();
  }
  void TearDown() override {
    if (device_ == nullptr) return;
    if (attached_) device_->detach(window_, window_.range);
    device_->close();
    GetParam().destroy(device_);
    if (whole_ != MAP_FAILED) munmap(whole_, kWhole);
  }

  void attach() {
    window_ = {{VirtAddr{memory_}, VirtAddr{memory_} + kBytes}, nullptr};
    ASSERT_TRUE(device_->attach({&window_, 1}).ok()) << last_detail();
    attached_ = true;
  }
  ByteRange pages(std::size_t first, std::size_t count) const {
    return {VirtAddr{memory_} + first * kPageBytes, VirtAddr{memory_} + (first + count) * kPageBytes};
  }
  std::uint64_t* words(std::size_t page) const {
    return reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(memory_) + page * kPageBytes);
  }
  // Pages with `value` + word index, mapped.
  void fill(std::size_t first, std::size_t count, std::uint64_t value, backend::MapAccess access) {
    std::vector<std::uint64_t> data(count * kPageBytes / 8);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = value + i;
    ASSERT_TRUE(device_->copy_in(window_, pages(first, count), as_bytes(data)).ok()) << last_detail();
    ASSERT_TRUE(device_->map(pages(first, count), access).ok()) << last_detail();
  }
  std::vector<std::uint64_t> contents(std::size_t first, std::size_t count) {
    std::vector<std::uint64_t> data(count * kPageBytes / 8, ~0ull);
    EXPECT_TRUE(device_->copy_out(window_, pages(first, count), as_bytes(data)).ok()) << last_detail();
    return data;
  }
  static std::byte* as_bytes(std::vector<std::uint64_t>& data) { return reinterpret_cast<std::byte*>(data.data()); }

  Result<backend::Ticket> launch(uhmm_kernel kernel, const KernelArgs& args, std::uint32_t x = 1, std::uint32_t y = 1,
                                 std::uint32_t z = 1) {
    UHMM_TRY(device_->check_kernel(kernel));
    backend::Launch request;
    request.kernel = kernel;
    request.args = &args;
    request.args_bytes = sizeof(args);
    request.grid[0] = x;
    request.grid[1] = y;
    request.grid[2] = z;
    return device_->launch(request);
  }
  Status run(uhmm_kernel kernel, const KernelArgs& args, std::uint32_t x = 1, std::uint32_t y = 1,
             std::uint32_t z = 1) {
    auto ticket = launch(kernel, args, x, y, z);
    return ticket ? device_->wait(*ticket) : ticket.status();
  }
  // Waits for the death signal and returns the reason.
  std::string death() {
    pollfd entry{device_->death_fd(), POLLIN, 0};
    EXPECT_EQ(poll(&entry, 1, 10000), 1) << "no sign of the device's death";
    char reason[192] = {};
    device_->handle_death(reason);
    EXPECT_TRUE(device_->lost());
    return reason;
  }

  backend::Device* device_ = nullptr;
  void* whole_ = MAP_FAILED;
  void* memory_ = nullptr;
  bool attached_ = false;
  backend::Window window_;
};

// What only a device with page faults promises: instantiate it for those as well.
class FaultingDeviceConformance : public DeviceConformance {};

}  // namespace uhmm::test
