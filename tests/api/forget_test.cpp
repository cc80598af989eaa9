// SPDX-License-Identifier: Apache-2.0
// Memory ends or changes its protection: uhmm_forget, uhmm_revoke; and memory that is a private mapping of a file.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "runtime/base/thread.hpp"
#include "runtime/os/memory.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class Forget : public RuntimeTest {
 protected:
  void for_each_kind(const std::function<void(int sharing)>& body) {
    for (const std::uint32_t flags : {0u, UHMM_CONFIG_NO_MOVE, UHMM_CONFIG_COHERENT}) {
      for (const int sharing : {MAP_PRIVATE, MAP_SHARED}) {
        SCOPED_TRACE(std::string(sharing == MAP_PRIVATE ? "private" : "shared") + ", flags " + std::to_string(flags));
        start_with([&](uhmm_config& config) { config.flags |= flags; });
        body(sharing | MAP_ANONYMOUS);
      }
    }
  }
  void to_device(const Memory& memory) { UHMM_ASSERT_OK(uhmm_migrate(memory.data(), memory.bytes(), 1, nullptr)); }
};

std::size_t on_device(const std::byte* data, std::size_t bytes) {
  return pages_in_state(data, bytes, UHMM_PAGE_DEVICE);
}

TEST_F(Forget, ARangeIsCut) {
  for_each_kind([&](int flags) {
    Memory memory(3 * kBlock, false, flags);
    UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
    fill(memory.data(), memory.bytes(), 1);
    to_device(memory);
    const std::size_t from = 100 * kPage;
    const std::size_t to = kBlock + 700 * kPage;
    UHMM_ASSERT_OK(uhmm_forget(memory.data() + from, to - from));
    // Something else, and not nothing: what is free anybody may take.
    ASSERT_EQ(mmap(memory.data() + from, to - from, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
              memory.data() + from);
    EXPECT_EQ(stats().registered_bytes, memory.bytes() - (to - from));
    std::size_t count = 0;
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_snapshot(memory.data() + from, kPage, nullptr, 0, &count));
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_snapshot(memory.data() + to - kPage, kPage, nullptr, 0, &count));

    // The others stayed where they were, and each part counts its own.
    EXPECT_EQ(on_device(memory.data(), from), from / kPage);
    EXPECT_EQ(on_device(memory.data() + to, memory.bytes() - to), (memory.bytes() - to) / kPage);
    EXPECT_EQ(range_stats(memory.data()).pages_on_devices, from / kPage);
    EXPECT_EQ(range_stats(memory.data() + to).pages_on_devices, (memory.bytes() - to) / kPage);
    EXPECT_EQ(stats().pages_on_devices, (memory.bytes() - (to - from)) / kPage);

    // New memory there has nothing to do with the old.
    ASSERT_EQ(mmap(memory.data() + from, to - from, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0),
              memory.data() + from);
    UHMM_ASSERT_OK(uhmm_register(memory.data() + from, to - from));
    device_increment(memory.data() + from, to - from);
    for (std::size_t i = from; i < to; ++i) ASSERT_EQ(memory.data()[i], std::byte{1}) << i;
    EXPECT_EQ(device_count_wrong(memory.data(), from, 1), 0u);
    EXPECT_EQ(first_wrong(memory.data(), from, 1), from);
    for (std::size_t i = to; i < memory.bytes(); ++i) ASSERT_EQ(memory.data()[i], pattern(1, i)) << i;
    UHMM_EXPECT_OK(uhmm_unregister(memory.data()));
    UHMM_EXPECT_OK(uhmm_unregister(memory.data() + from));
    UHMM_EXPECT_OK(uhmm_unregister(memory.data() + to));
    EXPECT_EQ(stats().ranges, 0u);
    EXPECT_EQ(stats().pages_on_devices, 0u);
  });
}

TEST_F(Forget, SeveralRangesAtOnce) {
  for_each_kind([&](int flags) {
    Memory memory(20 * kPage, false, flags);
    // They meet inside pages 4 and 9.
    const std::size_t ends[] = {0, 4 * kPage + 100, 9 * kPage + 7, 20 * kPage};
    for (int i = 0; i < 3; ++i) UHMM_ASSERT_OK(uhmm_register(memory.data() + ends[i], ends[i + 1] - ends[i]));
    fill(memory.data(), memory.bytes(), 1);
    to_device(memory);
    UHMM_ASSERT_OK(uhmm_forget(memory.page(2), 10 * kPage));
    EXPECT_EQ(stats().ranges, 2u);
    EXPECT_EQ(on_device(memory.data(), 2 * kPage), 2u);
    EXPECT_EQ(on_device(memory.page(12), 8 * kPage), 8u);
    for (std::size_t i = 2 * kPage; i < 12 * kPage; ++i) ASSERT_EQ(memory.data()[i], std::byte{0}) << i;
    EXPECT_EQ(first_wrong(memory.data(), 2 * kPage, 1), 2 * kPage);
    UHMM_EXPECT_OK(uhmm_forget(memory.data(), memory.bytes()));
    EXPECT_EQ(stats().ranges, 0u);
    EXPECT_EQ(device_info().memory_free, device_info().memory_bytes);
  });
}

