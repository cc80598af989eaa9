// SPDX-License-Identifier: Apache-2.0
// A program with a GPU, while the n-th call of one of the driver's functions fails, or the n-th step of the runtime's
// own: whatever fails says so, every byte that is not lost is right, and afterwards everything works again.
#include <set>

#include "runtime/base/inject.hpp"
#include "tests/support/gpu_runtime.hpp"

namespace uhmm::test {
namespace {

class GpuSweep : public GpuTest {
 protected:
  bool starts_itself() const override { return false; }

  // The GPU is lost, and with it what was there.
  static bool end(const BlockMemory& memory) {
    (void)uhmm_unregister(memory.data());
    return false;
  }
  // Everything a program does with a GPU. False: the device was lost on the way.
  bool everything(bool failing) {
    const BlockMemory memory(1, false);
    std::vector<std::byte> shadow(memory.bytes());
    fill(memory.data(), memory.bytes(), 3);
    fill(shadow.data(), shadow.size(), 3);
    const auto done = [&](uhmm_status status) {
      EXPECT_TRUE(failing || status == UHMM_OK) << describe(status);
      EXPECT_TRUE(status == UHMM_OK || *uhmm_error_detail() != '\0') << "a failure without a reason";
      return status == UHMM_OK;
    };
    if (!done(uhmm_register(memory.data(), memory.bytes()))) return true;
    const auto lost = [&] { return (device_info().flags & UHMM_DEVICE_IS_LOST) != 0; };
    for (int round = 0; round < 2; ++round) {
      // A kernel whose launch fails has not run; one that ran is counted, whatever was said of it.
      const bool queued = done(launch(stream_, increment_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}));
      // What has no memory to wait with has not waited: the kernel may be about to run.
      if (queued && !done(uhmm_stream_synchronize(stream_))) (void)uhmm_stream_synchronize(stream_);
      if (lost()) return end(memory);
      if (memory.data()[0] != shadow[0])
        for (std::byte& value : shadow) value = static_cast<std::byte>(std::to_integer<int>(value) + 1);
      memory.data()[3 * kPage] = shadow[3 * kPage] = static_cast<std::byte>(round);
      if (lost()) return end(memory);
      (void)done(uhmm_migrate(memory.data(), 20 * kPage, 1, nullptr));
      (void)done(uhmm_migrate(memory.data(), 18 * kPage, UHMM_CPU, nullptr));
      if (lost()) return end(memory);
    }
    // Reading brings it home, piece by piece: a device that is lost meanwhile takes with it what is left there.
    const Raised raised = raised_by([&] { EXPECT_EQ(std::memcmp(memory.data(), shadow.data(), shadow.size()), 0); });
    EXPECT_TRUE(raised.signal == 0 || lost());
    if (!done(uhmm_unregister(memory.data()))) {
      inject::disarm_all();
      EXPECT_TRUE(uhmm_unregister(memory.data()) == UHMM_OK || lost()) << uhmm_error_detail();
    }
    return !lost();
  }
};

TEST_P(GpuSweep, CallsOfTheDriver) {
  for (std::size_t index = 0; const char* function = control_->function(index); ++index) {
    bool failed = true;
    for (std::uint64_t n = 1; failed; n += 1 + n) {
      SCOPED_TRACE(std::string(function) + ", call " + std::to_string(n));
      start(gpu_config(GetParam()));
      const std::uint64_t before = control_->calls(function);
      ASSERT_TRUE(control_->fail_call(function, n, 999));
      may_lose_data_ = !everything(true);
      failed = control_->failed();
      (void)control_->fail_call(function, 0, 0);
      if (may_lose_data_) UHMM_EXPECT_OK(uhmm_device_restart(1));
      (void)everything(false);
      EXPECT_TRUE(failed || control_->calls(function) >= before);
      stop();
      control_->reset();
      if (HasFailure()) return;
    }
  }
}

TEST_P(GpuSweep, StepsOfTheRuntime) {
  using inject::Point;
  std::set<Point> reached;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(Point::kCount); ++i) {
    const auto point = static_cast<Point>(i);
    bool fired = true;
    for (std::uint64_t n = 1; fired; n += 1 + n) {
      SCOPED_TRACE(std::string(inject::name(point)) + ", call " + std::to_string(n));
      start(gpu_config(GetParam()));
      inject::arm(point, n);
      may_lose_data_ = !everything(true);
      fired = inject::fired(point);
      inject::disarm_all();
      EXPECT_FALSE(may_lose_data_) << device_info().lost_reason;
      (void)everything(false);
      stop();
      if (HasFailure()) return;
      if (fired) reached.insert(point);
    }
  }
  for (const Point point : {Point::DeviceCopyIn, Point::DeviceCopyOut, Point::DeviceLaunch, Point::DeviceAttach,
                            Point::MoveOut, Point::MoveIn, Point::CopyToManaged, Point::StagingAcquire})
    EXPECT_EQ(reached.count(point), 1u) << inject::name(point) << " never failed";
}

INSTANTIATE_TEST_SUITE_P(Doubles, GpuSweep, testing::ValuesIn(driver_doubles()), driver_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuSweep);

}  // namespace
}  // namespace uhmm::test
