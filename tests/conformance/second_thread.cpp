// SPDX-License-Identifier: Apache-2.0
// Devices are opened by a runtime, which has threads of its own by then. A thread stands in for them: ThreadSanitizer
// starts one of its own in the copy of a process that has a single thread, on a stack where the program, which doesn't
// know of it, maps something next.
#include <gtest/gtest.h>

#include <semaphore>
#include <thread>

namespace uhmm::test {
namespace {

class SecondThread : public testing::Environment {
 public:
  void SetUp() override {
    thread_ = std::thread([this] {
      started_.release();
      end_.acquire();
    });
    started_.acquire();  // a thread that is starting holds locks of sanitizers
  }
  void TearDown() override {
    end_.release();
    thread_.join();
  }

 private:
  std::binary_semaphore started_{0}, end_{0};
  std::thread thread_;
};

const auto* const kEnvironment = testing::AddGlobalTestEnvironment(new SecondThread);

}  // namespace
}  // namespace uhmm::test
