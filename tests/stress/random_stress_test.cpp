// SPDX-License-Identifier: Apache-2.0
// Everything at once against a shadow copy. Memory is cut into slots of 64 bytes; each slot belongs to one thread,
// which alone writes it (itself or through its own kernels), so the shadow is exact although pages are fought over by
// all. In the second half of the time the runtime is shaken (inject.hpp). UHMM_STRESS_SECONDS sets the length (default
// 4 for each variant), UHMM_TEST_SEED repeats a run.
#include <unistd.h>

#include <chrono>
#include <thread>

#include "runtime/base/inject.hpp"
#include "tests/support/gpu_runtime.hpp"
#include "tests/support/seed.hpp"

namespace uhmm::test {
namespace {

constexpr std::size_t kSlot = 64;
constexpr std::uint32_t kThreads = 3;

struct Variant {
  const char* name;
  std::uint32_t flags;
  std::uint32_t devices;
  std::uint64_t device_memory;
  uhmm_fault_rung rung = UHMM_FAULTS_AUTO;
  bool huge = false;  // huge pages, where there are any
  bool gpu = false;   // the first device is a GPU, over a double of its driver
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

// A piece of managed memory and what it should hold.
struct Piece {
  std::byte* data = nullptr;
  std::size_t slots = 0;
  std::vector<std::uint64_t> shadow;
  std::uint64_t* slot(std::size_t i) const { return reinterpret_cast<std::uint64_t*>(data + i * kSlot); }
};

struct StepArgs {
  std::byte* data;
  std::size_t first;
  std::size_t end;
  std::uint32_t owner;
  std::uint64_t factor;
};
std::uint64_t step(std::uint64_t value, std::uint64_t factor) { return value * 6364136223846793005u + factor; }
void step_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const StepArgs*>(raw);
  for (std::size_t i = args->first; i < args->end; ++i) {
    if (i % kThreads != args->owner || i % item->grid[0] != item->index[0]) continue;
    auto* value = reinterpret_cast<std::uint64_t*>(args->data + i * kSlot);
    *value = step(*value, args->factor);
  }
}

class RandomStress : public testing::TestWithParam<Variant> {
 protected:
  void add_piece(std::byte* data, std::size_t bytes) {
    Piece piece;
    piece.data = data;
    piece.slots = bytes / kSlot;
    for (std::size_t i = 0; i < piece.slots; ++i) piece.shadow.push_back(*piece.slot(i) = i * 77 + 5);
    UHMM_ASSERT_OK(uhmm_register(data, bytes));
    pieces_.push_back(std::move(piece));
  }
  void act(std::uint32_t me, std::uint64_t thread_seed);
  void one_action(std::uint32_t me, std::mt19937_64& random, uhmm_stream stream);
  void scratch(std::mt19937_64& random, uhmm_processor device);
  std::uint32_t devices() const { return GetParam().devices; }

  // What a busy or full device may answer to a request; nothing else is right.
  void expect_request(uhmm_status status) {
    EXPECT_TRUE(status == UHMM_OK || status == UHMM_ERR_BUSY || status == UHMM_ERR_DEVICE_FULL) << describe(status);
  }

