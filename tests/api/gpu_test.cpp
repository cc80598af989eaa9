// SPDX-License-Identifier: Apache-2.0
// Ordinary memory and a GPU, over the doubles of the drivers: what the CPU and kernels see, what waits for what, and
// what becomes of everything when the driver doesn't play along.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/support/gpu_runtime.hpp"

namespace uhmm::test {
namespace {

using driver_double::Setting;

class Gpu : public GpuTest {};

TEST_P(Gpu, IsTheFirstDeviceAndHasNoFaults) {
  std::uint32_t count = 0;
  UHMM_EXPECT_OK(uhmm_device_count(&count));
  EXPECT_EQ(count, 1u);
  const uhmm_device_info info = device_info();
  EXPECT_EQ(info.kind, GetParam().vendor == vmm::Vendor::Cuda ? UHMM_DEVICE_CUDA : UHMM_DEVICE_HIP);
  EXPECT_EQ(info.flags, 0u);
  EXPECT_EQ(info.memory_free, info.memory_bytes);
  EXPECT_EQ(info.process_id, 0);
}

TEST_P(Gpu, KernelsAndTheCpuTakeTurnsOnOrdinaryMemory) {
  const BlockMemory memory(3);
  std::vector<std::byte> shadow(memory.bytes());
  fill(memory.data(), memory.bytes(), 5);
  fill(shadow.data(), shadow.size(), 5);
  for (std::size_t round = 0; round < 4; ++round) {
    device_increment(memory.data(), memory.bytes());
    for (std::byte& value : shadow) value = static_cast<std::byte>(std::to_integer<int>(value) + 1);
    EXPECT_GT(stats().pages_on_devices, 0u);
    for (std::size_t page = round; page < memory.bytes() / kPage; page += 97)
      memory.data()[page * kPage + round] = shadow[page * kPage + round] = static_cast<std::byte>(page * 7 + round);
  }
  EXPECT_EQ(std::memcmp(memory.data(), shadow.data(), shadow.size()), 0);
  EXPECT_EQ(control_->census().pageable_copies, 0u);
}

TEST_P(Gpu, MemoryThatWasNeverTouchedIsZeros) {
  const BlockMemory fresh(1);
  device_increment(fresh.data(), fresh.bytes());
  for (std::size_t i = 0; i < fresh.bytes(); i += 511) ASSERT_EQ(fresh.data()[i], std::byte{1}) << i;
}

struct Node {
  Node* next;
  std::uint64_t value;
};
void sum_list(const uhmm_kernel_item*, void* raw) {
  auto* const* args = static_cast<Node* const*>(raw);
  std::uint64_t sum = 0;
  for (const Node* node = args[0]; node != nullptr; node = node->next) sum += node->value;
  args[1]->value = sum;
}

TEST_P(Gpu, PointersInsideMemoryAreFollowed) {
  const BlockMemory first(1);
  const BlockMemory second(2);
  auto* low = reinterpret_cast<Node*>(first.data());
  auto* high = reinterpret_cast<Node*>(second.data());
  constexpr std::uint64_t kNodes = 3000;
  for (std::uint64_t i = 0; i < kNodes; ++i) {
    Node& node = i % 2 == 0 ? low[i * 11] : high[i * 29];
    node = {i + 1 < kNodes ? (i % 2 == 0 ? &high[(i + 1) * 29] : &low[(i + 1) * 11]) : nullptr, i};
  }
  Node* const args[] = {low, high};
  UHMM_ASSERT_OK(run(sum_list, args, 1));
  EXPECT_EQ(high->value, kNodes * (kNodes - 1) / 2);
}

TEST_P(Gpu, SharedMemoryWorksToo) {
  const Memory whole(3 * kBlock, false, MAP_SHARED | MAP_ANONYMOUS);
  std::byte* data = whole.data() + (kBlock - reinterpret_cast<std::uintptr_t>(whole.data()) % kBlock) % kBlock;
  fill(data, kBlock, 9);
  UHMM_ASSERT_OK(uhmm_register(data, kBlock));
  device_increment(data, kBlock);
  for (std::size_t i = 0; i < kBlock; i += 333)
    ASSERT_EQ(data[i], static_cast<std::byte>(std::to_integer<int>(pattern(9, i)) + 1)) << i;
  UHMM_EXPECT_OK(uhmm_unregister(data));
}

struct GateArgs {
  std::atomic<std::uint32_t>* gate;  // not managed: memory that the double's processes share with the program
  std::uint64_t* word;
};
void pass_gate(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const GateArgs*>(raw);
  args->gate[1].store(1);
  while (args->gate[0].load() == 0) {
  }
  *args->word += 1;
}

TEST_P(Gpu, AnAccessByTheCpuWaitsForTheKernel) {
  const Memory shared(kPage, false, MAP_SHARED | MAP_ANONYMOUS);
  auto* gate = shared.as<std::atomic<std::uint32_t>>();
  const BlockMemory memory(1);
  auto* word = reinterpret_cast<std::uint64_t*>(memory.data());
  *word = 6;
  // Also where it was there before, and the device's entries were taken away since.
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  UHMM_ASSERT_OK(uhmm_revoke(memory.data(), memory.bytes()));
  UHMM_ASSERT_OK(launch(stream_, pass_gate, GateArgs{gate, word}));
  while (gate[1].load() == 0) std::this_thread::yield();
  std::atomic<bool> reading{false};
  std::uint64_t seen = 0;
  std::thread reader([&] {
    reading = true;
    seen = *static_cast<volatile std::uint64_t*>(word);
  });
  while (!reading) std::this_thread::yield();
  gate[0].store(1);
  reader.join();
  EXPECT_EQ(seen, 7u);
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
}

TEST_P(Gpu, LaunchesOfTwoStreamsRunBesideEachOther) {
  const Memory shared(kPage, false, MAP_SHARED | MAP_ANONYMOUS);
  auto* gate = shared.as<std::atomic<std::uint32_t>>();
  const BlockMemory memory(1);
  auto* words = reinterpret_cast<std::uint64_t*>(memory.data());
  uhmm_stream other = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(1, &other));
  UHMM_ASSERT_OK(launch(stream_, pass_gate, GateArgs{gate, words}));
  UHMM_ASSERT_OK(launch(other, pass_gate, GateArgs{gate + 2, words + 1}));
  while (gate[1].load() == 0 || gate[3].load() == 0) std::this_thread::yield();
  gate[0].store(1);
  gate[2].store(1);
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  UHMM_EXPECT_OK(uhmm_stream_destroy(other));
  EXPECT_EQ(words[0] + words[1], 2u);
}

// Threads of the program that never leave their memory alone don't keep kernels from starting.
TEST_P(Gpu, KernelsStartWhileTheCpuGoesOnTouching) {
  const BlockMemory memory(2);
  std::atomic<bool> end{false};
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 2; ++thread)
    threads.emplace_back([&, thread] {
      auto* mine = reinterpret_cast<std::atomic<std::uint64_t>*>(memory.block(thread) + kPage);
      while (!end) mine->fetch_add(1);
    });
  for (int round = 0; round < 10; ++round) device_increment(memory.data(), 1);
  end = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(memory.data()[0], std::byte{10});
}

