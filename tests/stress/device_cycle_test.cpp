// SPDX-License-Identifier: Apache-2.0
// Devices and pools that go, come back and are restarted while other threads use them: nothing is lost, and whoever
// asks at the wrong moment is told so. UHMM_STRESS_SECONDS sets the length (default 4), UHMM_TEST_SEED repeats a run.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "runtime/base/inject.hpp"
#include "tests/support/runtime.hpp"
#include "tests/support/seed.hpp"

namespace uhmm::test {
namespace {

constexpr std::size_t kThreads = 2;
constexpr std::size_t kBytes = std::size_t{5} << 20;
constexpr uhmm_processor kRestarted = 1;
constexpr uhmm_processor kRemoved = 2;

std::chrono::seconds stress_length() {
  const char* wanted = std::getenv("UHMM_STRESS_SECONDS");
  return std::chrono::seconds(wanted != nullptr ? std::atoi(wanted) : 4);
}

// One thread's own memory; only it and its kernels write there.
class User {
 public:
  User(std::uint64_t seed, std::atomic<bool>& stop)
      : random_(seed), stop_(stop), memory_(kBytes, true), words_(reinterpret_cast<std::uint64_t*>(memory_.data())) {
    for (std::size_t i = 0; i < kCount; ++i) shadow_.push_back(words_[i * kStride] = seed + i);
  }
  std::byte* data() { return memory_.data(); }
  void run() {
    UHMM_ASSERT_OK(uhmm_stream_create(kRestarted, &stream_));
    while (!stop_.load() && !testing::Test::HasFailure()) act();
    UHMM_EXPECT_OK(uhmm_stream_destroy(stream_));
    for (std::size_t i = 0; i < kCount; ++i) ASSERT_EQ(words_[i * kStride], shadow_[i]) << "word " << i;
  }
  std::uint64_t served() const { return served_; }

 private:
  static constexpr std::size_t kStride = kPage / sizeof(std::uint64_t) / 4;
  static constexpr std::size_t kCount = kBytes / sizeof(std::uint64_t) / kStride;

  // What a device that goes may answer; nothing else is right.
  bool answered(uhmm_status status, uhmm_processor device) {
    const bool gone = device == kRemoved && status == UHMM_ERR_NO_DEVICE;
    EXPECT_TRUE(status == UHMM_OK || status == UHMM_ERR_BUSY || status == UHMM_ERR_DEVICE_FULL || gone)
        << describe(status);
    if (status == UHMM_OK) ++served_;
    return status == UHMM_OK;
  }
  void act() {
    const std::size_t i = random_() % kCount;
    const auto device = static_cast<uhmm_processor>(1 + random_() % 2);
    std::uint64_t* word = words_ + i * kStride;
    switch (random_() % 7) {
      case 0: *word = shadow_[i] = random_(); break;
      case 1: ASSERT_EQ(*word, shadow_[i]) << "word " << i; break;
      case 2: {
        const std::size_t page = random_() % (kBytes / kPage);
        const std::size_t count = 1 + random_() % (kBytes / kPage - page);
        answered(uhmm_migrate(memory_.page(page), count * kPage, device, nullptr), device);
        break;
      }
      case 3: {
        std::uint64_t value = random_();
        if (answered(uhmm_device_write(device, word, &value, sizeof(value), nullptr), device)) shadow_[i] = value;
        break;
      }
      case 4: {
        std::uint64_t value = 0;
        if (answered(uhmm_device_read(device, word, &value, sizeof(value), nullptr), device)) {
          ASSERT_EQ(value, shadow_[i]) << "word " << i << " read by device " << device;
        }
        break;
      }
      case 5: acquire_and_release(device); break;
      default: {
        // A launch waits while its device is restarted; the stream stays valid.
        const SpanArgs args{reinterpret_cast<std::byte*>(word), 1, 0, nullptr};
        UHMM_ASSERT_OK(launch(stream_, increment_kernel, args, 1));
        UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
        shadow_[i] = (shadow_[i] & ~std::uint64_t{0xff}) | ((shadow_[i] + 1) & 0xff);
      }
    }
  }

  // Not for writing: beside a change of the range's pool, a failure may have given contents up (see uhmm_acquire).
  void acquire_and_release(uhmm_processor device) {
    const std::size_t page = random_() % (kBytes / kPage);
    const std::size_t count = 1 + random_() % std::min<std::size_t>(700, kBytes / kPage - page);
    const uhmm_access access = random_() % 2 != 0 ? UHMM_ACCESS_READ : UHMM_ACCESS_READ_WRITE;
    if (!answered(uhmm_acquire(memory_.page(page), count * kPage, device, access), device)) return;
    UHMM_ASSERT_OK(uhmm_release(memory_.page(page), count * kPage, device, access));
  }

