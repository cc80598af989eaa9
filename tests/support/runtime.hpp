// SPDX-License-Identifier: Apache-2.0
// What tests of the public interface share: a runtime for one test, memory of a test, simple kernels.
#pragma once

#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/os/memory.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::test {

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kBlock = std::size_t{2} << 20;

inline std::string describe(uhmm_status status) {
  return std::string(uhmm_status_name(status)) + ": " + uhmm_error_detail();
}

}  // namespace uhmm::test

// The status by name and the detail: that is what a failed test has to say.
#define UHMM_EXPECT_STATUS(expected, call)                                                    \
  do {                                                                                        \
    const uhmm_status uhmm_got_ = (call);                                                     \
    EXPECT_EQ(uhmm_got_, (expected)) << #call << " is " << ::uhmm::test::describe(uhmm_got_); \
  } while (0)
#define UHMM_ASSERT_STATUS(expected, call)                                                    \
  do {                                                                                        \
    const uhmm_status uhmm_got_ = (call);                                                     \
    ASSERT_EQ(uhmm_got_, (expected)) << #call << " is " << ::uhmm::test::describe(uhmm_got_); \
  } while (0)
#define UHMM_EXPECT_OK(call) UHMM_EXPECT_STATUS(UHMM_OK, call)
#define UHMM_ASSERT_OK(call) UHMM_ASSERT_STATUS(UHMM_OK, call)

namespace uhmm::test {

// A configuration that the caller's environment can't change.
inline uhmm_config test_config() {
  uhmm_config config = UHMM_CONFIG_INIT;
  config.flags = UHMM_CONFIG_NO_ENV;
  config.device_memory = std::uint64_t{64} << 20;
  return config;
}

inline uhmm_stats stats() {
  uhmm_stats out = UHMM_STATS_INIT;
  UHMM_EXPECT_OK(uhmm_get_stats(&out));
  return out;
}
inline uhmm_stats range_stats(const void* address) {
  uhmm_stats out = UHMM_STATS_INIT;
  UHMM_EXPECT_OK(uhmm_get_range_stats(address, &out));
  return out;
}
inline uhmm_device_info device_info(uhmm_processor device = 1) {
  uhmm_device_info out = UHMM_DEVICE_INFO_INIT;
  UHMM_EXPECT_OK(uhmm_device_get_info(device, &out));
  return out;
}

inline std::vector<uhmm_page_info> snapshot(const void* address, std::size_t bytes) {
  std::size_t count = 0;
  UHMM_EXPECT_OK(uhmm_snapshot(address, bytes, nullptr, 0, &count));
  std::vector<uhmm_page_info> pages(count);
  UHMM_EXPECT_OK(uhmm_snapshot(address, bytes, pages.data(), count, &count));
  return pages;
}
inline std::size_t pages_in_state(const void* address, std::size_t bytes, uhmm_page_state state) {
  const auto pages = snapshot(address, bytes);
  return static_cast<std::size_t>(
      std::count_if(pages.begin(), pages.end(), [&](const auto& page) { return page.state == state; }));
}

// Events recorded after the last call (or since the start), at most what the ring keeps.
class EventReader {
 public:
  EventReader() { next(); }
  std::vector<uhmm_event> next() {
    std::vector<uhmm_event> events(1 << 16);
    std::size_t count = 0;
    UHMM_EXPECT_OK(uhmm_event_read(&cursor_, events.data(), events.size(), &count));
    events.resize(count);
    return events;
  }

