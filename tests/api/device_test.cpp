// SPDX-License-Identifier: Apache-2.0
// Devices come, go, crash and are restarted, with data on them.
#include <dlfcn.h>
#include <stdlib.h>

#include <sstream>

#include "runtime/base/inject.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class Devices : public RuntimeTest {
 protected:
  static uhmm_processor add(std::uint64_t bytes = 8 * kBlock) {
    uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
    desc.memory_bytes = bytes;
    uhmm_processor added = 0;
    UHMM_EXPECT_OK(uhmm_device_add(&desc, &added));
    return added;
  }
  static std::vector<uhmm_processor> list() {
    std::vector<uhmm_processor> ids(UHMM_MAX_DEVICES);
    std::uint32_t count = 0;
    UHMM_EXPECT_OK(uhmm_device_list(ids.data(), UHMM_MAX_DEVICES, &count));
    ids.resize(count);
    return ids;
  }
};

TEST_F(Devices, ComeAndGoAtRunTime) {
  Memory memory(100 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  EXPECT_EQ(add(), 2u);
  EXPECT_EQ(add(), 3u);
  EXPECT_EQ(list(), (std::vector<uhmm_processor>{1, 2, 3}));
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 2, nullptr));
  EXPECT_EQ(device_info(2).memory_free, 8 * kBlock - memory.bytes());
  UHMM_ASSERT_OK(uhmm_device_remove(2));
  EXPECT_EQ(list(), (std::vector<uhmm_processor>{1, 3}));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), 100u);
  EXPECT_EQ(stats().pages_to_system[UHMM_CAUSE_DEVICE_REMOVE], 100u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_STATUS(UHMM_ERR_NO_DEVICE, uhmm_migrate(memory.data(), memory.bytes(), 2, nullptr));
  EXPECT_EQ(add(), 2u) << "ids are reused";
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 2, nullptr));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Devices, EightAtMost) {
  for (uhmm_processor expected = 2; expected <= UHMM_MAX_DEVICES; ++expected) EXPECT_EQ(add(kBlock), expected);
  const uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  uhmm_processor more = 77;
  UHMM_EXPECT_STATUS(UHMM_ERR_NO_MEMORY, uhmm_device_add(&desc, &more));
  EXPECT_EQ(more, 77u);
  Memory memory(8 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  for (uhmm_processor to = 1; to <= UHMM_MAX_DEVICES; ++to)
    UHMM_EXPECT_OK(uhmm_migrate(memory.data(), memory.bytes(), to, nullptr));
  EXPECT_EQ(snapshot(memory.data(), 1)[0].devices, 0x80u);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Devices, RemovalWaitsForStreamsAndEndsThem) {
  const uhmm_processor device = add();
  Memory memory(300 * kPage);
  std::memset(memory.data(), 0, memory.bytes());
  uhmm_stream stream = 0;
  UHMM_ASSERT_OK(uhmm_stream_create(device, &stream));
  for (int i = 0; i < 10; ++i)
    UHMM_ASSERT_OK(launch(stream, increment_kernel, SpanArgs{memory.data(), memory.bytes(), 0, nullptr}, 2));
  UHMM_ASSERT_OK(uhmm_device_remove(device));
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_stream_synchronize(stream));
  for (std::size_t i = 0; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], std::byte{10}) << i;
}

TEST_F(Devices, InfoIsRight) {
  const uhmm_device_info info = device_info(1);
  EXPECT_EQ(info.device, 1u);
  EXPECT_EQ(info.kind, std::uint32_t{UHMM_DEVICE_SOFT});
  EXPECT_EQ(info.flags, UHMM_DEVICE_FAULTING);
  EXPECT_EQ(info.memory_bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(info.memory_free, info.memory_bytes);
  EXPECT_EQ(info.page_bytes, kPage);
  EXPECT_GT(info.process_id, 0);
  EXPECT_STREQ(info.name, "soft0");
  EXPECT_STREQ(info.lost_reason, "");
  Memory memory(10 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), 6 * kPage, 1, nullptr));
  EXPECT_EQ(device_info(1).memory_free, info.memory_bytes - 6 * kPage);
  EXPECT_EQ(stats().pages_on_devices, 6u);
  EXPECT_EQ(memory.data()[0], pattern(1, 0));
  // Looking at the page waits for who still has its block: the load goes on before the counts are right.
  EXPECT_EQ(snapshot(memory.data(), 1)[0].state, UHMM_PAGE_SYSTEM);
  EXPECT_EQ(device_info(1).memory_free, info.memory_bytes - stats().pages_on_devices * kPage);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), UHMM_CPU, nullptr));
  EXPECT_EQ(device_info(1).memory_free, info.memory_bytes);
}