TEST_P(Gpu, DeviceReadsAndWrites) {
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 3);
  std::vector<std::byte> buffer(3 * kPage + 5);
  UHMM_ASSERT_OK(uhmm_device_read(1, memory.data() + 77, buffer.data(), buffer.size(), nullptr));
  EXPECT_EQ(std::memcmp(buffer.data(), memory.data() + 77, buffer.size()), 0);
  std::fill(buffer.begin(), buffer.end(), std::byte{8});
  UHMM_ASSERT_OK(uhmm_device_write(1, memory.data() + 99, buffer.data(), buffer.size(), nullptr));
  EXPECT_EQ(memory.data()[98], pattern(3, 98));
  EXPECT_EQ(memory.data()[99], std::byte{8});
  EXPECT_EQ(memory.data()[99 + buffer.size()], pattern(3, 99 + buffer.size()));
}

TEST_P(Gpu, MigrationsDiscardsAndReadMostlyMemory) {
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 3);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 40 * kPage, 1, nullptr));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 40u);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 4 * kPage, UHMM_CPU, nullptr));  // few: through a buffer
  EXPECT_EQ(first_wrong(memory.data(), 4 * kPage, 3), 4 * kPage);
  UHMM_ASSERT_OK(uhmm_discard(memory.data() + 8 * kPage, kPage));
  EXPECT_EQ(memory.data()[8 * kPage + 9], std::byte{0});
  // A kernel may always write there, so a copy beside it can't be kept: reading takes the page home.
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), memory.bytes(), UHMM_ADVISE_READ_MOSTLY, 0));
  EXPECT_EQ(memory.data()[20 * kPage], pattern(3, 20 * kPage));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SHARED), 0u);
}