 private:
  std::uint64_t cursor_ = 0;
};

// Anonymous memory of its own, registered unless told otherwise. Ends registration and mapping.
class Memory {
 public:
  explicit Memory(std::size_t bytes, bool registered = true, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1)
      : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED) {
      ADD_FAILURE() << "mmap of " << bytes << " bytes";
      std::abort();
    }
    data_ = static_cast<std::byte*>(memory);
    if (registered) {
      UHMM_EXPECT_OK(uhmm_register(data_, bytes_));
      registered_ = true;
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (registered_) (void)uhmm_unregister(data_);  // the runtime may have ended; lost pages are a test's own affair
    munmap(data_, bytes_);
  }
  // Memory that begins at a 2 MiB boundary, of `blocks` blocks, inside a larger mapping.
  std::byte* data() const { return data_; }
  std::byte* page(std::size_t i) const { return data_ + i * kPage; }
  std::size_t bytes() const { return bytes_; }
  std::size_t pages() const { return (bytes_ + kPage - 1) / kPage; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  bool registered_ = false;
};

// `blocks` whole 2 MiB blocks, registered.
class BlockMemory {
 public:
  explicit BlockMemory(std::size_t blocks, bool managed = true)
      : bytes_(blocks * kBlock), managed_(managed), whole_(bytes_ + kBlock, false) {
    const auto address = reinterpret_cast<std::uintptr_t>(whole_.data());
    data_ = whole_.data() + (kBlock - address % kBlock) % kBlock;
    if (managed_) UHMM_EXPECT_OK(uhmm_register(data_, bytes_));
  }
  ~BlockMemory() {
    if (managed_) (void)uhmm_unregister(data_);
  }
  std::byte* data() const { return data_; }
  std::byte* block(std::size_t i) const { return data_ + i * kBlock; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  bool managed_;
  Memory whole_;
  std::byte* data_ = nullptr;
};

// Is there one huge page at this 2 MiB boundary?
inline bool is_huge(const void* block) {
  os::ProcessMemory process;
  const bool opened = process.open().ok();
  const bool huge = opened && process.is_huge(VirtAddr{reinterpret_cast<std::uint64_t>(block)});
  process.close();
  return huge;
}
// Does this machine give huge pages to memory that asks for them?
inline bool huge_pages_can_be_had() {
  const BlockMemory block(1, false);
  (void)madvise(block.data(), kBlock, MADV_HUGEPAGE);
  block.data()[0] = std::byte{1};
  return is_huge(block.data());
}

// ------------------------------------------------------------------------------------------------ contents and kernels

// What byte `i` is in a span filled with `seed`: pages and neighbours differ.
inline std::byte pattern(std::uint64_t seed, std::size_t i) {
  return static_cast<std::byte>((seed + i * 31 + (i >> 12) * 7 + (i >> 21)) & 0xff);
}
inline void fill(std::byte* data, std::size_t bytes, std::uint64_t seed) {
  for (std::size_t i = 0; i < bytes; ++i) data[i] = pattern(seed, i);
}
// The first byte that is not as filled, or `bytes`.
inline std::size_t first_wrong(const std::byte* data, std::size_t bytes, std::uint64_t seed) {
  for (std::size_t i = 0; i < bytes; ++i)
    if (data[i] != pattern(seed, i)) return i;
  return bytes;
}

struct SpanArgs {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::uint64_t seed = 0;
  std::atomic<std::uint64_t>* result = nullptr;  // managed memory
};

// This cell's part of `bytes`, in whole pages where there are enough.
inline std::pair<std::size_t, std::size_t> slice(const uhmm_kernel_item* item, std::size_t bytes) {
  const std::size_t cells = item->grid[0];
  const std::size_t part = ((bytes + cells - 1) / cells + kPage - 1) / kPage * kPage;
  return {std::min(bytes, item->index[0] * part), std::min(bytes, (item->index[0] + 1) * part)};
}

inline void fill_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const auto [begin, end] = slice(item, args->bytes);
  for (std::size_t i = begin; i < end; ++i) args->data[i] = pattern(args->seed, i);
}
// Adds one to every byte: reads and writes.
inline void increment_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const auto [begin, end] = slice(item, args->bytes);
  for (std::size_t i = begin; i < end; ++i)
    args->data[i] = static_cast<std::byte>(std::to_integer<int>(args->data[i]) + 1);
}
// Adds the number of wrong bytes to *result.
inline void count_wrong_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const auto [begin, end] = slice(item, args->bytes);
  std::uint64_t wrong = 0;
  for (std::size_t i = begin; i < end; ++i) wrong += args->data[i] != pattern(args->seed, i) ? 1 : 0;
  args->result->fetch_add(wrong);
}
// Reads one byte of each page.
inline void touch_kernel(const uhmm_kernel_item* item, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  const auto [begin, end] = slice(item, args->bytes);
  for (std::size_t i = begin; i < end; i += kPage) (void)*static_cast<const volatile std::byte*>(args->data + i);
}
// Waits until *result is not 0: holds a stream up until a test says so.
inline void wait_kernel(const uhmm_kernel_item*, void* raw) {
  const auto* args = static_cast<const SpanArgs*>(raw);
  while (args->result->load() == 0) {
  }
}

