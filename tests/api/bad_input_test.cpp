// SPDX-License-Identifier: Apache-2.0
// Bad input, by table: the exact status, a sentence about it, and nothing changed. Then every call in the states of the
// runtime in which it can't work.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "runtime/base/status.hpp"
#include "tests/api/bad_input_table.hpp"

namespace uhmm::test {
namespace {

// The names of all functions that the public C headers declare.
std::set<std::string> declared_functions() {
  std::set<std::string> names;
  for (const char* header : {"uhmm.h", "trace.h"}) {
    std::ifstream file(std::string(UHMM_INCLUDE_DIR) + "/uhmm/" + header);
    std::stringstream text;
    text << file.rdbuf();
    const std::string code = std::regex_replace(text.str(), std::regex("/\\*[^*]*\\*+([^/*][^*]*\\*+)*/"), "");
    const std::regex function("\\b(uhmm_[a-z_]+)\\(");
    for (std::sregex_iterator it(code.begin(), code.end(), function), end; it != end; ++it) names.insert((*it)[1]);
  }
  return names;
}

std::vector<Row> all_correct_calls() {
  // What calls that return a pointer or nothing say: their failure is a NULL, or a detail.
  const auto pointer = [](World& w, void* p) {
    if (p != nullptr) uhmm_free(p);
    return p != nullptr ? UHMM_OK : w.when_off;
  };
  return {
      {"uhmm_get_config", "", UHMM_OK,
       [](World&) {
         uhmm_config config = UHMM_CONFIG_INIT;
         return uhmm_get_config(&config);
       }},
      {"uhmm_device_count", "", UHMM_OK,
       [](World&) {
         std::uint32_t count = 0;
         return uhmm_device_count(&count);
       }},
      {"uhmm_device_list", "", UHMM_OK,
       [](World&) {
         uhmm_processor id = 0;
         std::uint32_t count = 0;
         return uhmm_device_list(&id, 1, &count);
       }},
      {"uhmm_device_get_info", "", UHMM_OK,
       [](World&) {
         uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
         return uhmm_device_get_info(1, &info);
       }},
      {"uhmm_device_add", "", UHMM_OK,
       [](World&) {
         uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
         desc.memory_bytes = kBlock;
         uhmm_processor id = 0;
         return uhmm_device_add(&desc, &id);
       }},
      {"uhmm_device_restart", "", UHMM_OK, [](World&) { return uhmm_device_restart(2); }},
      {"uhmm_device_remove", "", UHMM_OK, [](World&) { return uhmm_device_remove(2); }},
      {"uhmm_pool_create", "", UHMM_OK,
       [](World& w) {
         uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
         desc.bytes = kPage;
         return uhmm_pool_create(&desc, &w.pool);
       }},
      {"uhmm_register", "", UHMM_OK, [](World& w) { return uhmm_register(w.loose, kPage); }},
      {"uhmm_range_set_pool", "", UHMM_OK, [](World& w) { return uhmm_range_set_pool(w.loose, w.pool); }},
      {"uhmm_pool_destroy", "", UHMM_OK, [](World& w) { return uhmm_pool_destroy(w.pool); }},
      {"uhmm_unregister", "", UHMM_OK, [](World& w) { return uhmm_unregister(w.loose); }},
      {"uhmm_malloc", "", UHMM_OK, [=](World& w) { return pointer(w, uhmm_malloc(8)); }},
      {"uhmm_calloc", "", UHMM_OK, [=](World& w) { return pointer(w, uhmm_calloc(8, 8)); }},
      {"uhmm_aligned_alloc", "", UHMM_OK, [=](World& w) { return pointer(w, uhmm_aligned_alloc(64, 8)); }},
      {"uhmm_realloc", "", UHMM_OK, [=](World& w) { return pointer(w, uhmm_realloc(nullptr, 8)); }},
      {"uhmm_free", "", UHMM_OK,
       [](World& w) {
         void* block = w.when_off == UHMM_OK ? uhmm_malloc(8) : w.memory;
         uhmm_free(block);
         return *uhmm_error_detail() == '\0' ? UHMM_OK : w.when_off;
       }},
      {"uhmm_migrate", "", UHMM_OK, [](World& w) { return uhmm_migrate(w.memory, 1, 1, nullptr); }},
      {"uhmm_stream_create", "", UHMM_OK, [](World& w) { return uhmm_stream_create(1, &w.stream); }},
      {"uhmm_migrate_async", "", UHMM_OK, [](World& w) { return uhmm_migrate_async(w.memory, 1, 0, w.stream); }},
      {"uhmm_prefetch", "", UHMM_OK, [](World& w) { return uhmm_prefetch(w.memory, 1, 1, 0); }},
      {"uhmm_discard", "", UHMM_OK, [](World& w) { return uhmm_discard(w.memory, kPage); }},
      {"uhmm_forget", "", UHMM_OK, [](World& w) { return uhmm_forget(w.loose, kPage); }},
      {"uhmm_unregister_pages", "", UHMM_OK, [](World& w) { return uhmm_unregister_pages(w.loose, kPage); }},
      {"uhmm_revoke", "", UHMM_OK, [](World& w) { return uhmm_revoke(w.loose, kPage); }},
      {"uhmm_advise", "", UHMM_OK, [](World& w) { return uhmm_advise(w.memory, 1, UHMM_ADVISE_NONE, 0); }},
      {"uhmm_acquire", "", UHMM_OK, [](World& w) { return uhmm_acquire(w.memory, 1, 1, UHMM_ACCESS_READ); }},
      {"uhmm_release", "", UHMM_OK, [](World& w) { return uhmm_release(w.memory, 1, 1, UHMM_ACCESS_READ); }},
      {"uhmm_fence_record", "", UHMM_OK, [](World& w) { return uhmm_fence_record(w.stream, &w.fence); }},
      {"uhmm_stream_wait_fence", "", UHMM_OK, [](World& w) { return uhmm_stream_wait_fence(w.stream, w.fence); }},
      {"uhmm_fence_wait", "", UHMM_OK, [](World& w) { return uhmm_fence_wait(w.fence, UINT64_MAX); }},
      {"uhmm_fence_destroy", "", UHMM_OK, [](World& w) { return uhmm_fence_destroy(w.fence); }},
      {"uhmm_launch", "", UHMM_OK,
       [](World& w) {
         uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
         desc.kernel = empty_kernel;
         return uhmm_launch(w.stream, &desc);
       }},
      {"uhmm_stream_synchronize", "", UHMM_OK, [](World& w) { return uhmm_stream_synchronize(w.stream); }},
      {"uhmm_stream_destroy", "", UHMM_OK, [](World& w) { return uhmm_stream_destroy(w.stream); }},
      {"uhmm_device_read", "", UHMM_OK, [](World& w) { return uhmm_device_read(1, w.memory, w.buffer, 8, nullptr); }},
      {"uhmm_device_write", "", UHMM_OK, [](World& w) { return uhmm_device_write(1, w.memory, w.buffer, 8, nullptr); }},
      {"uhmm_make_exclusive", "", UHMM_OK, [](World& w) { return uhmm_make_exclusive(w.memory, 1, 1, nullptr); }},
      {"uhmm_snapshot", "", UHMM_OK,
       [](World& w) {
         std::size_t count = 0;
         return uhmm_snapshot(w.memory, 1, nullptr, 0, &count);
       }},
      {"uhmm_get_stats", "", UHMM_OK,
       [](World&) {
         uhmm_stats stats = UHMM_STATS_INIT;
         return uhmm_get_stats(&stats);
       }},
      {"uhmm_get_range_stats", "", UHMM_OK,
       [](World& w) {
         uhmm_stats stats = UHMM_STATS_INIT;
         return uhmm_get_range_stats(w.memory, &stats);
       }},
      {"uhmm_event_subscribe", "", UHMM_OK,
       [](World& w) { return uhmm_event_subscribe(2, ignore_event, nullptr, &w.subscription); }},
      {"uhmm_event_unsubscribe", "", UHMM_OK, [](World& w) { return uhmm_event_unsubscribe(w.subscription); }},
      {"uhmm_event_read", "", UHMM_OK,
       [](World&) {
         std::uint64_t cursor = 0;
         std::size_t count = 0;
         return uhmm_event_read(&cursor, nullptr, 0, &count);
       }},
  };
}

// Everything of the program's and the runtime's state that a failed call could have changed.
struct Everything {
  uhmm_stats totals{};
  uhmm_stats range{};
  std::vector<uhmm_page_info> pages;
  uhmm_device_info device{};
  std::uint32_t devices = 0;
  std::string config;