TEST_F(Forget, OrIsKeptAndOnlyUnregistered) {
  for_each_kind([&](int flags) {
    Memory memory(20 * kPage, false, flags);
    UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
    fill(memory.data(), memory.bytes(), 1);
    to_device(memory);
    UHMM_ASSERT_OK(uhmm_unregister_pages(memory.page(3), 4 * kPage));
    std::size_t count = 0;
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_REGISTERED, uhmm_snapshot(memory.page(6), kPage, nullptr, 0, &count));
    EXPECT_EQ(stats().registered_bytes, 16 * kPage);
    EXPECT_EQ(on_device(memory.data(), 3 * kPage), 3u);
    EXPECT_EQ(on_device(memory.page(7), 13 * kPage), 13u);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
    UHMM_EXPECT_OK(uhmm_unregister_pages(memory.data(), memory.bytes()));
    EXPECT_EQ(stats().ranges, 0u);
    EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  });
}

TEST_F(Forget, AnAcquireKeepsNoneOfWhatIsCut) {
  Memory memory(20 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  fill(memory.data(), memory.bytes(), 1);
  UHMM_ASSERT_OK(uhmm_acquire(memory.data(), 2 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_acquire(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ));
  UHMM_ASSERT_OK(uhmm_forget(memory.page(8), kPage));
  UHMM_EXPECT_OK(uhmm_release(memory.data(), memory.bytes(), 1, UHMM_ACCESS_READ));
  UHMM_EXPECT_OK(uhmm_release(memory.data(), 2 * kPage, 1, UHMM_ACCESS_READ));
  UHMM_EXPECT_OK(uhmm_unregister(memory.page(9)));
  UHMM_EXPECT_OK(uhmm_unregister(memory.data()));
}

TEST_F(Forget, NothingToForgetIsFine) {
  Memory memory(4 * kPage, false);
  fill(memory.data(), memory.bytes(), 1);
  UHMM_EXPECT_OK(uhmm_forget(memory.data(), memory.bytes()));
  UHMM_EXPECT_OK(uhmm_revoke(memory.data(), memory.bytes()));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_STATUS(UHMM_ERR_INVALID, uhmm_forget(memory.data() + 1, kPage));
  UHMM_EXPECT_STATUS(UHMM_ERR_INVALID, uhmm_revoke(memory.data() + 1, kPage));
}

TEST_F(Forget, PoolOwnersAreTold) {
  static std::atomic<int> freed;
  freed = 0;
  uhmm_pool_ops ops = UHMM_POOL_OPS_INIT;
  ops.page_free = [](void*, std::uint64_t, uhmm_cause) { ++freed; };
  uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
  desc.bytes = kBlock;
  desc.ops = &ops;
  uhmm_pool pool = 0;
  UHMM_ASSERT_OK(uhmm_pool_create(&desc, &pool));
  Memory memory(10 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  UHMM_ASSERT_OK(uhmm_range_set_pool(memory.data(), pool));
  to_device(memory);
  UHMM_ASSERT_OK(uhmm_forget(memory.page(5), 5 * kPage));
  EXPECT_EQ(freed, 5);
  UHMM_ASSERT_OK(uhmm_unregister(memory.data()));
  EXPECT_EQ(freed, 10);
}

TEST_F(Forget, LostPagesAreForgotten) {
  may_lose_data_ = true;
  Memory memory(8 * kPage, false);
  UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
  fill(memory.data(), memory.bytes(), 1);
  to_device(memory);
  kill(static_cast<pid_t>(device_info().process_id), SIGKILL);
  while (stats().pages_lost != 8) usleep(100);
  UHMM_ASSERT_OK(uhmm_forget(memory.data(), 4 * kPage));
  EXPECT_EQ(stats().pages_lost, 4u);
  EXPECT_EQ(raised_by_read(memory.data()).signal, 0);
  EXPECT_EQ(raised_by_read(memory.page(4)).signal, SIGBUS);
}

// Pieces of a range end and are mapped anew while a device and another thread work on all of it.
TEST_F(Forget, BesideOthersThatUseTheRange) {
  for_each_kind([&](int flags) {
    Memory memory(2 * kBlock, false, flags);
    UHMM_ASSERT_OK(uhmm_register(memory.data(), memory.bytes()));
    fill(memory.data(), memory.bytes(), 1);
    std::atomic<bool> end{false};
    std::thread mover([&] {
      for (unsigned i = 0; !end; ++i) (void)uhmm_migrate(memory.page(i % 900), 100 * kPage, 1, nullptr);
    });
    std::thread reader([&] {
      std::vector<std::byte> bytes(20 * kPage);
      for (unsigned i = 0; !end; ++i)
        (void)uhmm_device_read(1, memory.page(i * 7 % 1000), bytes.data(), bytes.size(), nullptr);
    });
    // Every other piece of 16 pages, so that those between them must keep what they have.
    for (int round = 0; round < 3; ++round) {
      for (std::size_t page = 16; page + 16 <= memory.pages(); page += 32) {
        std::byte* piece = memory.page(page);
        UHMM_EXPECT_OK(uhmm_forget(piece, 16 * kPage));
        EXPECT_EQ(mmap(piece, 16 * kPage, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0), piece);
        UHMM_EXPECT_OK(uhmm_register(piece, 16 * kPage));
        for (std::size_t i = 0; i < 16 * kPage; i += kPage) EXPECT_EQ(piece[i], std::byte{0}) << page << " " << i;
        std::memset(piece, 0x5a, 16 * kPage);
      }
    }
    end = true;
    mover.join();
    reader.join();
    for (std::size_t i = 0; i < memory.bytes(); ++i) {
      const bool replaced = i / kPage / 16 % 2 == 1;
      ASSERT_EQ(memory.data()[i], replaced ? std::byte{0x5a} : pattern(1, i)) << i;
    }
    UHMM_EXPECT_OK(uhmm_forget(memory.data(), memory.bytes()));
    EXPECT_EQ(stats().ranges, 0u);
  });
}

class Revoke : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    os::ProcessMemory process;
    ASSERT_TRUE(process.open().ok());
    if (!process.find_access(VirtAddr{this}).ok()) GTEST_SKIP() << "this kernel can't say what is protected (6.11)";
    process.close();
  }
};

TEST_F(Revoke, AProtectionHoldsForWhatADeviceHasMappedAlready) {
  Memory memory(16 * kPage);
  device_fill(memory.data(), memory.bytes(), 1);
  ASSERT_EQ(mprotect(memory.data(), memory.bytes(), PROT_READ), 0);
  UHMM_ASSERT_OK(uhmm_revoke(memory.data(), memory.bytes()));
  for (const uhmm_page_info& page : snapshot(memory.data(), memory.bytes())) {
    EXPECT_EQ(page.state, UHMM_PAGE_DEVICE) << "data stays";
    EXPECT_EQ(page.mapped, 0u);
  }
  EXPECT_EQ(device_count_wrong(memory.data(), memory.bytes(), 1), 0u) << "reading is allowed";
  UHMM_EXPECT_STATUS(UHMM_ERR_PERMISSION, uhmm_device_write(1, memory.data(), "x", 1, nullptr));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
  UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, run(fill_kernel, SpanArgs{memory.data(), kPage, 2, nullptr}));
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 1), memory.bytes());
}

