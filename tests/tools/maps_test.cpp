// SPDX-License-Identifier: Apache-2.0
// `uhmm maps` and `uhmm home`: reports that are made up here, and those of a runtime in this process.
#include "tools/uhmm/maps.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/os/local_service.hpp"
#include "tests/support/runtime.hpp"
#include "tools/uhmm/home.hpp"

namespace uhmm::tool {
namespace {

using engine::ReportDevice;
using engine::ReportHeader;
using engine::ReportRange;
using namespace uhmm::test;

using Bytes = std::vector<std::byte>;

template <typename Record>
void append(Bytes& bytes, const Record& record, std::size_t size = sizeof(Record)) {
  const auto* from = reinterpret_cast<const std::byte*>(&record);
  const std::size_t known = std::min(size, sizeof(Record));
  bytes.insert(bytes.end(), from, from + known);
  bytes.insert(bytes.end(), size - known, std::byte{0xee});
}

// `more`: how much longer each record of a newer runtime is; less than 0 for an older one.
Bytes made_up(int more = 0) {
  const auto grown = [&](std::size_t size) { return static_cast<std::uint32_t>(static_cast<int>(size) + more); };
  ReportHeader header;
  header.header_bytes = static_cast<std::uint32_t>(sizeof(header)) + static_cast<std::uint32_t>(std::max(more, 0));
  header.device_bytes = grown(sizeof(ReportDevice));
  header.range_bytes = grown(sizeof(ReportRange));
  header.devices = 2;
  header.ranges = 2;
  header.version = 10203;
  ReportDevice first{1, 0, 512, 3, "soft0", ""};
  ReportDevice second{2, UHMM_DEVICE_IS_LOST, 512, 0, "soft1", "it fell"};
  ReportRange private_range;
  private_range.begin = 0x10000123;
  private_range.end = 0x10008000;
  private_range.first_page = 0x10000000;
  private_range.end_page = 0x10008000;
  private_range.device = 2;
  private_range.shared = 1;
  private_range.exclusive = 1;
  private_range.on_device = {3, 0};
  private_range.cpu_faults = 7;
  private_range.device_faults = 9;
  private_range.preferred = 1;
  private_range.accessed_by = 2;
  private_range.pinned = 1;
  ReportRange shared_range;
  shared_range.begin = shared_range.first_page = 0x20000000;
  shared_range.end = shared_range.end_page = 0x20001000;
  shared_range.shared_memory = 1;
  shared_range.lost = 1;
  shared_range.preferred = ~0u;
  Bytes bytes;
  append(bytes, header, header.header_bytes);
  append(bytes, first, header.device_bytes);
  append(bytes, second, header.device_bytes);
  append(bytes, private_range, header.range_bytes);
  append(bytes, shared_range, header.range_bytes);
  return bytes;
}

TEST(ParseReport, OfTheSameAndOfANewerVersion) {
  for (const int more : {0, 8, 100}) {
    SCOPED_TRACE(more);
    Result<Maps> maps = parse_report(made_up(more));
    ASSERT_TRUE(maps.ok());
    EXPECT_EQ(maps->version, 10203u);
    ASSERT_EQ(maps->devices.size(), 2u);
    EXPECT_STREQ(maps->devices[1].lost_reason, "it fell");
    ASSERT_EQ(maps->ranges.size(), 2u);
    EXPECT_EQ(maps->ranges[0].told.end, 0x10008000u);
    EXPECT_EQ(maps->ranges[0].told.on_device[0], 3u);
    EXPECT_EQ(maps->ranges[1].told.lost, 1u);
  }
}

TEST(ParseReport, OfAnOlderVersionLacksTheLastFields) {
  Result<Maps> maps = parse_report(made_up(-8));
  ASSERT_TRUE(maps.ok());
  EXPECT_EQ(maps->ranges[0].told.device_faults, 9u);
  EXPECT_EQ(maps->ranges[0].told.pinned, 0u);
}

TEST(ParseReport, RefusesWhatIsCutOffOrNoReport) {
  const Bytes whole = made_up();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    Result<Maps> maps = parse_report(part);
    ASSERT_EQ(maps.status().code(), UHMM_ERR_INVALID) << size;
  }
  const auto spoiled = [](auto&& spoil) {
    Bytes bytes = made_up();
    ReportHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    spoil(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
    return parse_report(bytes).status().code();
  };
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.magic ^= 1; }), UHMM_ERR_INVALID);
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.devices = kMaxDevices + 1; }), UHMM_ERR_INVALID);
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.ranges = ~0ull; }), UHMM_ERR_INVALID);
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.range_bytes = 0; }), UHMM_ERR_INVALID);
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.range_bytes = ~0u; }), UHMM_ERR_INVALID);
  EXPECT_EQ(spoiled([](ReportHeader& h) { h.header_bytes = ~0u; }), UHMM_ERR_INVALID);
}

