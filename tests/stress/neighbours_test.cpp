// SPDX-License-Identifier: Apache-2.0
// Two ranges that meet inside a page: the lower one answers for it. These are the moments at which the answer changes
// hands (the other range comes, goes, or was never sent anywhere), one by one and then at random.
#include <unistd.h>

#include <optional>
#include <random>

#include "tests/support/runtime.hpp"
#include "tests/support/seed.hpp"

namespace uhmm::test {
namespace {

constexpr std::size_t kPages = 9;
constexpr std::size_t kMeeting = 4 * kPage + 1000;  // inside the fifth page

struct Kind {
  const char* name;
  std::uint32_t flags;
  int mapping;
};
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for it
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

class Neighbours : public RuntimeTest, public testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    uhmm_config config = test_config();
    config.flags |= GetParam().flags;
    start(config);
    memory_.emplace(kPages * kPage, false, GetParam().mapping);
    lower_ = memory_->data();
    upper_ = lower_ + kMeeting;
    fill(lower_, memory_->bytes(), 1);
  }
  void TearDown() override {
    RuntimeTest::TearDown();
    memory_.reset();
  }
  void add_lower() { UHMM_ASSERT_OK(uhmm_register(lower_, kMeeting)); }
  void add_upper() { UHMM_ASSERT_OK(uhmm_register(upper_, memory_->bytes() - kMeeting)); }
  std::size_t upper_bytes() const { return memory_->bytes() - kMeeting; }
  void expect_contents(std::uint64_t seed) { EXPECT_EQ(first_wrong(lower_, memory_->bytes(), seed), memory_->bytes()); }
  void expect_nothing_left() {
    const uhmm_stats now = stats();
    EXPECT_EQ(now.pages_on_devices, 0u);
    EXPECT_EQ(now.ranges, 0u);
    EXPECT_EQ(now.pages_lost, 0u);
    EXPECT_EQ(device_info().memory_free, device_info().memory_bytes);
  }

  std::optional<Memory> memory_;
  std::byte* lower_ = nullptr;
  std::byte* upper_ = nullptr;
};