TEST_F(Devices, RestartOfAHealthyOneBringsPagesBack) {
  Memory memory(50 * kPage);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr));
  const auto before = device_info(1).process_id;
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  EXPECT_NE(device_info(1).process_id, before);
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_SYSTEM), 50u);
  device_increment(memory.data(), memory.bytes());  // on the old stream
  EXPECT_EQ(memory.data()[0], static_cast<std::byte>(std::to_integer<int>(pattern(1, 0)) + 1));
}

// ------------------------------------------------------------------------------------------------------------ crashes

void null_kernel(const uhmm_kernel_item*, void*) {
  // By way of a volatile pointer, or the compiler traps itself.
  int* volatile nowhere = reinterpret_cast<int*>(0x10);
  *nowhere = 1;
}
void abort_kernel(const uhmm_kernel_item*, void*) { abort(); }
void exit_kernel(const uhmm_kernel_item*, void*) { exit(3); }
void wild_kernel(const uhmm_kernel_item*, void* raw) {
  *static_cast<volatile std::byte*>(static_cast<const SpanArgs*>(raw)->data) = std::byte{1};
}

class Crashes : public Devices {
 protected:
  void expect_crash(uhmm_kernel kernel, const SpanArgs& args, const std::vector<std::string>& words) {
    UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(kernel, args, 2));
    const std::string detail = uhmm_error_detail();
    const std::string reason = device_info(1).lost_reason;
    for (const std::string& word : words) {
      EXPECT_NE(detail.find(word), std::string::npos) << word << " is not in: " << detail;
      EXPECT_NE(reason.find(word), std::string::npos) << word << " is not in: " << reason;
    }
    EXPECT_NE(device_info(1).flags & UHMM_DEVICE_IS_LOST, 0u);
    EXPECT_EQ(device_info(1).process_id, 0);
    UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_LOST, launch(stream_, fill_kernel, args));
    uhmm_stream stream = 0;
    UHMM_EXPECT_STATUS(UHMM_ERR_DEVICE_LOST, uhmm_stream_create(1, &stream));
    UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));  // reported once
  }
  void restart_and_use() {
    UHMM_ASSERT_OK(uhmm_device_restart(1));
    EXPECT_EQ(device_info(1).flags & UHMM_DEVICE_IS_LOST, 0u);
    EXPECT_STREQ(device_info(1).lost_reason, "");
    Memory memory(20 * kPage);
    device_fill(memory.data(), memory.bytes(), 6);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 6), memory.bytes());
  }
};

TEST_F(Crashes, AreReportedWithSignalAddressAndFunction) {
  expect_crash(null_kernel, {}, {"SIGSEGV", "0x10", "null_kernel"});
  restart_and_use();
  expect_crash(abort_kernel, {}, {"SIGABRT", "abort_kernel"});
  restart_and_use();
  expect_crash(exit_kernel, {}, {"exit", "3", "exit_kernel"});
  restart_and_use();
}

TEST_F(Crashes, AccessToMemoryThatIsGoneIsOne) {
  std::byte* gone = nullptr;
  {
    Memory memory(4 * kPage);
    gone = memory.data();
  }
  std::ostringstream address;
  address << std::hex << reinterpret_cast<std::uintptr_t>(gone);
  expect_crash(wild_kernel, {gone, 1, 0, nullptr}, {address.str()});
  restart_and_use();
}

