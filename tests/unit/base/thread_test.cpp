// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/thread.hpp"

#include <gtest/gtest.h>
#include <signal.h>

#include <cstring>
#include <string>

namespace uhmm {
namespace {

struct Seen {
  char name[16] = {};
  bool blocked = false;
};

TEST(Thread, is_named_and_takes_no_signals) {
  Seen seen;
  Thread thread;
  ASSERT_TRUE(thread
                  .start(
                      "uhmm-test",
                      [](void* context) {
                        auto* out = static_cast<Seen*>(context);
                        pthread_getname_np(pthread_self(), out->name, sizeof out->name);
                        sigset_t mask;
                        pthread_sigmask(SIG_SETMASK, nullptr, &mask);
                        out->blocked = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGUSR1) == 1;
                      },
                      &seen)
                  .ok());
  EXPECT_TRUE(thread.running());
  thread.join();
  EXPECT_FALSE(thread.running());
  EXPECT_STREQ(seen.name, "uhmm-test");
  EXPECT_TRUE(seen.blocked);
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGINT), 0) << "the starter's mask is as before";
  thread.join();
}

}  // namespace
}  // namespace uhmm