TEST_P(Neighbours, LowerOneComesWhileThePageIsAway) {
  add_upper();
  UHMM_ASSERT_OK(uhmm_migrate(upper_, upper_bytes(), 1, nullptr));
  add_lower();
  expect_contents(1);
  device_increment(lower_, memory_->bytes());
  UHMM_EXPECT_OK(uhmm_unregister(upper_));
  UHMM_EXPECT_OK(uhmm_unregister(lower_));
  for (std::size_t i = 0; i < memory_->bytes(); ++i)
    ASSERT_EQ(lower_[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
  expect_nothing_left();
}

TEST_P(Neighbours, UpperOneComesWhileThePageIsAway) {
  add_lower();
  UHMM_ASSERT_OK(uhmm_migrate(lower_, kMeeting, 1, nullptr));
  add_upper();
  expect_contents(1);
  device_increment(lower_, memory_->bytes());
  UHMM_EXPECT_OK(uhmm_unregister(lower_));
  UHMM_EXPECT_OK(uhmm_unregister(upper_));
  for (std::size_t i = 0; i < memory_->bytes(); ++i)
    ASSERT_EQ(lower_[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
  expect_nothing_left();
}

TEST_P(Neighbours, LowerOneGoesAndTheDeviceKeptMemory) {
  add_lower();
  add_upper();
  // The page has memory on the device by way of the lower range; the upper one was never made reachable.
  UHMM_ASSERT_OK(uhmm_migrate(lower_, kMeeting, 1, nullptr));
  UHMM_ASSERT_OK(uhmm_migrate(lower_, kMeeting, UHMM_CPU, nullptr));
  UHMM_ASSERT_OK(uhmm_unregister(lower_));
  UHMM_EXPECT_OK(uhmm_discard(upper_, upper_bytes()));
  UHMM_EXPECT_OK(uhmm_migrate(upper_, upper_bytes(), 1, nullptr));
  EXPECT_EQ(first_wrong(lower_, kMeeting, 1), kMeeting);
  UHMM_EXPECT_OK(uhmm_unregister(upper_));
  expect_nothing_left();
}

TEST_P(Neighbours, UpperOneGoesWhileThePageIsAway) {
  add_lower();
  add_upper();
  UHMM_ASSERT_OK(uhmm_migrate(lower_, memory_->bytes(), 1, nullptr));
  UHMM_EXPECT_OK(uhmm_unregister(upper_));
  expect_contents(1);
  UHMM_ASSERT_OK(uhmm_migrate(lower_, kMeeting, 1, nullptr));
  UHMM_EXPECT_OK(uhmm_unregister(lower_));
  expect_contents(1);
  expect_nothing_left();
}

// After both are gone nobody serves faults of the page: it must be ordinary memory again.
TEST_P(Neighbours, NothingIsWatchedAfterBothWent) {
  add_lower();
  add_upper();
  UHMM_ASSERT_OK(uhmm_migrate(lower_, kMeeting, 1, nullptr));
  expect_contents(1);
  UHMM_ASSERT_OK(uhmm_unregister(lower_));
  UHMM_ASSERT_OK(uhmm_unregister(upper_));
  ASSERT_EQ(madvise(lower_, memory_->bytes(), MADV_DONTNEED), 0);
  for (std::size_t page = 0; page < kPages; ++page) *memory_->page(page) = std::byte{7};
  expect_nothing_left();
}

// A refused request changes nothing: the memory is watched as before.
TEST_P(Neighbours, OverlappingRegistrationIsRefusedAndChangesNothing) {
  add_lower();
  device_increment(lower_, kMeeting);
  ASSERT_GT(pages_in_state(lower_, kMeeting, UHMM_PAGE_DEVICE), 0u);
  UHMM_EXPECT_STATUS(UHMM_ERR_OVERLAP, uhmm_register(lower_ + 100, memory_->bytes() - 100));
  for (std::size_t i = 0; i < kMeeting; ++i)
    ASSERT_EQ(lower_[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + 1)) << i;
  UHMM_EXPECT_OK(uhmm_unregister(lower_));
}

// A kernel works on the lower range all the while: it waits at the page that changes hands, and goes on.
TEST_P(Neighbours, UpperOneComesAndGoesBesideAKernel) {
  constexpr int kRounds = 60;
  add_lower();
  for (int round = 1; round <= kRounds; ++round) {
    UHMM_ASSERT_OK(launch(stream_, increment_kernel, SpanArgs{lower_, kMeeting, 0, nullptr}, 2));
    add_upper();
    *upper_ = static_cast<std::byte>(round);
    UHMM_ASSERT_OK(uhmm_migrate(upper_, upper_bytes(), 1, nullptr));
    ASSERT_EQ(*upper_, static_cast<std::byte>(round));
    UHMM_ASSERT_OK(uhmm_unregister(upper_));
  }
  UHMM_ASSERT_OK(uhmm_stream_synchronize(stream_));
  for (std::size_t i = 0; i < kMeeting; ++i)
    ASSERT_EQ(lower_[i], static_cast<std::byte>(std::to_integer<int>(pattern(1, i)) + kRounds)) << i;
  for (std::size_t i = kMeeting + 1; i < memory_->bytes(); ++i) ASSERT_EQ(lower_[i], pattern(1, i)) << i;
  UHMM_EXPECT_OK(uhmm_unregister(lower_));
  expect_nothing_left();
}

// Both come and go at random, computed on by the device and by the CPU.
TEST_P(Neighbours, AtRandom) {
  std::mt19937_64 random(seed());
  std::vector<std::byte> shadow(lower_, lower_ + memory_->bytes());
  bool here[2] = {false, false};
  const auto piece = [&](int which) {
    return std::pair{which == 0 ? lower_ : upper_, which == 0 ? kMeeting : upper_bytes()};
  };
  for (int step = 0; step < 600 && !HasFailure(); ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const int which = static_cast<int>(random() % 2);
    const auto [data, bytes] = piece(which);
    const auto offset = static_cast<std::size_t>(data - lower_);
    if (!here[which]) {
      UHMM_ASSERT_OK(uhmm_register(data, bytes));
      here[which] = true;
      continue;
    }
    switch (random() % 8) {
      case 0:
        UHMM_ASSERT_OK(uhmm_unregister(data));
        here[which] = false;
        break;
      case 1: UHMM_ASSERT_OK(uhmm_migrate(data, bytes, 1, nullptr)); break;
      case 2: UHMM_ASSERT_OK(uhmm_migrate(data, bytes, UHMM_CPU, nullptr)); break;
      case 3:
        device_increment(data, bytes);
        for (std::size_t i = 0; i < bytes; ++i)
          shadow[offset + i] = static_cast<std::byte>(std::to_integer<int>(shadow[offset + i]) + 1);
        break;
      case 4: UHMM_ASSERT_OK(run(touch_kernel, SpanArgs{data, bytes, 0, nullptr})); break;
      case 5: {
        const std::size_t i = offset + random() % bytes;
        lower_[i] = shadow[i] = static_cast<std::byte>(random());
        break;
      }
      case 6: {
        const std::size_t first = (offset + kPage - 1) / kPage * kPage;
        const std::size_t end = (offset + bytes) / kPage * kPage;
        UHMM_ASSERT_OK(uhmm_discard(data, bytes));
        std::fill(shadow.begin() + static_cast<std::ptrdiff_t>(first),
                  shadow.begin() + static_cast<std::ptrdiff_t>(end), std::byte{0});
        break;
      }
      default: ASSERT_EQ(std::memcmp(data, shadow.data() + offset, bytes), 0); break;
    }
  }
  ASSERT_EQ(std::memcmp(lower_, shadow.data(), shadow.size()), 0);
  for (int which = 0; which < 2; ++which)
    if (here[which]) UHMM_EXPECT_OK(uhmm_unregister(piece(which).first));
  ASSERT_EQ(std::memcmp(lower_, shadow.data(), shadow.size()), 0);
  expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(Kinds, Neighbours,
                         testing::Values(Kind{"Move", 0, MAP_PRIVATE | MAP_ANONYMOUS},
                                         Kind{"NoMove", UHMM_CONFIG_NO_MOVE, MAP_PRIVATE | MAP_ANONYMOUS},
                                         Kind{"Shared", 0, MAP_SHARED | MAP_ANONYMOUS},
                                         Kind{"Coherent", UHMM_CONFIG_COHERENT, MAP_PRIVATE | MAP_ANONYMOUS}),
                         [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace uhmm::test
