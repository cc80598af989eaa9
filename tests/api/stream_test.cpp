// SPDX-License-Identifier: Apache-2.0
// Streams and fences: order inside one, independence of several, errors.
#include <thread>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class StreamTest : public RuntimeTest {
 protected:
  bool starts_itself() const override { return false; }
  void SetUp() override {
    uhmm_config config = test_config();
    config.soft_devices = 2;
    config.device_workers = 4;  // kernels that wait for each other need a worker each
    start(config);
    control_ = std::make_unique<Memory>(kPage);
    gate_ = control_->as<std::atomic<std::uint64_t>>();
    gate_->store(0);
  }
  void TearDown() override {
    if (gate_ != nullptr && running_) gate_->store(1);
    control_.reset();
    RuntimeTest::TearDown();
  }
  uhmm_stream create(uhmm_processor device = 1) {
    uhmm_stream stream = 0;
    UHMM_EXPECT_OK(uhmm_stream_create(device, &stream));
    return stream;
  }
  static uhmm_fence record(uhmm_stream stream) {
    uhmm_fence fence = 0;
    UHMM_EXPECT_OK(uhmm_fence_record(stream, &fence));
    return fence;
  }
  // The stream stays busy until open_gate().
  void close_gate(uhmm_stream stream) { UHMM_ASSERT_OK(launch(stream, wait_kernel, SpanArgs{nullptr, 0, 0, gate_})); }
  void open_gate() { gate_->store(1); }
  void queue_increment(uhmm_stream stream, const Memory& memory) {
    UHMM_ASSERT_OK(launch(stream, increment_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}, 2));
  }

  std::unique_ptr<Memory> control_;
  std::atomic<std::uint64_t>* gate_ = nullptr;
};

TEST_F(StreamTest, WorkOfOneRunsInOrder) {
  Memory memory(100 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  const SpanArgs fill_again{memory.data(), memory.bytes(), 9, nullptr};
  for (int round = 0; round < 5; ++round) {
    UHMM_ASSERT_OK(launch(stream_, fill_kernel, fill_again, 4));
    for (int i = 0; i < 3; ++i) queue_increment(stream_, memory);
    UHMM_ASSERT_OK(uhmm_migrate_async(memory.data(), memory.bytes(), round % 2 == 0 ? UHMM_CPU : 2u, stream_));
    queue_increment(stream_, memory);
  }
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(9, i)) + 4)) << i;
}

TEST_F(StreamTest, MigrationsTakeTheirPlaceInTheOrder) {
  Memory memory(20 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  close_gate(stream_);
  UHMM_ASSERT_OK(uhmm_migrate_async(memory.data(), memory.bytes(), 1, stream_));
  const uhmm_fence there = record(stream_);
  UHMM_EXPECT_STATUS(UHMM_ERR_TIMEOUT, uhmm_fence_wait(there, 0));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), 20u);
  open_gate();
  UHMM_ASSERT_OK(uhmm_fence_wait(there, UINT64_MAX));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_DEVICE), 20u);
  UHMM_ASSERT_OK(uhmm_migrate_async(memory.data(), memory.bytes(), UHMM_CPU, stream_));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), 20u);
}

TEST_F(StreamTest, SeveralRunBesideEachOther) {
  constexpr std::size_t kStreams = 6;
  std::vector<uhmm_stream> streams;
  std::vector<std::unique_ptr<Memory>> memories;
  close_gate(stream_);  // one that is stuck holds up no other
  for (std::size_t i = 0; i < kStreams; ++i) {
    streams.push_back(create(i % 2 == 0 ? 1 : 2));
    memories.push_back(std::make_unique<Memory>(64 * kPage));
    fill(memories[i]->data(), memories[i]->bytes(), i);
  }
  for (int round = 0; round < 8; ++round)
    for (std::size_t i = 0; i < kStreams; ++i) queue_increment(streams[i], *memories[i]);
  for (std::size_t i = 0; i < kStreams; ++i) {
    UHMM_EXPECT_OK(uhmm_stream_synchronize(streams[i]));
    for (std::size_t at = 0; at < memories[i]->bytes(); ++at)
      ASSERT_EQ(memories[i]->data()[at], static_cast<std::byte>(std::to_integer<int>(pattern(i, at)) + 8));
  }
  open_gate();
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
}

TEST_F(StreamTest, OneStreamFromSeveralThreads) {
  Memory memory(16 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int n = 0; n < 10; ++n) queue_increment(stream_, memory);
      UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
    });
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], std::byte{40}) << i;
}

