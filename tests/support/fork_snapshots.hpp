// SPDX-License-Identifier: Apache-2.0
// A program with memory on a device that forks, and children that are served from there. Not with ThreadSanitizer: it
// takes the thread that serves a child for one of its parent's, so everything comes home there.
#pragma once

#include <unistd.h>

#include <memory>

#include "runtime/base/inject.hpp"
#include "runtime/os/userfaultfd.hpp"
#include "tests/support/modes.hpp"
#include "tests/support/runtime.hpp"

namespace uhmm::test {

inline bool kernel_tells_of_forks() {
  const auto uffd = os::Userfaultfd::open(os::Rung::Any, os::kFollowForks);
  return uffd.ok() && const_cast<Result<os::Userfaultfd>&>(uffd)->features().follows_forks;
}

// A word from one process to another.
class Signal {
 public:
  Signal() { EXPECT_EQ(pipe(ends_), 0); }
  ~Signal() {
    close(ends_[0]);
    close(ends_[1]);
  }
  void give() const { EXPECT_EQ(write(ends_[1], "x", 1), 1); }
  bool take() const {
    char word = 0;
    return read(ends_[0], &word, 1) == 1;
  }

 private:
  int ends_[2] = {-1, -1};
};

class ForkSnapshots : public RuntimeTest {
 protected:
  static constexpr std::size_t kPages = 1200;  // over three blocks and more

  void SetUp() override {
    if (!kernel_tells_of_forks()) GTEST_SKIP() << "the kernel tells this process of no forks (CAP_SYS_PTRACE)";
    start(test_config());
    memory_ = std::make_unique<Memory>(kPages * kPage);
    fill(data(), bytes(), 1);
    UHMM_ASSERT_OK(uhmm_migrate(data(), bytes(), 1, nullptr));
  }
  void TearDown() override {
    inject::disarm_all();
    memory_.reset();
    stop();
  }

  std::byte* data() const { return memory_->data(); }
  std::byte* page(std::size_t i) const { return memory_->page(i); }
  std::size_t bytes() const { return memory_->bytes(); }
  bool holds(std::uint64_t seed) const { return first_wrong(data(), bytes(), seed) == bytes(); }

  // A child that waits for the parent's word before it runs `body`, which returns its exit code.
  template <typename Body>
  pid_t child_that(Body&& body) {
    const pid_t child = fork();
    if (child == 0) _exit(go_.take() ? body() : 99);
    return child;
  }
  int let_go(pid_t child) {
    go_.give();
    return exit_code_of(child);
  }
  // Nothing has come home for a fork.
  void expect_still_away() {
    EXPECT_EQ(stats().pages_on_devices, kPages);
    EXPECT_EQ(pages_in_state(data(), bytes(), UHMM_PAGE_DEVICE), kPages);
  }

  std::unique_ptr<Memory> memory_;
  Signal go_;
};

}  // namespace uhmm::test