TEST_F(Revoke, AlsoWhileAKernelRuns) {
  Memory memory(2 * kPage);
  auto* word = memory.as<std::atomic<std::uint64_t>>();
  auto* stop_word = reinterpret_cast<std::atomic<std::uint64_t>*>(memory.page(1));
  struct Args {
    std::atomic<std::uint64_t>* word;
    std::atomic<std::uint64_t>* stop;
  };
  // Writes until it may not any more.
  const auto writer = [](const uhmm_kernel_item*, void* raw) {
    const auto* args = static_cast<const Args*>(raw);
    while (args->stop->load() == 0) args->word->fetch_add(1);
  };
  UHMM_ASSERT_OK(launch(stream_, writer, Args{word, stop_word}));
  while (word->load() == 0) usleep(1000);
  ASSERT_EQ(mprotect(memory.data(), kPage, PROT_READ), 0);
  UHMM_ASSERT_OK(uhmm_revoke(memory.data(), kPage));
  UHMM_EXPECT_STATUS(UHMM_ERR_KERNEL_FAILED, uhmm_stream_synchronize(stream_));
  UHMM_ASSERT_OK(uhmm_device_restart(1));
  may_lose_data_ = true;  // with the device's crash went what only it had
}

// ------------------------------------------------------------------------------------------- private mappings of files