TEST_F(Crashes, OnlyPagesWhoseOneCopyWasThereAreLost) {
  may_lose_data_ = true;
  Memory mine(20 * kPage), shared(20 * kPage), home(20 * kPage), other(20 * kPage);
  const uhmm_processor second = add();
  for (Memory* each : {&mine, &shared, &home, &other}) fill(each->data(), each->bytes(), 1);
  UHMM_ASSERT_OK(uhmm_migrate(mine.data(), 10 * kPage, 1, nullptr));  // pages 0 to 9 are there only
  EXPECT_EQ(device_count_wrong(shared.data(), shared.bytes(), 1), 0u);
  UHMM_ASSERT_OK(uhmm_migrate(other.data(), other.bytes(), second, nullptr));
  ASSERT_EQ(pages_in_state(mine.data(), mine.bytes(), UHMM_PAGE_DEVICE), 10u);
  EventReader events;
  expect_crash(null_kernel, {}, {"SIGSEGV"});

  EXPECT_EQ(pages_in_state(mine.data(), mine.bytes(), UHMM_PAGE_LOST), 10u);
  EXPECT_EQ(stats().pages_lost, 10u);
  EXPECT_EQ(range_stats(mine.data()).pages_lost, 10u);
  std::uint32_t said_lost = 0, said_device = 0;
  for (const auto& event : events.next()) {
    if (event.kind == UHMM_EVENT_LOST) said_lost += event.pages;
    if (event.kind == UHMM_EVENT_DEVICE_LOST) ++said_device;
  }
  EXPECT_EQ(said_lost, 10u);
  EXPECT_EQ(said_device, 1u);
  for (const std::size_t page : {0u, 5u, 9u}) {
    const Raised raised = raised_by_read(mine.page(page) + 123);
    EXPECT_EQ(raised.signal, SIGBUS) << page;
    const auto at = reinterpret_cast<std::uintptr_t>(raised.address);
    EXPECT_EQ(at / kPage * kPage, reinterpret_cast<std::uintptr_t>(mine.page(page)));
  }
  EXPECT_EQ(mine.page(10)[0], pattern(1, 10 * kPage));
  for (Memory* each : {&shared, &home, &other}) {
    EXPECT_EQ(first_wrong(each->data(), each->bytes(), 1), each->bytes());
    fill(each->data(), each->bytes(), 3);
    EXPECT_EQ(first_wrong(each->data(), each->bytes(), 3), each->bytes());
  }

  // Lost is lost, also after a restart, until it is discarded.
  restart_and_use();
  EXPECT_EQ(raised_by_read(mine.data()).signal, SIGBUS);
  std::byte buffer[8];
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_device_read(1, mine.data(), buffer, sizeof(buffer), nullptr));
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_migrate(mine.data(), mine.bytes(), UHMM_CPU, nullptr));
  UHMM_ASSERT_OK(uhmm_discard(mine.data(), 10 * kPage));
  EXPECT_EQ(stats().pages_lost, 0u);
  for (std::size_t i = 0; i < 10 * kPage; ++i) ASSERT_EQ(mine.data()[i], std::byte{0}) << i;
  device_increment(mine.data(), mine.bytes());
  EXPECT_EQ(mine.data()[77], std::byte{1});
  EXPECT_EQ(mine.page(10)[0], static_cast<std::byte>(std::to_integer<int>(pattern(1, 10 * kPage)) + 1));
}

TEST_F(Crashes, LostPagesOfSharedMemoryToo) {
  may_lose_data_ = true;
  Memory memory(4 * kPage, true, MAP_SHARED | MAP_ANONYMOUS);
  device_fill(memory.data(), 2 * kPage, 1);
  expect_crash(null_kernel, {}, {"SIGSEGV"});
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_LOST), 2u);
  EXPECT_EQ(raised_by_read(memory.data()).signal, SIGBUS);
  EXPECT_EQ(memory.page(2)[0], std::byte{0});
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
  EXPECT_EQ(memory.data()[0], std::byte{0});
  memory.data()[0] = std::byte{7};
  restart_and_use();
  device_increment(memory.data(), memory.bytes());
  EXPECT_EQ(memory.data()[0], std::byte{8});
}

TEST_F(Crashes, LostPagesThatWereSharedBeforeAreDiscardedToo) {
  may_lose_data_ = true;
  for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
    SCOPED_TRACE(sharing == MAP_PRIVATE ? "private" : "shared");
    Memory memory(4 * kPage, true, sharing | MAP_ANONYMOUS);
    fill(memory.data(), memory.bytes(), 1);
    EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u);
    device_fill(memory.data(), memory.bytes(), 2);
    expect_crash(null_kernel, {}, {"SIGSEGV"});
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(raised_by_read(memory.page(i)).signal, SIGBUS) << i;
    UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_EQ(raised_by_read(memory.page(i)).signal, 0) << i;
      EXPECT_EQ(memory.page(i)[0], std::byte{0});
    }
    restart_and_use();
    fill(memory.data(), memory.bytes(), 3);
    device_increment(memory.data(), memory.bytes());
    EXPECT_EQ(memory.data()[5], static_cast<std::byte>(std::to_integer<int>(pattern(3, 5)) + 1));
  }
}