TEST_P(Gpu, ASoftDeviceBesideIt) {
  start_with([&](uhmm_config& config) {
    config = gpu_config(GetParam());
    config.soft_devices = 1;
  });
  uhmm_stream soft = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(2, &soft));
  EXPECT_EQ(device_info(2).kind, UHMM_DEVICE_SOFT);
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 1);
  for (int round = 0; round < 3; ++round) {
    device_increment(memory.data(), memory.bytes());
    UHMM_ASSERT_OK(launch(soft, increment_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}));
    UHMM_ASSERT_OK(uhmm_stream_synchronize(soft));
  }
  for (std::size_t i = 0; i < memory.bytes(); i += 77)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 6)) << i;
  UHMM_EXPECT_OK(uhmm_stream_destroy(soft));
}

TEST_P(Gpu, AChildGetsItsCopiesAndNoGpu) {
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 4);
  device_increment(memory.data(), memory.bytes());
  const pid_t child = fork();
  if (child == 0) {
    const bool whole = memory.data()[100] == static_cast<std::byte>(std::to_integer<int>(pattern(4, 100)) + 1);
    const bool refused =
        launch(stream_, increment_kernel, SpanArgs{memory.data(), kPage, 0, nullptr}) == UHMM_ERR_FORKED;
    _exit(whole && refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(memory.data()[100], static_cast<std::byte>(std::to_integer<int>(pattern(4, 100)) + 2));
}

__attribute__((no_sanitize("undefined"))) void store_kernel(const uhmm_kernel_item*, void* raw) {
  *static_cast<const SpanArgs*>(raw)->data = std::byte{1};
}

TEST_P(Gpu, AKernelThatGoesAstrayLosesWhatWasThereAndNothingElse) {
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 6);
  const BlockMemory unmapped(1, false);
  UHMM_ASSERT_OK(uhmm_register(unmapped.data(), unmapped.bytes()));
  device_increment(memory.data(), kPage);
  UHMM_ASSERT_OK(uhmm_unregister(unmapped.data()));
  memory.data()[5 * kPage] = std::byte{77};  // home again, and its neighbours with it perhaps
  const std::size_t away = pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE);
  EXPECT_GT(away, 0u);
  EXPECT_EQ(run(store_kernel, SpanArgs{reinterpret_cast<std::byte*>(std::uintptr_t{64}), 1, 0, nullptr}, 1),
            UHMM_ERR_KERNEL_FAILED);
  EXPECT_NE(std::string(uhmm_error_detail()).find("ILLEGAL_ADDRESS"), std::string::npos) << uhmm_error_detail();
  EXPECT_NE(device_info().flags & UHMM_DEVICE_IS_LOST, 0u);
  EXPECT_NE(device_info().lost_reason[0], '\0');
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_LOST), memory.bytes() / kPage);
  EXPECT_EQ(raised_by_read(memory.data()).signal, SIGBUS);
  unmapped.data()[0] = std::byte{3};
  const BlockMemory later(1);
  fill(later.data(), later.bytes(), 2);
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_LOST, run(increment_kernel, SpanArgs{later.data(), kPage, 0, nullptr}, 1));
  EXPECT_EQ(first_wrong(later.data(), later.bytes(), 2), later.bytes());

  UHMM_ASSERT_OK(uhmm_device_restart(1));
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
  device_increment(later.data(), later.bytes());
  EXPECT_EQ(later.data()[9], static_cast<std::byte>(std::to_integer<int>(pattern(2, 9)) + 1));
  EXPECT_EQ(memory.data()[0], std::byte{0});
  may_lose_data_ = true;
}

TEST_P(Gpu, WhatFitsNowhereIsAnErrorOfTheLaunch) {
  stop();
  control_->set(Setting::HostChunks, 0);
  control_->set(Setting::DeviceMemory, 3 * kBlock);
  start(gpu_config(GetParam()));
  const BlockMemory memory(5);
  fill(memory.data(), memory.bytes(), 8);
  UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_FULL, run(increment_kernel, SpanArgs{memory.data(), kPage, 0, nullptr}, 1));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 8), memory.bytes());
}