  static Everything now(const World& world) {
    Everything all;
    all.totals = stats();
    all.range = range_stats(world.memory);
    for (uhmm_stats* each : {&all.totals, &all.range}) each->metadata_bytes = each->staging_bytes = 0;
    all.pages = snapshot(world.memory, World::kHalf);
    all.device = device_info(1);
    EXPECT_EQ(uhmm_device_count(&all.devices), UHMM_OK);
    uhmm_config config = UHMM_CONFIG_INIT;
    EXPECT_EQ(uhmm_get_config(&config), UHMM_OK);
    all.config.assign(reinterpret_cast<const char*>(&config), sizeof(config));
    return all;
  }
  void expect_same(const Everything& other) const {
    EXPECT_EQ(std::memcmp(&totals, &other.totals, sizeof(totals)), 0) << "totals changed";
    EXPECT_EQ(std::memcmp(&range, &other.range, sizeof(range)), 0) << "the range's statistics changed";
    ASSERT_EQ(pages.size(), other.pages.size());
    EXPECT_EQ(std::memcmp(pages.data(), other.pages.data(), pages.size() * sizeof(pages[0])), 0)
        << "pages changed state";
    EXPECT_EQ(device.memory_free, other.device.memory_free);
    EXPECT_EQ(device.process_id, other.device.process_id);
    EXPECT_EQ(device.flags, other.device.flags);
    EXPECT_EQ(devices, other.devices);
    EXPECT_EQ(config, other.config);
  }
};

class BadInput : public RuntimeTest {
 protected:
  void TearDown() override {
    RuntimeTest::TearDown();
    if (world_.memory != nullptr) munmap(world_.memory, 36 * kPage);
  }
  void make_memory() {
    // Where the kernel puts nothing on its own, so that the hole stays one (and where sanitizers allow memory).
    void* const place = reinterpret_cast<void*>(0x7e90'0000'0000);
    auto* all = static_cast<std::byte*>(
        mmap(place, 36 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    ASSERT_EQ(all, place);
    world_.memory = all;
    world_.loose = all + World::kHalf;
    world_.unreadable = static_cast<std::byte*>(
        mmap(all + 33 * kPage, kPage, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    ASSERT_EQ(world_.unreadable, all + 33 * kPage);
    world_.hole = all + 35 * kPage;
    ASSERT_EQ(munmap(world_.hole, kPage), 0);
    char path[] = "/var/tmp/uhmm-bad-input-XXXXXX";  // not /tmp, which may be a tmpfs
    const int fd = mkstemp(path);
    ASSERT_GE(fd, 0);
    unlink(path);
    ASSERT_EQ(ftruncate(fd, kPage), 0);
    world_.private_file = static_cast<std::byte*>(mmap(nullptr, kPage, PROT_READ, MAP_PRIVATE, fd, 0));
    close(fd);
  }
  // Registered memory with pages on the device, in system memory, shared, and untouched.
  void make_states() {
    UHMM_ASSERT_OK(uhmm_register(world_.memory, World::kHalf));
    fill(world_.memory, 12 * kPage, 1);
    UHMM_ASSERT_OK(uhmm_migrate(world_.memory, 4 * kPage, 1, nullptr));
    UHMM_ASSERT_OK(uhmm_acquire(world_.memory + 4 * kPage, 4 * kPage, 1, UHMM_ACCESS_READ));
    UHMM_ASSERT_OK(uhmm_release(world_.memory + 4 * kPage, 4 * kPage, 1, UHMM_ACCESS_READ));
    world_.stream = stream_;
    UHMM_ASSERT_OK(uhmm_fence_record(stream_, &world_.fence));
    UHMM_ASSERT_OK(uhmm_fence_wait(world_.fence, UINT64_MAX));
    uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
    desc.bytes = kPage;
    UHMM_ASSERT_OK(uhmm_pool_create(&desc, &world_.pool));
    world_.block = uhmm_malloc(100);
    ASSERT_NE(world_.block, nullptr);
    std::memset(world_.block, 0x5a, 100);
  }

  World world_;
};

TEST_F(BadInput, IsAStatusWithACauseAndChangesNothing) {
  make_memory();
  make_states();
  const Everything before = Everything::now(world_);
  for (const Row& row : bad_calls()) {
    SCOPED_TRACE(std::string(row.call) + ": " + row.what);
    uhmm::set_detail("");
    const uhmm_status got = row.run(world_);
    EXPECT_STREQ(uhmm_status_name(got), uhmm_status_name(row.expected)) << uhmm_error_detail();
    EXPECT_EQ(*uhmm_error_detail() != '\0', row.expected != UHMM_OK) << uhmm_error_detail();
    before.expect_same(Everything::now(world_));
    if (HasFatalFailure()) return;
  }
  UHMM_EXPECT_OK(uhmm_stream_synchronize(stream_));  // nothing was queued that fails
  EXPECT_EQ(first_wrong(world_.memory, 12 * kPage, 1), 12 * kPage);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(static_cast<unsigned char*>(world_.block)[i], 0x5a);
}

TEST_F(BadInput, FaultDetailNamesTheAddress) {
  make_memory();
  for (std::byte* at : {world_.unreadable, world_.hole}) {
    UHMM_EXPECT_STATUS(UHMM_ERR_FAULT, uhmm_register(at, 2));
    std::ostringstream address;
    address << std::hex << reinterpret_cast<std::uintptr_t>(at);
    EXPECT_NE(std::string(uhmm_error_detail()).find(address.str()), std::string::npos) << uhmm_error_detail();
  }
}

TEST_F(BadInput, DetailIsPerThreadAndStaysUntilTheNextFailure) {
  UHMM_EXPECT_STATUS(UHMM_ERR_NOT_FOUND, uhmm_fence_destroy(4711));
  const std::string detail = uhmm_error_detail();
  std::uint32_t count = 0;
  UHMM_EXPECT_OK(uhmm_device_count(&count));
  EXPECT_EQ(uhmm_error_detail(), detail);
  EXPECT_NE(detail.find("4711"), std::string::npos);
}

// Calls that may be made at any time, and those that start and end the runtime.
const std::set<std::string> kAnyTime = {"uhmm_status_name",    "uhmm_status_text", "uhmm_error_detail", "uhmm_version",
                                        "uhmm_version_string", "uhmm_cause_text",  "uhmm_event_text"};

TEST_F(BadInput, TablesNameEveryDeclaredFunction) {
  std::set<std::string> bad;
  std::set<std::string> correct = kAnyTime;
  for (const Row& row : bad_calls()) bad.insert(row.call);
  for (const Row& row : all_correct_calls()) correct.insert(row.call);
  const auto declared = declared_functions();
  ASSERT_GT(declared.size(), 40u);
  // They take no argument that could be bad, or are tried below.
  const std::set<std::string> no_arguments = {"uhmm_error_detail", "uhmm_version", "uhmm_version_string",
                                              "uhmm_shutdown"};
  const std::set<std::string> tried_apart = {"uhmm_init", "uhmm_shutdown", "uhmm_usable_size"};
  for (const std::string& name : declared) {
    EXPECT_TRUE(bad.contains(name) || no_arguments.contains(name)) << name << " is not in the table of bad input";
    EXPECT_TRUE(correct.contains(name) || tried_apart.contains(name)) << name << " is not tried in every state";
  }
}

// In the state that gives `off`: every call says so. Returns the number of calls that did not.
int count_wrong_answers(World& world, uhmm_status off) {
  int wrong = 0;
  world.when_off = off;
  for (const Row& row : all_correct_calls()) {
    uhmm::set_detail("");
    const uhmm_status got = row.run(world);
    if (got == off && *uhmm_error_detail() != '\0') continue;
    std::fprintf(stderr, "%s: %s, expected %s; detail '%s'\n", row.call, uhmm_status_name(got), uhmm_status_name(off),
                 uhmm_error_detail());
    ++wrong;
  }
  if (uhmm_shutdown() != off) ++wrong;
  if (uhmm_usable_size(world.memory) != 0) ++wrong;
  return wrong;
}

TEST_F(BadInput, CorrectCallsWork) {  // or the tests below would show nothing
  make_memory();
  UHMM_ASSERT_OK(uhmm_register(world_.memory, World::kHalf));
  for (const Row& row : all_correct_calls()) {
    uhmm::set_detail("");
    const uhmm_status got = row.run(world_);
    EXPECT_EQ(got, UHMM_OK) << row.call << ": " << describe(got);
  }
}

TEST_F(BadInput, AfterShutdownEveryCallSaysSo) {
  make_memory();
  make_states();
  stop();
  EXPECT_EQ(count_wrong_answers(world_, UHMM_ERR_NOT_INITIALIZED), 0);
  EXPECT_EQ(first_wrong(world_.memory, 12 * kPage, 1), 12 * kPage);
  // What uhmm_malloc gave stays readable and writable.
  std::memset(world_.block, 1, 100);
  start(test_config());
  UHMM_EXPECT_OK(uhmm_register(world_.memory, World::kHalf));
}

TEST_F(BadInput, InAForkedChildEveryCallSaysSo) {
  make_memory();
  make_states();
  const pid_t child = fork();
  if (child == 0) {
    int wrong = count_wrong_answers(world_, UHMM_ERR_FORKED);
    if (first_wrong(world_.memory, 12 * kPage, 1) != 12 * kPage) wrong += 200;
    _exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

class BeforeInit : public BadInput {
  bool starts_itself() const override { return false; }
};

TEST_F(BeforeInit, EveryCallSaysSo) {
  make_memory();
  world_.stream = world_.fence = world_.pool = world_.subscription = 1;
  EXPECT_EQ(count_wrong_answers(world_, UHMM_ERR_NOT_INITIALIZED), 0);
}

TEST_F(BeforeInit, TextsAreThere) {
  EXPECT_EQ(uhmm_version(), std::uint32_t{UHMM_VERSION});
  EXPECT_STREQ(uhmm_status_name(UHMM_ERR_BUSY), "UHMM_ERR_BUSY");
  EXPECT_STREQ(uhmm_cause_text(UHMM_CAUSE_EVICTION), "eviction");
  EXPECT_NE(uhmm_error_detail(), nullptr);
}

}  // namespace
}  // namespace uhmm::test