// Where the kernel can't poison a page, a mapping that raises SIGBUS takes its place for as long as it is lost.
TEST_F(Crashes, LostPagesThatCouldNotBePoisoned) {
  may_lose_data_ = true;
  for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
    SCOPED_TRACE(sharing == MAP_PRIVATE ? "private" : "shared");
    Memory memory(4 * kPage, true, sharing | MAP_ANONYMOUS);
    fill(memory.data(), memory.bytes(), 1);
    device_fill(memory.data(), memory.bytes(), 2);
    inject::arm(inject::Point::Poison, 1);
    expect_crash(null_kernel, {}, {"SIGSEGV"});
    const bool fired = inject::fired(inject::Point::Poison);
    inject::disarm_all();
    ASSERT_TRUE(fired);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(raised_by_read(memory.page(i)).signal, SIGBUS) << i;
    UHMM_ASSERT_OK(uhmm_device_restart(1));
    UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_EQ(raised_by_read(memory.page(i)).signal, 0) << i;
      EXPECT_EQ(memory.page(i)[0], std::byte{0});
    }
    for (int round = 0; round < 2; ++round) {
      fill(memory.data(), memory.bytes(), 3);
      device_increment(memory.data(), memory.bytes());
      for (std::size_t i = 0; i < memory.bytes(); ++i)
        ASSERT_EQ(memory.data()[i], static_cast<std::byte>(std::to_integer<int>(pattern(3, i)) + 1)) << i;
    }
  }
}

TEST_F(Crashes, UnregisterAndShutdownSayWhatIsLost) {
  may_lose_data_ = true;
  Memory memory(4 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  device_fill(memory.data(), memory.bytes(), 1);
  expect_crash(null_kernel, {}, {"SIGSEGV"});
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_unregister(memory.data()));
  EXPECT_EQ(raised_by_read(memory.data()).signal, SIGBUS) << "lost pages stay lost";
  EXPECT_EQ(stats().pages_lost, 0u) << "nobody manages them any more";
  Memory another(4 * kPage);
  restart_and_use();
  // Registered again, it is lost again: a kernel that touches it doesn't wait for what can't come.
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  EXPECT_EQ(pages_in_state(memory.data(), memory.bytes(), UHMM_PAGE_LOST), 4u);
  std::byte byte{};
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_device_read(1, memory.data(), &byte, 1, nullptr));
  UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(touch_kernel, SpanArgs{memory.data(), 1, 0, nullptr}));
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), 2 * kPage));
  EXPECT_EQ(memory.data()[0], std::byte{0});
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_unregister(memory.data()));
  device_fill(another.data(), another.bytes(), 1);
  expect_crash(abort_kernel, {}, {"SIGABRT"});
  running_ = false;
  UHMM_EXPECT_STATUS(UHMM_ERR_DATA_LOST, uhmm_shutdown());
  EXPECT_EQ(raised_by_read(another.data()).signal, SIGBUS);
}

TEST_F(Crashes, RemovalOfALostDevice) {
  may_lose_data_ = true;
  Memory memory(4 * kPage);
  device_fill(memory.data(), memory.bytes(), 1);
  expect_crash(null_kernel, {}, {"SIGSEGV"});
  const uhmm_status removed = uhmm_device_remove(1);
  EXPECT_TRUE(removed == UHMM_OK || removed == UHMM_ERR_DATA_LOST) << describe(removed);
  EXPECT_TRUE(list().empty());
  UHMM_ASSERT_OK(uhmm_discard(memory.data(), memory.bytes()));
  EXPECT_EQ(add(), 1u);
  UHMM_ASSERT_OK(uhmm_stream_create(1, &stream_));
  device_fill(memory.data(), memory.bytes(), 5);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 5), memory.bytes());
}

// ----------------------------------------------------------------------------------------------------- late libraries

TEST_F(Devices, KernelOfALibraryLoadedLaterIsKnownAfterARestart) {
  Memory memory(kPage);
  void* library = dlopen(UHMM_LATE_KERNEL, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const auto kernel = reinterpret_cast<uhmm_kernel>(dlsym(library, "late_kernel"));
  ASSERT_NE(kernel, nullptr);
  UHMM_EXPECT_STATUS(UHMM_ERR_UNKNOWN_KERNEL, launch(stream_, kernel, memory.data()));
  const std::string detail = uhmm_error_detail();
  for (const char* word : {"late_kernel", "uhmm_device_restart"})
    EXPECT_NE(detail.find(word), std::string::npos) << detail;
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));
  EXPECT_EQ(*memory.as<int>(), 0);
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  UHMM_EXPECT_OK(run(kernel, memory.data(), 1));
  EXPECT_EQ(*memory.as<int>(), 42);
  dlclose(library);
}

}  // namespace
}  // namespace uhmm::test
