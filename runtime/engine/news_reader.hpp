// SPDX-License-Identifier: Apache-2.0
// A thread in a system call that userfaultfd has news of sleeps until the news is read, whatever locks it holds: one
// that maps something in place of watched memory has a block's, one that forks may have any of the program's. Who
// serves faults may be waiting for just that block, or for a thread that wants that lock. So while there is such a
// thread somebody reads who waits for nobody.
#pragma once

#include <atomic>
#include <cstdint>

#include "runtime/base/thread.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::engine {

class NewsReader {
 public:
  explicit NewsReader(const os::Userfaultfd& uffd) : uffd_(uffd) {}
  NewsReader(const NewsReader&) = delete;
  NewsReader& operator=(const NewsReader&) = delete;

  // `others`: reads news of other descriptors, likewise, until stop().
  void also_read(void (*others)(void* context), void* context) {
    others_context_.store(context);
    others_.store(others);
  }
  Status start();
  void stop();
  // In a forked child.
  void forget_thread() { thread_.forget(); }

  // Around the system call. Any thread; takes no lock.
  void begin() {
    if (callers_.fetch_add(1) == 0) callers_.notify_all();
  }
  void end() { callers_.fetch_sub(1); }

 private:
  static void run(void* self);

  static constexpr std::uint32_t kStop = 1u << 31;
  const os::Userfaultfd& uffd_;
  std::atomic<std::uint32_t> callers_{0};  // and kStop
  std::atomic<void (*)(void*)> others_{nullptr};
  std::atomic<void*> others_context_{nullptr};
  Thread thread_;
};

// The runtime maps something else over watched pages.
class Replacing {
 public:
  Replacing(NewsReader& reader, const os::Userfaultfd& uffd, ByteRange pages)
      : reader_(reader), uffd_(uffd), pages_(pages) {
    uffd_.begin_replacing(pages_);
    reader_.begin();
  }
  Replacing(const Replacing&) = delete;
  Replacing& operator=(const Replacing&) = delete;
  ~Replacing() {
    reader_.end();
    uffd_.end_replacing(pages_);
  }

 private:
  NewsReader& reader_;
  const os::Userfaultfd& uffd_;
  const ByteRange pages_;
};

}  // namespace uhmm::engine