TEST_F(StreamTest, FencesOrderStreamsAndDevices) {
  Memory memory(100 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  const uhmm_stream other = create(1);
  const uhmm_stream far = create(2);
  close_gate(stream_);
  queue_increment(stream_, memory);
  const uhmm_fence first = record(stream_);
  UHMM_ASSERT_OK(uhmm_stream_wait_fence(far, first));
  // Written by the device that comes second: what the first did must not come after it.
  UHMM_ASSERT_OK(launch(far, fill_kernel, SpanArgs{memory.data(), memory.bytes(), 5, nullptr}, 3));
  const uhmm_fence second = record(far);
  UHMM_ASSERT_OK(uhmm_stream_wait_fence(other, second));
  queue_increment(other, memory);
  // Work that was told to wait still does when the fence is forgotten.
  UHMM_ASSERT_OK(uhmm_fence_destroy(second));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_fence_wait(second, 0));
  const uhmm_fence last = record(other);
  UHMM_EXPECT_STATUS(UHMM_ERR_TIMEOUT, uhmm_fence_wait(last, 0));
  UHMM_EXPECT_STATUS(UHMM_ERR_TIMEOUT, uhmm_fence_wait(last, 1'000'000));
  open_gate();
  UHMM_ASSERT_OK(uhmm_fence_wait(last, UINT64_MAX));
  UHMM_EXPECT_OK(uhmm_fence_wait(last, 0));
  for (std::size_t i = 0; i < memory.bytes(); ++i)
    ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(5, i)) + 1)) << i;
}

TEST_F(StreamTest, FenceOfAnIdleStreamIsComplete) {
  const uhmm_fence fence = record(stream_);
  UHMM_EXPECT_OK(uhmm_fence_wait(fence, UINT64_MAX));
  UHMM_EXPECT_OK(uhmm_fence_wait(fence, 0));
  UHMM_EXPECT_OK(uhmm_fence_destroy(fence));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_fence_destroy(fence));
}

TEST_F(StreamTest, ErrorsAreReportedOnceAndByTheFencesAfterThem) {
  Memory memory(4 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  const uhmm_stream other = create();
  const uhmm_fence before = record(stream_);
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_PINNED, 0));
  UHMM_ASSERT_OK(uhmm_migrate_async(memory.data(), memory.bytes(), 1, stream_));
  queue_increment(other, memory);
  const uhmm_fence after = record(stream_);
  UHMM_EXPECT_OK(uhmm_fence_wait(before, UINT64_MAX));
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_fence_wait(after, UINT64_MAX));
  EXPECT_STRNE(uhmm_error_detail(), "");
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_stream_synchronize(stream_));
  EXPECT_NE(std::string(uhmm_error_detail()).find("pinned"), std::string::npos) << uhmm_error_detail();
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  UHMM_EXPECT_OK(uhmm_stream_synchronize(other));
  // A prefetch is a hint: what it can't do is no error.
  UHMM_ASSERT_OK(uhmm_prefetch(memory.data(), memory.bytes(), 2, stream_));
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  // The last call says it too.
  UHMM_ASSERT_OK(uhmm_migrate_async(memory.data(), memory.bytes(), 2, other));
  UHMM_EXPECT_STATUS(UHMM_ERR_BUSY, uhmm_stream_destroy(other));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_stream_destroy(other));
  UHMM_ASSERT_OK(uhmm_advise(memory.data(), 1, UHMM_ADVISE_UNPINNED, 0));
}

void remember_item(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  auto* seen = reinterpret_cast<std::atomic<std::uint32_t>*>(args->data);
  const std::uint32_t cell = item->index[0] + item->grid[0] * (item->index[1] + item->grid[1] * item->index[2]);
  const bool right = item->device == 1 && item->worker < 4 && args->seed == 0x1234'5678'9abc'def0 &&
                     reinterpret_cast<std::uintptr_t>(raw) % 16 == 0;
  if (cell < args->bytes / sizeof(*seen)) seen[cell].fetch_add(right ? 1 : 1000);
}

TEST_F(StreamTest, KernelIsCalledOncePerCellWithItsArguments) {
  constexpr std::uint32_t kCells = 5 * 7 * 3;
  Memory memory(kCells * sizeof(std::uint32_t));
  uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
  SpanArgs args{memory.data(), memory.bytes(), 0x1234'5678'9abc'def0, nullptr};
  desc.kernel = remember_item;
  desc.args = &args;
  desc.args_size = sizeof(args);
  desc.grid[0] = 5;
  desc.grid[1] = 7;
  desc.grid[2] = 3;
  close_gate(stream_);
  UHMM_ASSERT_OK(uhmm_launch(stream_, &desc));
  args = {};  // the launch has a copy
  open_gate();
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  for (std::uint32_t i = 0; i < kCells; ++i) EXPECT_EQ(memory.as<std::uint32_t>()[i], 1u) << i;
  desc.grid[0] = desc.grid[1] = desc.grid[2] = 0;  // each counts as 1
  args = {memory.data(), memory.bytes(), 0x1234'5678'9abc'def0, nullptr};
  UHMM_ASSERT_OK(uhmm_launch(stream_, &desc));
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  EXPECT_EQ(memory.as<std::uint32_t>()[0], 2u);
  EXPECT_EQ(memory.as<std::uint32_t>()[1], 1u);
}

TEST_F(StreamTest, MostArgumentBytes) {
  Memory memory(kPage);
  struct Args {
    SpanArgs span;
    std::byte rest[UHMM_MAX_ARGS_BYTES - sizeof(SpanArgs)];
  } args{{memory.data(), kPage, 3, nullptr}, {}};
  static_assert(sizeof(args) == UHMM_MAX_ARGS_BYTES);
  UHMM_ASSERT_OK(run(fill_kernel, args));
  EXPECT_EQ(first_wrong(memory.data(), kPage, 3), kPage);
}

}  // namespace
}  // namespace uhmm::test