TEST_P(Gpu, WhatDoesNotFitOnTheGpuIsReachedInSystemMemory) {
  stop();
  control_->set(Setting::DeviceMemory, 3 * kBlock);
  start(gpu_config(GetParam()));
  const BlockMemory memory(5);
  fill(memory.data(), memory.bytes(), 8);
  device_increment(memory.data(), memory.bytes());
  EXPECT_GT(control_->census().host_bytes, 0u);
  for (std::size_t i = 0; i < memory.bytes(); i += 777)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(8, i)) + 1)) << i;
}

TEST_P(Gpu, ADriverThatInsistsOnItsAddressesIsAnErrorOfTheLaunch) {
  control_->set(Setting::RawCalls, 1);
  const BlockMemory memory(1);
  fill(memory.data(), memory.bytes(), 8);
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, run(increment_kernel, SpanArgs{memory.data(), kPage, 0, nullptr}, 1));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 8), memory.bytes());
}

TEST_P(Gpu, OneIsEnough) {
  uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  desc.kind = device_info().kind;
  uhmm_processor second = 0;
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_device_add(&desc, &second));
  desc.flags = UHMM_DEVICE_COHERENT;
  UHMM_EXPECT_STATUS(UHMM_ERR_INVALID, uhmm_device_add(&desc, &second));
  UHMM_EXPECT_OK(uhmm_device_remove(1));
  desc.flags = 0;
  desc.memory_bytes = 3 * kBlock;
  UHMM_ASSERT_OK(uhmm_device_add(&desc, &second));
  EXPECT_GE(device_info(second).memory_bytes, 3 * kBlock);
}

class GpuStart : public GpuTest {
 protected:
  bool starts_itself() const override { return false; }
};

TEST_P(GpuStart, FailsWithTheDriversWords) {
  uhmm_config config = gpu_config(GetParam());
  const auto refused = [&](uhmm_status expected) {
    UHMM_EXPECT_STATUS(expected, uhmm_init(&config));
    EXPECT_NE(*uhmm_error_detail(), '\0');
    control_->reset();
  };
  control_->set(Setting::Devices, 0);
  refused(UHMM_ERR_NO_DEVICE);
  control_->set(Setting::NoPermission, 1);
  refused(UHMM_ERR_PERMISSION);
  control_->set(Setting::Vmm, 0);
  refused(UHMM_ERR_NOT_SUPPORTED);
  config.fault_rung = UHMM_FAULTS_SIGNAL;
  refused(UHMM_ERR_NOT_SUPPORTED);
  config.fault_rung = UHMM_FAULTS_AUTO;
  setenv("UHMM_CUDA_LIBRARY", "libno-such-driver.so.1", 1);
  setenv("UHMM_HIP_LIBRARY", "libno-such-driver.so", 1);
  refused(UHMM_ERR_NOT_SUPPORTED);
}

TEST_P(GpuStart, OfTwoVendorsOneHasToBeNamed) {
  const std::vector<DriverDouble> all = driver_doubles();
  if (all.size() < 2) GTEST_SKIP() << "this build knows one driver";
  uhmm_config config = gpu_config(GetParam());
  setenv("UHMM_CUDA_LIBRARY", all[0].library, 1);
  setenv("UHMM_HIP_LIBRARY", all[1].library, 1);
  UHMM_EXPECT_STATUS(UHMM_ERR_CONFIG, uhmm_init(&config));
  const bool cuda = GetParam().vendor == vmm::Vendor::Cuda;
  config.flags |= cuda ? UHMM_CONFIG_GPU_CUDA : UHMM_CONFIG_GPU_HIP;
  start(config);
  EXPECT_EQ(device_info().kind, cuda ? UHMM_DEVICE_CUDA : UHMM_DEVICE_HIP);
}

INSTANTIATE_TEST_SUITE_P(Doubles, Gpu, testing::ValuesIn(driver_doubles()), driver_name);
INSTANTIATE_TEST_SUITE_P(Doubles, GpuStart, testing::ValuesIn(driver_doubles()), driver_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Gpu);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuStart);

}  // namespace
}  // namespace uhmm::test
