// SPDX-License-Identifier: Apache-2.0
// A bad configuration, in the struct or in the environment, is a clear error and starts nothing.
#include <stdlib.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "tests/support/runtime.hpp"

namespace uhmm::test {
namespace {

class BadConfig : public RuntimeTest {
 protected:
  bool starts_itself() const override { return false; }

  static void expect_off() {
    std::uint32_t count = 0;
    UHMM_EXPECT_STATUS(UHMM_ERR_NOT_INITIALIZED, uhmm_device_count(&count));
  }
  // The detail has to name what is wrong.
  static void expect_refused(const uhmm_config* config, uhmm_status expected, const std::string& name) {
    UHMM_EXPECT_STATUS(expected, uhmm_init(config));
    EXPECT_NE(std::string(uhmm_error_detail()).find(name), std::string::npos) << uhmm_error_detail();
    expect_off();
  }
};

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST_F(BadConfig, StructFieldsOutOfRange) {
  const struct {
    const char* field;
    void (*change)(uhmm_config&);
  } rows[] = {
      {"soft_devices", [](uhmm_config& c) { c.soft_devices = 9; }},
      {"soft_devices", [](uhmm_config& c) { c.soft_devices = UINT32_MAX; }},
      {"device_memory", [](uhmm_config& c) { c.device_memory = kBlock - 1; }},
      {"device_memory", [](uhmm_config& c) { c.device_memory = UINT64_MAX; }},
      {"device_workers", [](uhmm_config& c) { c.device_workers = 257; }},
      {"service_threads", [](uhmm_config& c) { c.service_threads = 65; }},
      {"staging_memory", [](uhmm_config& c) { c.staging_memory = kBlock - 1; }},
      {"staging_memory", [](uhmm_config& c) { c.staging_memory = UINT64_MAX; }},
      {"fault_around", [](uhmm_config& c) { c.fault_around = kPage - 1; }},
      {"fault_around", [](uhmm_config& c) { c.fault_around = kBlock + 1; }},
      {"link_latency_ns", [](uhmm_config& c) { c.link_latency_ns = UINT64_MAX; }},
      {"link_bytes_per_sec", [](uhmm_config& c) { c.link_bytes_per_sec = UINT64_MAX; }},
      {"fault_rung", [](uhmm_config& c) { c.fault_rung = 5; }},
      {"gpus", [](uhmm_config& c) { c.gpus = 2; }},
      {"two vendors", [](uhmm_config& c) { c.flags |= UHMM_CONFIG_GPU_CUDA | UHMM_CONFIG_GPU_HIP; }},
      {"flags", [](uhmm_config& c) { c.flags |= 0x80000000; }},
      {"flags", [](uhmm_config& c) { c.flags |= 0x100; }},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.field);
    uhmm_config config = test_config();
    row.change(config);
    expect_refused(&config, UHMM_ERR_CONFIG, row.field);
  }
}

TEST_F(BadConfig, StructSize) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, sizeof(uhmm_config) - 1}) {
    uhmm_config config = test_config();
    config.size = size;
    expect_refused(&config, UHMM_ERR_INVALID, "size");
  }
}

constexpr const char* kNumbers[] = {"UHMM_SOFT_DEVICES",    "UHMM_DEVICE_MEMORY",  "UHMM_DEVICE_WORKERS",
                                    "UHMM_SERVICE_THREADS", "UHMM_STAGING",        "UHMM_FAULT_AROUND",
                                    "UHMM_LINK_LATENCY_NS", "UHMM_LINK_BANDWIDTH", "UHMM_GPUS"};
constexpr const char* kWords[] = {"UHMM_NO_MOVE",   "UHMM_NO_REPORT", "UHMM_DEVICE_ENTRIES", "UHMM_FORK_HOME",
                                  "UHMM_SOFT_KIND", "UHMM_LOG",       "UHMM_FAULTS",         "UHMM_GPU_KIND"};

