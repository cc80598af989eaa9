// SPDX-License-Identifier: Apache-2.0
// What fork() costs by the memory that is on a device.
#include <sys/wait.h>
#include <unistd.h>

#include "bench/support.hpp"

namespace uhmm::bench {
namespace {

// How long the program's thread is in fork(), in milliseconds. The child ends at once.
double fork_ms() {
  const double before = now_s();
  const pid_t child = fork();
  if (child == 0) _exit(0);
  const double took = (now_s() - before) * 1e3;
  require(child > 0, "fork");
  require(waitpid(child, nullptr, 0) == child, "waitpid");
  return took;
}

void fork_with(Rounds& rounds, std::size_t bytes) {
  const Runtime runtime;
  Memory memory(bytes);
  memory.fill();
  const Registration registered(memory);
  (void)fork_ms();
  while (rounds.next()) {
    // What a fork has left shared is written again, so that both forks find memory of one owner.
    memory.fill();
    const double home = fork_ms();
    memory.fill();
    migrate(memory.data(), memory.bytes(), kDevice);
    rounds.add(home, fork_ms());
  }
}

}  // namespace

void add_fork_rows() {
  const auto row = [](const char* name, const char* what) {
    return Row{name, what, "the same, all in system memory", "ms", Goal::None, 0, 9};
  };
  add_row(row("fork/4_KiB", "fork(), one page on a device"), [](Rounds& rounds) { fork_with(rounds, kPage); });
  add_row(row("fork/16_MiB", "fork(), 16 MiB on a device"), [](Rounds& rounds) { fork_with(rounds, 16 * kMiB); });
  add_row(row("fork/256_MiB", "fork(), 256 MiB on a device"), [](Rounds& rounds) { fork_with(rounds, 256 * kMiB); });
  add_row(row("fork/large", "fork(), the large rows' memory on a device"),
          [](Rounds& rounds) { fork_with(rounds, large_bytes()); });
}

}  // namespace uhmm::bench
