// SPDX-License-Identifier: Apache-2.0
// Every failure point, in every way memory moves: let the n-th call fail and do everything; whatever fails must say so,
// and every byte must be right; then the same without failures must succeed. n grows until the point is reached no
// more.
#include <set>

#include "runtime/base/inject.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

using inject::Point;

struct Way {
  const char* name;
  std::uint32_t flags;
  int mapping;
  bool huge = false;  // the larger memory consists of huge pages
};
constexpr Way kWays[] = {{"Move", 0, MAP_PRIVATE | MAP_ANONYMOUS},
                         {"NoMove", UHMM_CONFIG_NO_MOVE, MAP_PRIVATE | MAP_ANONYMOUS},
                         {"Shared", 0, MAP_SHARED | MAP_ANONYMOUS},
                         {"Coherent", UHMM_CONFIG_COHERENT, MAP_PRIVATE | MAP_ANONYMOUS},
                         {"Huge", UHMM_CONFIG_DEVICE_ENTRIES, MAP_PRIVATE | MAP_ANONYMOUS, true}};

constexpr std::size_t kPages = 40;

// The work of one round, with a shadow of what memory holds.
class Round {
 public:
  explicit Round(const Way& way) : way_(way), memory_(kPages * kPage, true, way.mapping), shadow_(memory_.bytes()) {
    fill(memory_.data(), memory_.bytes(), 3);
    std::memcpy(shadow_.data(), memory_.data(), shadow_.size());
    UHMM_EXPECT_OK(uhmm_stream_create(1, &stream_));
  }
  ~Round() { (void)uhmm_stream_destroy(stream_); }

  // `failing`: a point is armed, so every call may fail, with a reason.
  void everything(bool failing);
  void check() {
    ASSERT_EQ(std::memcmp(memory_.data(), shadow_.data(), shadow_.size()), 0);
    std::size_t on_device = 0;
    for (const uhmm_page_info& page : snapshot(memory_.data(), memory_.bytes()))
      on_device += static_cast<std::size_t>(__builtin_popcount(page.devices));
    EXPECT_EQ(range_stats(memory_.data()).pages_on_devices, on_device);
  }

 private:
  bool done(uhmm_status status, bool failing) {
    EXPECT_TRUE(failing || status == UHMM_OK) << describe(status);
    EXPECT_TRUE(status == UHMM_OK || *uhmm_error_detail() != '\0') << "a failure without a reason";
    return status == UHMM_OK;
  }
  void kernel(bool failing) {
    const SpanArgs args{memory_.data(), memory_.bytes(), 0, nullptr};
    bool ran = done(launch(stream_, increment_kernel, args, 2), failing);
    if (ran && !done(uhmm_stream_synchronize(stream_), failing)) {
      // The kernel failed, or only the waiting for it did. The second one waits; the data tells.
      (void)uhmm_stream_synchronize(stream_);
      ran = memory_.data()[0] != shadow_[0];
    }
    if (!ran) return;
    for (std::byte& value : shadow_) value = static_cast<std::byte>(std::to_integer<int>(value) + 1);
  }
  void write(std::size_t page) {
    memory_.page(page)[5] = shadow_[page * kPage + 5] = static_cast<std::byte>(page * 3 + 1);
  }

  const Way& way_;
  Memory memory_;
  std::vector<std::byte> shadow_;
  uhmm_stream stream_ = 0;
};

