// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/news_reader.hpp"

#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::engine {

Status NewsReader::start() {
  callers_.store(0);
  return thread_.start("uhmm-news", run, this);
}

void NewsReader::stop() {
  callers_.fetch_or(kStop);
  callers_.notify_all();
  thread_.join();
}

void NewsReader::run(void* self) {
  constexpr std::uint64_t kPatience = 1'000'000;  // ns; as a rule a service thread has read it long before
  WorkerPool::enter_runtime_thread();
  auto& reader = *static_cast<NewsReader*>(self);
  for (;;) {
    reader.callers_.wait(0);
    const std::uint32_t callers = reader.callers_.load();
    if ((callers & kStop) != 0) return;
    if (callers == 0) continue;
    os::futex_wait_for(reader.callers_, callers, kPatience);
    if (reader.callers_.load() == 0) continue;
    reader.uffd_.read_on();
    if (auto* others = reader.others_.load()) others(reader.others_context_.load());
  }
}

}  // namespace uhmm::engine