  std::vector<Piece> pieces_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> actions_{0};
};

void RandomStress::one_action(std::uint32_t me, std::mt19937_64& random, uhmm_stream stream) {
  Piece& piece = pieces_[random() % pieces_.size()];
  const auto pick = [&](std::size_t below) { return static_cast<std::size_t>(random() % below); };
  const auto mine = [&](std::size_t i) { return i / kThreads * kThreads + me; };
  const std::size_t first = pick(piece.slots);
  const std::size_t end = std::min(piece.slots, first + 1 + pick(pick(8) == 0 ? piece.slots : 2000));
  std::byte* at = piece.data + first * kSlot;
  const std::size_t bytes = (end - first) * kSlot;
  const auto device = static_cast<uhmm_processor>(1 + pick(devices()));
  switch (pick(16)) {
    case 0:
    case 1:
    case 2:
      for (std::size_t i = first; i < end; ++i)
        if (i % kThreads == me) *piece.slot(i) = piece.shadow[i] = random();
      break;
    case 3:
    case 4:
    case 5:
      for (std::size_t i = first; i < end; ++i)
        if (i % kThreads == me) {
          ASSERT_EQ(*piece.slot(i), piece.shadow[i]) << "slot " << i;
        }
      break;
    case 6:
    case 7: {
      const StepArgs args{piece.data, first, end, me, random()};
      UHMM_ASSERT_OK(launch(stream, step_kernel, args, 1 + static_cast<std::uint32_t>(pick(4))));
      UHMM_ASSERT_OK(uhmm_stream_synchronize(stream));
      for (std::size_t i = first; i < end; ++i)
        if (i % kThreads == me) piece.shadow[i] = step(piece.shadow[i], args.factor);
      break;
    }
    case 8: expect_request(uhmm_migrate(at, bytes, device, nullptr)); break;
    case 9: expect_request(uhmm_migrate(at, bytes, UHMM_CPU, nullptr)); break;
    case 10:
      expect_request(uhmm_prefetch(at, bytes, pick(2) == 0 ? UHMM_CPU : device, pick(2) == 0 ? stream : 0));
      break;
    case 11: {
      constexpr uhmm_advice kAdvice[] = {UHMM_ADVISE_READ_MOSTLY, UHMM_ADVISE_NOT_READ_MOSTLY, UHMM_ADVISE_NONE,
                                         UHMM_ADVISE_PREFERRED_LOCATION, UHMM_ADVISE_ACCESSED_BY};
      UHMM_EXPECT_OK(uhmm_advise(at, bytes, kAdvice[pick(std::size(kAdvice))], device));
      break;
    }
    case 12: {
      const std::size_t i = mine(first);
      if (i >= piece.slots) break;
      std::uint64_t value = random();
      if (pick(2) == 0) {
        UHMM_ASSERT_OK(uhmm_device_write(device, piece.slot(i), &value, sizeof(value), nullptr));
        piece.shadow[i] = value;
      } else {
        UHMM_ASSERT_OK(uhmm_device_read(device, piece.slot(i), &value, sizeof(value), nullptr));
        ASSERT_EQ(value, piece.shadow[i]) << "slot " << i << " read by device " << device;
      }
      break;
    }
    case 13: {
      // A system call into and out of managed memory.
      const std::size_t i = mine(first);
      if (i >= piece.slots) break;
      int ends[2];
      ASSERT_EQ(pipe(ends), 0);
      const std::uint64_t value = random();
      EXPECT_EQ(write(ends[1], &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
      ssize_t got = read(ends[0], piece.slot(i), sizeof(value));
      // Where the kernel can't wait for us, its writes to what is away are refused: then a store brings it first.
      while (got == -1 && errno == EFAULT && GetParam().rung == UHMM_FAULTS_SIGNAL) {
        *static_cast<volatile std::uint64_t*>(piece.slot(i)) = 0;
        got = read(ends[0], piece.slot(i), sizeof(value));
      }
      EXPECT_EQ(got, static_cast<ssize_t>(sizeof(value)));
      piece.shadow[i] = value;
      close(ends[0]);
      close(ends[1]);
      break;
    }
    case 14: {
      if (pick(2) == 0) {
        const uhmm_status acquired = uhmm_acquire(at, std::min(bytes, 64 * kPage), device, UHMM_ACCESS_READ);
        expect_request(acquired);
        if (acquired == UHMM_OK) {
          UHMM_EXPECT_OK(uhmm_release(at, std::min(bytes, 64 * kPage), device, UHMM_ACCESS_READ));
        }
      } else {
        expect_request(uhmm_make_exclusive(at, std::min(bytes, 16 * kPage), device, nullptr));
      }
      (void)snapshot(at, bytes);
      break;
    }
    default: scratch(random, device); break;
  }
}

// Memory that comes and goes: registered, computed on, partly discarded, unregistered, unmapped.
void RandomStress::scratch(std::mt19937_64& random, uhmm_processor device) {
  const std::size_t pages = 1 + random() % 40;
  const bool shared = random() % 3 == 0;
  Memory memory(pages * kPage, true, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS);
  const std::uint64_t content = random();
  fill(memory.data(), memory.bytes(), content);
  expect_request(uhmm_migrate(memory.data(), memory.bytes(), device, nullptr));
  const std::size_t page = random() % pages;
  UHMM_EXPECT_OK(uhmm_discard(memory.page(page), kPage));
  for (std::size_t i = 0; i < kPage; i += 512) ASSERT_EQ(memory.page(page)[i], std::byte{0});
  ASSERT_EQ(first_wrong(memory.data(), page * kPage, content), page * kPage);
}

void RandomStress::act(std::uint32_t me, std::uint64_t thread_seed) {
  std::mt19937_64 random(thread_seed);
  std::vector<uhmm_stream> streams(devices());
  for (std::uint32_t i = 0; i < devices(); ++i) UHMM_ASSERT_OK(uhmm_stream_create(i + 1, &streams[i]));
  while (!stop_.load() && !testing::Test::HasFailure()) {
    one_action(me, random, streams[random() % streams.size()]);
    actions_.fetch_add(1);
  }
  for (const uhmm_stream stream : streams) UHMM_EXPECT_OK(uhmm_stream_destroy(stream));
}

TEST_P(RandomStress, EveryByteIsRight) {
  uhmm_config config = test_config();
  config.flags |= GetParam().flags;
  config.soft_devices = GetParam().devices;
  config.device_memory = GetParam().device_memory;
  config.fault_rung = GetParam().rung;
  if (GetParam().gpu) {
    if (driver_doubles().empty()) GTEST_SKIP() << "this build knows no driver of a GPU";
    driver_doubles()[0].control().reset();
    const uhmm_config with_gpu = gpu_config(driver_doubles()[0]);
    config.flags = with_gpu.flags;
    config.gpus = with_gpu.gpus;
    --config.soft_devices;
  }
  UHMM_ASSERT_OK(uhmm_init(&config));
  const std::uint64_t base_seed = seed();

  Memory large(std::size_t{12} << 20, false);
  (void)madvise(large.data(), large.bytes(), GetParam().huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  Memory shared(std::size_t{3} << 20, false, MAP_SHARED | MAP_ANONYMOUS);
  std::vector<std::byte> heap((std::size_t{96} << 10) + 1000);
  Memory neighbours(8 * kPage, false);
  add_piece(large.data(), large.bytes());
  add_piece(shared.data(), shared.bytes());
  // A driver may need the heap to serve a fault on it.
  if (!GetParam().gpu) add_piece(heap.data() + 64, heap.size() / kSlot * kSlot - 128);
  // Two ranges that meet in the middle of a page.
  add_piece(neighbours.data() + 128, 3 * kPage);
  add_piece(neighbours.data() + 128 + 3 * kPage, 4 * kPage);

  const char* wanted = std::getenv("UHMM_STRESS_SECONDS");
  const auto length = std::chrono::seconds(wanted != nullptr ? std::atoi(wanted) : 4);
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < kThreads; ++i) threads.emplace_back([this, i, base_seed] { act(i, base_seed + i); });
  const auto half = std::chrono::steady_clock::now() + length / 2;
  const auto until = std::chrono::steady_clock::now() + length;
  for (bool shaken = false; std::chrono::steady_clock::now() < until && !HasFailure();) {
    if (!shaken && std::chrono::steady_clock::now() >= half) {
      inject::shake(static_cast<std::uint32_t>(base_seed));
      shaken = true;
    }
    const uhmm_stats now = stats();
    EXPECT_EQ(now.pages_lost, 0u);
    std::this_thread::yield();
    std::this_thread::sleep_until(std::min(until, std::chrono::steady_clock::now() + std::chrono::milliseconds(20)));
  }
  stop_.store(true);
  for (std::thread& thread : threads) thread.join();
  inject::stop_shaking();

  for (const Piece& piece : pieces_) {
    for (std::size_t i = 0; i < piece.slots; ++i) ASSERT_EQ(*piece.slot(i), piece.shadow[i]) << "slot " << i;
    UHMM_EXPECT_OK(uhmm_unregister(piece.data));
  }
  const uhmm_stats end = stats();
  EXPECT_EQ(end.pages_on_devices, 0u);
  std::printf("%s: %llu actions, %llu CPU faults, %llu device faults, %llu pages evicted\n", GetParam().name,
              static_cast<unsigned long long>(actions_.load()), static_cast<unsigned long long>(end.cpu_faults),
              static_cast<unsigned long long>(end.device_faults),
              static_cast<unsigned long long>(end.pages_to_system[UHMM_CAUSE_EVICTION]));
  UHMM_EXPECT_OK(uhmm_shutdown());
}

INSTANTIATE_TEST_SUITE_P(
    Variants, RandomStress,
    testing::Values(Variant{"Move", 0, 1, std::uint64_t{64} << 20},
                    Variant{"NoMove", UHMM_CONFIG_NO_MOVE, 1, std::uint64_t{64} << 20},
                    Variant{"TwoDevices", 0, 2, std::uint64_t{64} << 20},
                    Variant{"TinyDevice", 0, 1, std::uint64_t{4} << 20},
                    Variant{"Signal", 0, 1, std::uint64_t{64} << 20, UHMM_FAULTS_SIGNAL},
                    Variant{"Huge", UHMM_CONFIG_DEVICE_ENTRIES, 1, std::uint64_t{8} << 20, UHMM_FAULTS_AUTO, true},
                    Variant{"Coherent", UHMM_CONFIG_COHERENT, 2, std::uint64_t{32} << 20},
                    Variant{"Gpu", 0, 1, std::uint64_t{64} << 20, UHMM_FAULTS_AUTO, false, true},
                    Variant{"GpuAndSoft", 0, 2, std::uint64_t{64} << 20, UHMM_FAULTS_AUTO, false, true}),
    [](const auto& variant) { return std::string(variant.param.name); });

// The program's heap, managed as it is, while threads allocate from it: whoever serves faults can't need the allocator.
TEST(HeapStress, AllocatingFromManagedHeapNeverDeadlocks) {
  uhmm_config config = test_config();
  UHMM_ASSERT_OK(uhmm_init(&config));
  std::vector<std::vector<std::byte>> blocks;
  for (int i = 0; i < 64; ++i) blocks.emplace_back(40'000, static_cast<std::byte>(i));
  for (auto& block : blocks) UHMM_ASSERT_OK(uhmm_register(block.data(), block.size()));
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&stop, t] {
      std::mt19937_64 random(seed() + static_cast<std::uint64_t>(t));
      std::vector<void*> held(200, nullptr);
      while (!stop.load()) {
        void*& place = held[random() % held.size()];
        std::free(place);
        place = std::malloc(16 + random() % 60'000);
        if (place != nullptr) std::memset(place, 1, 16);
      }
      for (void* place : held) std::free(place);
    });
  }
  // Pages on the edges of the blocks hold the allocator's own data and neighbours.
  for (int round = 0; round < 40; ++round) {
    for (auto& block : blocks) {
      const uhmm_status moved = uhmm_migrate(block.data(), block.size(), 1, nullptr);
      EXPECT_TRUE(moved == UHMM_OK || moved == UHMM_ERR_BUSY) << describe(moved);
    }
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 64; ++i) {
    for (const std::byte value : blocks[static_cast<std::size_t>(i)]) ASSERT_EQ(value, static_cast<std::byte>(i));
    UHMM_EXPECT_OK(uhmm_unregister(blocks[static_cast<std::size_t>(i)].data()));
  }
  UHMM_EXPECT_OK(uhmm_shutdown());
}

}  // namespace
}  // namespace uhmm::test