TEST_F(BadConfig, EveryVariableTriedIsNamedInTheHeader) {
  std::ifstream file(std::string(UHMM_INCLUDE_DIR) + "/uhmm/uhmm.h");
  std::stringstream text;
  text << file.rdbuf();
  const std::string header = text.str();
  std::set<std::string> named;
  const std::regex variable(R"re( \((?:env )?(UHMM_[A-Z_]+)(?:=[a-z0-9]+)?\))re");
  for (std::sregex_iterator found(header.begin(), header.end(), variable), end; found != end; ++found)
    named.insert((*found)[1]);
  std::set<std::string> tried(std::begin(kNumbers), std::end(kNumbers));
  tried.insert(std::begin(kWords), std::end(kWords));
  EXPECT_EQ(named, tried);
}

TEST_F(BadConfig, VariablesThatAreNoNumbersOrOutOfRange) {
  for (const char* name : kNumbers) {
    for (const char* value : {"garbage", "-1", " 1", "1x", "1MM", "1 ", "0x", "99999999999999999999999",
                              "18446744073709551615", "17179869184G", "1.5"}) {
      SCOPED_TRACE(std::string(name) + "=" + value);
      const Variable set(name, value);
      expect_refused(nullptr, UHMM_ERR_CONFIG, name);
    }
  }
  for (const char* name : {"UHMM_SOFT_DEVICES", "UHMM_DEVICE_MEMORY", "UHMM_DEVICE_WORKERS", "UHMM_SERVICE_THREADS",
                           "UHMM_STAGING", "UHMM_FAULT_AROUND"}) {
    SCOPED_TRACE(name);
    const Variable set(name, "0");
    expect_refused(nullptr, UHMM_ERR_CONFIG, name);
  }
}

TEST_F(BadConfig, VariablesThatAreNoneOfTheWords) {
  for (const char* name : kWords) {
    for (const char* value : {"2", "yes", "Private", "loud", "-1"}) {
      SCOPED_TRACE(std::string(name) + "=" + value);
      const Variable set(name, value);
      expect_refused(nullptr, UHMM_ERR_CONFIG, name);
    }
  }
}

TEST_F(BadConfig, VariablesOverrideTheStructUnlessTheyAreIgnored) {
  const Variable devices("UHMM_SOFT_DEVICES", "2");
  const Variable memory("UHMM_DEVICE_MEMORY", "3M");  // rounded up to whole blocks
  const Variable kind("UHMM_SOFT_KIND", "coherent");
  const Variable no_move("UHMM_NO_MOVE", "1");
  const Variable empty("UHMM_DEVICE_WORKERS", "");  // as if not set
  uhmm_config config = test_config();
  config.soft_devices = 1;
  config.device_workers = 3;
  for (const bool ignored : {false, true}) {
    config.flags = ignored ? UHMM_CONFIG_NO_ENV : 0;
    start(config);
    std::uint32_t count = 0;
    UHMM_EXPECT_OK(uhmm_device_count(&count));
    EXPECT_EQ(count, ignored ? 1u : 2u);
    const uhmm_device_info info = device_info(count);
    EXPECT_EQ(info.memory_bytes, ignored ? config.device_memory : 2 * kBlock);
    EXPECT_EQ((info.flags & UHMM_DEVICE_COHERENT) != 0, !ignored);
    EXPECT_EQ(info.workers, 3u);
    uhmm_config used = UHMM_CONFIG_INIT;
    UHMM_EXPECT_OK(uhmm_get_config(&used));
    EXPECT_EQ(used.soft_devices, count);
    EXPECT_EQ((used.flags & UHMM_CONFIG_NO_MOVE) != 0, !ignored);
    EXPECT_GE(used.staging_memory, std::uint64_t{64} << 20);
    EXPECT_EQ(used.fault_around, kBlock);
    stop();
  }
}

TEST_F(BadConfig, AfterARefusalAGoodOneStarts) {
  uhmm_config config = test_config();
  config.soft_devices = 9;
  expect_refused(&config, UHMM_ERR_CONFIG, "soft_devices");
  start(test_config());
  Memory memory(kPage);
  device_fill(memory.data(), memory.bytes(), 3);
  EXPECT_EQ(first_wrong(memory.data(), memory.bytes(), 3), memory.bytes());
}

}  // namespace
}  // namespace uhmm::test
