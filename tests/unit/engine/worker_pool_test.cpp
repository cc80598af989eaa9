// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/worker_pool.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace uhmm::engine {
namespace {

class WorkerPoolTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(pool_->start(2).ok()) << last_detail(); }
  void TearDown() override { pool_->stop(); }
  std::unique_ptr<WorkerPool> pool_ = std::make_unique<WorkerPool>();
};

TEST_F(WorkerPoolTest, ACallRunsElsewhereAndItsResultAndReasonComeBack) {
  set_detail("from before");
  const auto caller = std::this_thread::get_id();
  std::thread::id runner;
  EXPECT_TRUE(pool_
                  ->call([&]() -> Status {
                    runner = std::this_thread::get_id();
                    return {};
                  })
                  .ok());
  EXPECT_NE(runner, caller);
  EXPECT_STREQ(last_detail(), "from before") << "a call that succeeds leaves the caller's detail alone";
  const Status failed = pool_->call([]() { return fail(UHMM_ERR_BUSY, "because of %d", 7); });
  EXPECT_EQ(failed.code(), UHMM_ERR_BUSY);
  EXPECT_STREQ(last_detail(), "because of 7");
}

TEST_F(WorkerPoolTest, ACallFromAThreadOfTheRuntimeRunsInline) {
  const Status done = pool_->call([this]() -> Status {
    EXPECT_TRUE(WorkerPool::on_runtime_thread());
    const auto outer = std::this_thread::get_id();
    return pool_->call([outer]() -> Status {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      return {};
    });
  });
  EXPECT_TRUE(done.ok());
  EXPECT_FALSE(WorkerPool::on_runtime_thread());
}

// More callers than there is room for calls.
TEST_F(WorkerPoolTest, ManyCallersAtOnceEachGetTheirOwnAnswer) {
  struct Answer {
    Status status;
    std::uint64_t value = 0;
  };
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (std::uint64_t t = 0; t < 80; ++t) {
    callers.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 20; ++i) {
        const Answer answer = pool_->call([=]() { return Answer{{}, t * 1000 + i}; });
        if (answer.value != t * 1000 + i) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_F(WorkerPoolTest, ALoopVisitsEveryIndexOnce) {
  for (const std::uint32_t count : {0u, 1u, 2u, 7u, 1000u}) {
    std::vector<std::atomic<int>> visits(count);
    (void)pool_->call([&]() -> Status {
      pool_->for_each(count, [&](std::uint32_t i) { visits[i].fetch_add(1); });
      return {};
    });
    for (std::uint32_t i = 0; i < count; ++i) EXPECT_EQ(visits[i].load(), 1) << i << " of " << count;
  }
}

// A loop must not wait for help that is busy, or both would wait for ever.
TEST_F(WorkerPoolTest, LoopsOnEveryWorkerAtOnceEnd) {
  std::atomic<int> visits{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        (void)pool_->call([&]() -> Status {
          pool_->for_each(5, [&](std::uint32_t) { visits.fetch_add(1); });
          return {};
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(visits.load(), 4 * 50 * 5);
}

TEST_F(WorkerPoolTest, StoppingFinishesWhatWasPosted) {
  struct Count : WorkerPool::Work {
    std::atomic<int>* counter = nullptr;
  };
  std::atomic<int> counter{0};
  std::vector<Count> works(100);
  for (Count& work : works) {
    work.counter = &counter;
    work.run = [](WorkerPool::Work& self) { static_cast<Count&>(self).counter->fetch_add(1); };
    pool_->post(work);
  }
  pool_->stop();
  EXPECT_EQ(counter.load(), 100);
  ASSERT_TRUE(pool_->start(1).ok());
}

}  // namespace
}  // namespace uhmm::engine