template <typename Args>
uhmm_status launch(uhmm_stream stream, uhmm_kernel kernel, const Args& args, std::uint32_t cells = 1) {
  uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
  desc.kernel = kernel;
  desc.args = &args;
  desc.args_size = sizeof(args);
  desc.grid[0] = cells;
  return uhmm_launch(stream, &desc);
}

// -------------------------------------------------------------------------------------------------------- fixture

class RuntimeTest : public testing::Test {
 protected:
  // Most tests start with this; the others override set_up_runtime().
  void SetUp() override {
    if (starts_itself()) start(test_config());
  }
  virtual bool starts_itself() const { return true; }
  void TearDown() override { stop(); }

  void start(const uhmm_config& config) {
    UHMM_ASSERT_OK(uhmm_init(&config));
    running_ = true;
    UHMM_ASSERT_OK(uhmm_stream_create(1, &stream_));
  }
  // Again, with another configuration.
  void start_with(const std::function<void(uhmm_config&)>& change) {
    stop();
    uhmm_config config = test_config();
    change(config);
    start(config);
  }
  void stop() {
    if (!std::exchange(running_, false)) return;
    const uhmm_status ended = uhmm_shutdown();
    EXPECT_TRUE(ended == UHMM_OK || (may_lose_data_ && ended == UHMM_ERR_DATA_LOST)) << describe(ended);
  }

  // Run a kernel on device 1 to its end.
  template <typename Args>
  uhmm_status run(uhmm_kernel kernel, const Args& args, std::uint32_t cells = 4) {
    const uhmm_status launched = launch(stream_, kernel, args, cells);
    return launched != UHMM_OK ? launched : uhmm_stream_synchronize(stream_);
  }
  void device_fill(std::byte* data, std::size_t bytes, std::uint64_t seed) {
    UHMM_ASSERT_OK(run(fill_kernel, SpanArgs{data, bytes, seed, nullptr}));
  }
  void device_increment(std::byte* data, std::size_t bytes) {
    UHMM_ASSERT_OK(run(increment_kernel, SpanArgs{data, bytes, 0, nullptr}));
  }
  // Wrong bytes as a kernel on device 1 sees them.
  std::uint64_t device_count_wrong(std::byte* data, std::size_t bytes, std::uint64_t seed) {
    Memory result(kPage);
    auto* wrong = result.as<std::atomic<std::uint64_t>>();
    UHMM_EXPECT_OK(run(count_wrong_kernel, SpanArgs{data, bytes, seed, wrong}));
    return wrong->load();
  }

  uhmm_stream stream_ = 0;
  bool running_ = false;
  bool may_lose_data_ = false;
};

// ---------------------------------------------------------------------------------------------------------- signals

// Runs `access` and says which signal it raised (0: none) and at which address.
struct Raised {
  int signal = 0;
  const void* address = nullptr;
};

namespace detail {
inline thread_local sigjmp_buf* signal_return = nullptr;
inline thread_local Raised raised;
inline void on_test_signal(int signal, siginfo_t* info, void*) {
  if (signal_return == nullptr) {
    ::signal(signal, SIG_DFL);  // not ours: the access is repeated and ends the program
    return;
  }
  raised = {signal, info->si_addr};
  siglongjmp(*signal_return, 1);
}
}  // namespace detail

template <typename Access>
Raised raised_by(Access&& access) {
  struct sigaction action {};
  struct sigaction old_bus {};
  struct sigaction old_segv {};
  action.sa_sigaction = detail::on_test_signal;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &old_bus);
  sigaction(SIGSEGV, &action, &old_segv);
  sigjmp_buf buffer;
  detail::raised = {};
  detail::signal_return = &buffer;
  if (sigsetjmp(buffer, 1) == 0) access();
  detail::signal_return = nullptr;
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGSEGV, &old_segv, nullptr);
  return detail::raised;
}
inline Raised raised_by_read(const void* address) {
  return raised_by([&] { (void)*static_cast<const volatile unsigned char*>(address); });
}

}  // namespace uhmm::test