class PrivateFile : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    file_ = fileno(std::tmpfile());
    for (std::size_t i = 0; i < bytes_; ++i) ASSERT_EQ(pwrite(file_, &contents(i), 1, static_cast<off_t>(i)), 1);
    data_ = static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_, 0));
    ASSERT_NE(data_, MAP_FAILED);
  }
  void TearDown() override {
    RuntimeTest::TearDown();
    munmap(data_, bytes_);
    close(file_);
  }
  static const std::byte& contents(std::size_t i) {
    static thread_local std::byte byte;
    return byte = pattern(1, i);
  }
  // Sanitizers have threads of their own.
  static bool other_threads() { return os::count_threads() != Thread::count() + 1; }

  const std::size_t bytes_ = 8 * kPage;
  int file_ = -1;
  std::byte* data_ = nullptr;
};

TEST_F(PrivateFile, MovesLikeOtherMemory) {
  if (other_threads()) GTEST_SKIP() << "a sanitizer's thread runs";
  data_[kPage] = std::byte{77};  // a page of its own already
  UHMM_ASSERT_OK(uhmm_register(data_, bytes_));
  UHMM_ASSERT_OK(uhmm_migrate(data_, bytes_, 1, nullptr));
  EXPECT_EQ(on_device(data_, bytes_), bytes_ / kPage);
  device_increment(data_, bytes_);
  for (std::size_t i = 0; i < bytes_; ++i) {
    const std::byte before = i == kPage ? std::byte{77} : pattern(1, i);
    ASSERT_EQ(data_[i], static_cast<std::byte>(std::to_integer<int>(before) + 1)) << i;
    std::byte in_file{};
    ASSERT_EQ(pread(file_, &in_file, 1, static_cast<off_t>(i)), 1);
    ASSERT_EQ(in_file, pattern(1, i)) << "the file stays as it is";
  }
  UHMM_EXPECT_OK(uhmm_unregister(data_));
}

TEST_F(PrivateFile, KeepsItsProtection) {
  if (other_threads()) GTEST_SKIP() << "a sanitizer's thread runs";
  ASSERT_EQ(mprotect(data_, 2 * kPage, PROT_READ), 0);
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_register(data_, bytes_));
  UHMM_ASSERT_OK(uhmm_register(data_ + 2 * kPage, bytes_ - 2 * kPage));
  EXPECT_EQ(raised_by([&] { *const_cast<volatile std::byte*>(data_) = std::byte{1}; }).signal, SIGSEGV);
  data_[2 * kPage] = std::byte{5};
  EXPECT_EQ(data_[2 * kPage + 1], pattern(1, 2 * kPage + 1));
  UHMM_EXPECT_OK(uhmm_unregister(data_ + 2 * kPage));
}

TEST_F(PrivateFile, NotBesideAnotherThread) {
  std::atomic<bool> end{false};
  std::thread other([&] {
    while (!end) usleep(100);
  });
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_register(data_, bytes_));
  end = true;
  other.join();
}

TEST_F(PrivateFile, NotBeyondTheEndOfTheFile) {
  if (other_threads()) GTEST_SKIP() << "a sanitizer's thread runs";
  ASSERT_EQ(ftruncate(file_, static_cast<off_t>(4 * kPage)), 0);
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_SUPPORTED, uhmm_register(data_, bytes_));
  UHMM_EXPECT_OK(uhmm_register(data_, 4 * kPage));
  EXPECT_EQ(device_count_wrong(data_, 4 * kPage, 1), 0u);
  UHMM_EXPECT_OK(uhmm_unregister(data_));
}

alignas(kPage) std::byte initialised_data[4 * kPage] = {std::byte{1}, std::byte{2}};

TEST_F(PrivateFile, TheProgramsInitialisedData) {
  if (other_threads()) GTEST_SKIP() << "a sanitizer's thread runs";
  UHMM_ASSERT_OK(uhmm_register(initialised_data, sizeof(initialised_data)));
  device_increment(initialised_data, sizeof(initialised_data));
  EXPECT_EQ(initialised_data[0], std::byte{2});
  EXPECT_EQ(initialised_data[1], std::byte{3});
  EXPECT_EQ(initialised_data[sizeof(initialised_data) - 1], std::byte{1});
  UHMM_EXPECT_OK(uhmm_unregister(initialised_data));
}

}  // namespace
}  // namespace uhmm::test