TEST(MapsTable, SaysWhereEverythingIs) {
  Result<Maps> maps = parse_report(made_up());
  ASSERT_TRUE(maps.ok());
  maps->process = 42;
  maps->ranges[0].system_pages = 5;
  maps->ranges[0].mapping = "[heap]";
  EXPECT_EQ(
      maps_as_table(*maps),
      "process 42, uhmm 1.2.3\n"
      "device 1 (soft0): 12 of 2048 KiB in use\n"
      "device 2 (soft1): lost: it fell\n"
      "\n"
      "KiB of pages\n"
      "ADDRESS                    SIZE  SYSTEM  DEVICE1  DEVICE2  SHARED  EXCLUSIVE  LOST  CPU-FAULTS  DEV-FAULTS  "
      "KIND            ADVICE\n"
      "000010000123-000010008000    32      20       12        0       4          4     0           7           9  "
      "private [heap]  prefers:1,accessed-by:2,pinned\n"
      "000020000000-000020001000     4       0        0        0       0          0     4           0           0  "
      "shared\n"
      "2 ranges                     36      20       12        0       4          4     4           7           9\n");
  const auto json = nlohmann::json::parse(maps_as_json(*maps));
  EXPECT_EQ(json["version"], "1.2.3");
  EXPECT_EQ(json["devices"][1]["lost_reason"], "it fell");
  EXPECT_EQ(json["ranges"][0]["pages_by_device"]["1"], 3);
  EXPECT_EQ(json["ranges"][0]["system_pages"], 5);
  EXPECT_EQ(json["ranges"][1]["kind"], "shared");
}

class LiveMaps : public RuntimeTest {
 protected:
  static Result<Maps> look_at_self() {
    Result<int> file = os::ask_local_service(getpid(), 'r', 60'000);
    if (!file.ok()) return file.status();
    Bytes bytes(1 << 20);
    const ssize_t got = pread(*file, bytes.data(), bytes.size(), 0);
    close(*file);
    bytes.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    Result<Maps> maps = parse_report(bytes);
    if (maps.ok()) UHMM_TRY(add_kernel_view(*maps, "/proc/self"));
    return maps;
  }
};

TEST_F(LiveMaps, AgreeWithTheSnapshot) {
  for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_COHERENT}) {
    SCOPED_TRACE(flags);
    start_with([&](uhmm_config& config) {
      config.flags |= flags;
      config.soft_devices = 2;
    });
    Memory memory(64 * kPage);
    Memory shared(8 * kPage, true, MAP_SHARED | MAP_ANONYMOUS);
    Memory untouched(16 * kPage);
    std::memset(memory.data(), 1, 40 * kPage);
    std::memset(shared.data(), 2, 5 * kPage);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 10 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_migrate(memory.page(10), 4 * kPage, 2, nullptr));
    UHMM_ASSERT_OK(uhmm_acquire(memory.page(20), 3 * kPage, 1, UHMM_ACCESS_READ));
    UHMM_ASSERT_OK(uhmm_make_exclusive(memory.page(30), 2 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_migrate(shared.data(), 2 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_advise(shared.data(), 1, UHMM_ADVISE_READ_MOSTLY, 0));
    Result<Maps> maps = look_at_self();
    ASSERT_TRUE(maps.ok()) << uhmm_error_detail();
    EXPECT_EQ(maps->version, uhmm_version());
    ASSERT_EQ(maps->devices.size(), 2u);
    EXPECT_EQ(maps->devices[0].current_pages * kPage, device_info(1).memory_bytes - device_info(1).memory_free);
    ASSERT_EQ(maps->ranges.size(), 3u);
    for (const MappedRange& range : maps->ranges) {
      const ReportRange& told = range.told;
      auto* data = reinterpret_cast<std::byte*>(told.begin);
      const std::size_t bytes = told.end - told.begin;
      EXPECT_EQ(told.device,
                pages_in_state(data, bytes, UHMM_PAGE_DEVICE) + pages_in_state(data, bytes, UHMM_PAGE_EXCLUSIVE));
      EXPECT_EQ(told.exclusive, pages_in_state(data, bytes, UHMM_PAGE_EXCLUSIVE));
      EXPECT_EQ(told.shared, pages_in_state(data, bytes, UHMM_PAGE_SHARED));
      EXPECT_EQ(told.lost, 0u);
      if (data == memory.data()) {
        EXPECT_EQ(told.on_device[1], 4u);
        EXPECT_EQ(told.held, 1u);
        EXPECT_EQ(told.exclusive, 2u);
        EXPECT_EQ(range.system_pages, 40u - told.device);
      } else if (data == shared.data()) {
        EXPECT_EQ(told.shared_memory, 1u);
        EXPECT_EQ(told.device, 2u);
        EXPECT_EQ(told.read_mostly, 1u);
        EXPECT_EQ(range.system_pages, 3u);
        EXPECT_NE(range.mapping, "");
      } else {
        EXPECT_EQ(told.device + told.shared + range.system_pages, 0u);
      }
    }
    UHMM_ASSERT_OK(uhmm_release(memory.page(20), 3 * kPage, 1, UHMM_ACCESS_READ));
  }
}