void Round::everything(bool failing) {
  std::byte* const data = memory_.data();
  const std::size_t bytes = memory_.bytes();
  kernel(failing);  // device faults, reads then writes
  write(3);         // a CPU fault
  done(uhmm_migrate(data, bytes, 1, nullptr), failing);
  write(7);
  done(uhmm_migrate(data, bytes / 2, UHMM_CPU, nullptr), failing);
  if (done(launch(stream_, touch_kernel, SpanArgs{data, bytes, 0, nullptr}, 2), failing)) {
    done(uhmm_stream_synchronize(stream_), failing);
  }
  write(1);  // shared pages are written by the CPU
  write(30);
  kernel(failing);  // and by the device
  std::vector<std::byte> buffer(3 * kPage);
  if (done(uhmm_device_read(1, data + 100, buffer.data(), buffer.size(), nullptr), failing)) {
    EXPECT_EQ(std::memcmp(buffer.data(), shadow_.data() + 100, buffer.size()), 0);
  }
  done(uhmm_make_exclusive(data + 4 * kPage, 2 * kPage, 1, nullptr), failing);
  write(4);
  if (done(uhmm_acquire(data, 8 * kPage, 1, UHMM_ACCESS_READ), failing)) {
    UHMM_EXPECT_OK(uhmm_release(data, 8 * kPage, 1, UHMM_ACCESS_READ));
  }
  done(uhmm_advise(data, bytes, UHMM_ADVISE_READ_MOSTLY, 0), failing);
  done(uhmm_migrate(data, bytes, 1, nullptr), failing);
  EXPECT_EQ(data[9 * kPage], shadow_[9 * kPage]);  // a duplicating CPU read
  done(uhmm_advise(data, bytes, UHMM_ADVISE_NONE, 0), failing);
  if (done(uhmm_discard(data + 10 * kPage, kPage), failing))
    std::memset(shadow_.data() + 10 * kPage, 0, kPage);
  else
    std::memcpy(shadow_.data() + 10 * kPage, data + 10 * kPage, kPage);  // dropped or not: one of the two
  done(uhmm_migrate(data + 10 * kPage, kPage, 1, nullptr), failing);     // perhaps never touched since
  {
    // Memory that comes and goes, and more of it than fits.
    void* scratch = mmap(nullptr, 4 * kBlock, PROT_READ | PROT_WRITE, way_.mapping, -1, 0);
    ASSERT_NE(scratch, MAP_FAILED);
    auto* place = static_cast<std::byte*>(scratch);
    if (way_.huge) {
      place += (kBlock - reinterpret_cast<std::uintptr_t>(place) % kBlock) % kBlock;
      (void)madvise(place, 3 * kBlock, MADV_HUGEPAGE);
    }
    for (std::size_t i = 0; i < 3 * kBlock; i += kPage) place[i] = pattern(9, i);
    if (done(uhmm_register(place, 3 * kBlock), failing)) {
      for (std::size_t block = 0; block < 3; ++block) {
        const uhmm_status moved = uhmm_migrate(place + block * kBlock, kBlock, 1, nullptr);
        EXPECT_TRUE(moved == UHMM_OK || failing) << describe(moved);
      }
      for (std::size_t i = 0; i < 3 * kBlock; i += kPage) ASSERT_EQ(place[i], pattern(9, i));
      uhmm_status ended = uhmm_unregister(place);
      EXPECT_TRUE(ended == UHMM_OK || failing) << describe(ended);
      if (ended != UHMM_OK) {
        inject::disarm_all();
        UHMM_EXPECT_OK(uhmm_unregister(place));
      }
    }
    munmap(scratch, 4 * kBlock);
  }
  uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  desc.memory_bytes = std::uint64_t{4} << 20;
  uhmm_processor second = 0;
  if (done(uhmm_device_add(&desc, &second), failing)) {
    done(uhmm_migrate(data, 24 * kPage, second, nullptr), failing);
    write(2);
    done(uhmm_migrate(data, 6 * kPage, 1, nullptr), failing);
    done(uhmm_migrate(data, 24 * kPage, UHMM_CPU, nullptr), failing);  // enough pages to be moved, not copied
    UHMM_EXPECT_OK(uhmm_device_remove(second));
  }
}

class Sweep : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    uhmm_config config = test_config();
    config.flags |= GetParam().flags;
    config.device_memory = std::uint64_t{4} << 20;  // evictions happen
    UHMM_ASSERT_OK(uhmm_init(&config));
  }
  void TearDown() override {
    inject::disarm_all();
    UHMM_EXPECT_OK(uhmm_shutdown());
  }
};

// A point that a way never reaches would be a check that can't fail: these are the ones it has no use for.
std::set<Point> unreachable(const Way& way) {
  std::set<Point> points;
  const bool shared = (way.mapping & MAP_SHARED) != 0;
  if (shared || (way.flags & UHMM_CONFIG_NO_MOVE) != 0) {
    points.insert(Point::MoveOut);
    points.insert(Point::MoveIn);
    points.insert(Point::StagingAcquire);
  }
  if (!way.huge || !huge_pages_can_be_had()) points.insert(Point::HugePage);
  // Copied back straight from the device.
  if ((way.flags & UHMM_CONFIG_NO_MOVE) != 0) points.insert(Point::DeviceCopyOut);
  if (shared) points.insert(Point::ReadManaged);
  // Private memory that can be moved is never dropped from its place.
  if (!shared && (way.flags & UHMM_CONFIG_NO_MOVE) == 0) points.insert(Point::DropManaged);
  // No fork here; ForkSnapshots has them.
  for (const Point point : {Point::SnapshotMake, Point::SnapshotKeep, Point::SnapshotTakeOver}) points.insert(point);
  points.insert(Point::DeviceMirror);  // nor memory that others may see; MirroredMemory has it
  points.insert(Point::Poison);        // nothing is lost here; Crashes.LostPagesThatCouldNotBePoisoned has it
  if ((way.flags & UHMM_CONFIG_COHERENT) != 0) points.insert(Point::CopyToManaged);
  return points;
}

TEST_P(Sweep, EveryFailureLeavesEveryByteRight) {
  std::set<Point> reached;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(Point::kCount); ++i) {
    const auto point = static_cast<Point>(i);
    // Every n at first, then ever larger steps.
    for (std::uint64_t n = 1;; n += 1 + n / 6) {
      SCOPED_TRACE(std::string(inject::name(point)) + ", call " + std::to_string(n));
      bool fired = false;
      {
        Round round(GetParam());
        inject::arm(point, n);
        round.everything(true);
        fired = inject::fired(point);
        inject::disarm_all();
        round.check();
        if (n < 4) round.everything(false);
        round.check();
      }
      EXPECT_EQ(stats().pages_on_devices, 0u);
      EXPECT_EQ(stats().pages_lost, 0u);
      EXPECT_EQ(stats().ranges, 0u);
      EXPECT_EQ(device_info().memory_free, device_info().memory_bytes);
      if (HasFailure()) return;
      if (!fired) break;
      reached.insert(point);
    }
  }
  const std::set<Point> expected_out = unreachable(GetParam());
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(Point::kCount); ++i) {
    const auto point = static_cast<Point>(i);
    EXPECT_TRUE(reached.count(point) != 0 || expected_out.count(point) != 0) << inject::name(point) << " never failed";
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, Sweep, testing::ValuesIn(kWays),
                         [](const auto& way) { return std::string(way.param.name); });

}  // namespace
}  // namespace uhmm::test