  std::mt19937_64 random_;
  std::atomic<bool>& stop_;
  Memory memory_;
  std::uint64_t* words_;
  std::vector<std::uint64_t> shadow_;
  uhmm_stream stream_ = 0;
  std::uint64_t served_ = 0;
};

TEST(DeviceCycle, NothingIsLostWhileDevicesAndPoolsComeAndGo) {
  uhmm_config config = test_config();
  config.soft_devices = 2;
  config.device_memory = std::uint64_t{32} << 20;
  UHMM_ASSERT_OK(uhmm_init(&config));
  std::atomic<bool> stop{false};
  std::uint64_t rounds = 0;
  {
    std::vector<std::unique_ptr<User>> users;
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < kThreads; ++i) users.push_back(std::make_unique<User>(seed() + i, stop));
    for (auto& user : users) threads.emplace_back([&user] { user->run(); });

    const auto until = std::chrono::steady_clock::now() + stress_length();
    inject::shake(static_cast<std::uint32_t>(seed()));
    for (; std::chrono::steady_clock::now() < until && !testing::Test::HasFailure(); ++rounds) {
      UHMM_EXPECT_OK(uhmm_device_restart(kRestarted));

      uhmm_pool_desc pool_desc = UHMM_POOL_DESC_INIT;
      pool_desc.device = rounds % 2 == 0 ? kRestarted : kRemoved;
      pool_desc.bytes = std::uint64_t{8} << 20;
      uhmm_pool pool = 0;
      UHMM_ASSERT_OK(uhmm_pool_create(&pool_desc, &pool));
      UHMM_EXPECT_OK(uhmm_range_set_pool(users[rounds % kThreads]->data(), pool));
      std::this_thread::yield();
      UHMM_EXPECT_OK(uhmm_pool_destroy(pool));

      UHMM_EXPECT_OK(uhmm_device_remove(kRemoved));
      uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
      desc.memory_bytes = config.device_memory;
      uhmm_processor added = 0;
      UHMM_ASSERT_OK(uhmm_device_add(&desc, &added));
      EXPECT_EQ(added, kRemoved);
      EXPECT_EQ(stats().pages_lost, 0u);
    }
    inject::stop_shaking();
    stop.store(true);
    for (std::thread& thread : threads) thread.join();
    for (auto& user : users) EXPECT_GT(user->served(), 0u);
  }
  EXPECT_GT(rounds, 0u);
  EXPECT_EQ(stats().pages_on_devices, 0u);
  EXPECT_EQ(stats().pages_lost, 0u);
  for (const uhmm_processor device : {kRestarted, kRemoved})
    EXPECT_EQ(device_info(device).memory_free, device_info(device).memory_bytes);
  std::printf("%llu rounds\n", static_cast<unsigned long long>(rounds));
  UHMM_EXPECT_OK(uhmm_shutdown());
}

// Ends the device's process, if it is the one that was meant.
void end_process_kernel(const uhmm_kernel_item*, void* raw) {
  if (getpid() == *static_cast<const pid_t*>(raw)) (void)kill(getpid(), SIGKILL);
}

// The news of a death may come late: it must not end the device's next life.
TEST(DeviceCycle, ARestartBesideADeathEndsWithAHealthyDevice) {
  UHMM_ASSERT_OK(uhmm_init(nullptr));
  {
    Memory memory(64 * kPage);
    fill(memory.data(), memory.bytes(), 1);
    uhmm_stream stream = 0;
    UHMM_ASSERT_OK(uhmm_stream_create(1, &stream));
    std::mt19937_64 random(seed());
    std::uint64_t deaths = 0;
    const auto until = std::chrono::steady_clock::now() + stress_length();
    inject::shake(static_cast<std::uint32_t>(seed()));
    while (std::chrono::steady_clock::now() < until && !testing::Test::HasFailure()) {
      const auto process = static_cast<pid_t>(device_info(1).process_id);
      UHMM_ASSERT_OK(launch(stream, end_process_kernel, process));
      for (std::uint64_t i = random() % 2000; i != 0; --i) std::this_thread::yield();
      UHMM_EXPECT_OK(uhmm_device_restart(1));
      const uhmm_status ran = uhmm_stream_synchronize(stream);
      EXPECT_TRUE(ran == UHMM_OK || ran == UHMM_ERR_DEVICE_LOST || ran == UHMM_ERR_KERNEL_FAILED) << describe(ran);
      if (ran != UHMM_OK) ++deaths;
      EXPECT_EQ(device_info(1).flags & UHMM_DEVICE_IS_LOST, 0u) << device_info(1).lost_reason;
      UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
      EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    }
    inject::stop_shaking();
    EXPECT_EQ(stats().pages_lost, 0u);
    EXPECT_GT(deaths, 0u);
  }
  UHMM_EXPECT_OK(uhmm_shutdown());
}

}  // namespace
}  // namespace uhmm::test