TEST_F(LiveMaps, CountWhatIsLost) {
  may_lose_data_ = true;
  Memory memory(20 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 7 * kPage, 1, nullptr));
  ASSERT_EQ(kill(static_cast<pid_t>(device_info(1).process_id), SIGKILL), 0);
  while (stats().pages_lost == 0) std::this_thread::yield();
  Result<Maps> maps = look_at_self();
  ASSERT_TRUE(maps.ok());
  EXPECT_NE(maps->devices[0].flags & UHMM_DEVICE_IS_LOST, 0u);
  EXPECT_STRNE(maps->devices[0].lost_reason, "");
  EXPECT_EQ(maps->ranges[0].told.lost, 7u);
  EXPECT_EQ(maps->ranges[0].told.device, 0u);
  EXPECT_EQ(maps->ranges[0].system_pages, 13u);
}

TEST_F(LiveMaps, AreAnsweredWhileEverythingIsBusy) {
  Memory memory(64 * kPage);
  Memory result(kPage);
  fill(memory.data(), memory.bytes(), 1);
  // As many calls as there are workers, all waiting for a device that is busy for ever.
  uhmm_stream stream = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(1, &stream));
  auto* go = result.as<std::atomic<std::uint64_t>>();
  UHMM_ASSERT_OK(launch(stream, wait_kernel, SpanArgs{nullptr, 0, 0, go}));
  std::vector<std::thread> callers;
  for (int i = 0; i < 12; ++i)
    callers.emplace_back([&] {
      std::uint64_t value = 0;
      UHMM_EXPECT_OK(uhmm_device_read(1, memory.data(), &value, sizeof(value), nullptr));
    });
  for (int i = 0; i < 20; ++i) {
    Result<Maps> maps = look_at_self();
    EXPECT_TRUE(maps.ok());
  }
  go->store(1);
  for (std::thread& caller : callers) caller.join();
  UHMM_EXPECT_OK(uhmm_stream_destroy(stream));
}

// What a debugger reads, and what goes to a core dump: the kernel can't wait for us there.
bool seen_from_outside(const Memory& memory, std::uint64_t content) {
  std::vector<std::byte> seen(memory.bytes());
  const int file = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  const ssize_t got =
      pread(file, seen.data(), seen.size(), static_cast<off_t>(reinterpret_cast<std::uintptr_t>(memory.data())));
  close(file);
  return got == static_cast<ssize_t>(seen.size()) && first_wrong(seen.data(), seen.size(), content) == seen.size();
}

TEST_F(LiveMaps, HomeBringsWhatDebuggersCantSee) {
  for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_DEVICE_ENTRIES}) {
    SCOPED_TRACE(flags);
    start_with([&](uhmm_config& config) {
      config.flags |= flags;
      config.soft_devices = 2;
    });
    Memory memory(1024 * kPage);
    Memory shared(8 * kPage, true, MAP_SHARED | MAP_ANONYMOUS);
    fill(memory.data(), memory.bytes(), 1);
    fill(shared.data(), shared.bytes(), 2);
    UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 600 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_migrate(memory.page(600), 400 * kPage, 2, nullptr));
    UHMM_ASSERT_OK(uhmm_make_exclusive(memory.page(1000), 10 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_migrate(shared.data(), shared.bytes(), 1, nullptr));
    UHMM_ASSERT_OK(uhmm_advise(shared.data(), 1, UHMM_ADVISE_PINNED, 0));
    EXPECT_FALSE(seen_from_outside(memory, 1));
    testing::internal::CaptureStdout();
    EXPECT_EQ(home(getpid()), 0);
    EXPECT_NE(testing::internal::GetCapturedStdout().find(" KiB came home\n"), std::string::npos);
    EXPECT_TRUE(seen_from_outside(memory, 1));
    EXPECT_TRUE(seen_from_outside(shared, 2));
    device_increment(memory.data(), memory.bytes());  // and the program goes on
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 2), memory.bytes());
  }
  stop();
  EXPECT_EQ(home(getpid()), 1) << "nobody to ask";
}

TEST_F(LiveMaps, NobodyAnswersWithoutARuntime) {
  Memory memory(kPage);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // The parent's service is not the child's.
    const bool none = os::ask_local_service(getpid(), 'r', 60'000).status().code() == UHMM_ERR_NOT_FOUND;
    pause();  // with no descriptor that would keep the parent's name
    _exit(none ? 0 : 1);
  }
  EXPECT_TRUE(look_at_self().ok());
  stop();
  EXPECT_EQ(look_at_self().status().code(), UHMM_ERR_NOT_FOUND);
  kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  start_with([](uhmm_config& config) { config.flags |= UHMM_CONFIG_NO_REPORT; });
  EXPECT_EQ(look_at_self().status().code(), UHMM_ERR_NOT_FOUND);
}

}  // namespace
}  // namespace uhmm::tool
