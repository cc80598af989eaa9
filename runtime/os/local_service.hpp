// SPDX-License-Identifier: Apache-2.0
// How a tool asks a running program for something and gets a file: an abstract socket named after the program's process
// number. Only root and the program's own user are answered, and the caller learns which process it is that answers.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "runtime/base/status.hpp"

namespace uhmm::os {

class LocalService {
 public:
  LocalService() = default;
  LocalService(const LocalService&) = delete;
  LocalService& operator=(const LocalService&) = delete;
  ~LocalService() { close(); }

  // For the calling process. Errors: BUSY (somebody has the name), SYSTEM (no sockets here).
  Status open();
  // Waits for a caller that has the right to ask; who has not is hung up on. Sending to one blocks for a second at
  // most. -1 after stop(), and when the program has closed our descriptor: its number may mean a socket of the program
  // by now.
  int accept() const;
  // What an accepted caller wants, a letter. 0: it said nothing for a second.
  static char request_of(int caller);
  // Any thread: ends accept(), now and later.
  void stop() const;
  void close();

 private:
  bool still_ours() const;

  int fd_ = -1;
  std::uint64_t file_ = 0;  // what the kernel calls our socket, whatever has its number
};

// What the caller of a process gets for its request: the descriptor of a file, which is the caller's to close.
// Errors: NOT_FOUND (no such service), PERMISSION (another process has taken its name, or it did not want to answer),
// TIMEOUT, SYSTEM.
Result<int> ask_local_service(pid_t process, char request, int timeout_ms);

// An empty file in memory, close-on-exec. -1 with errno.
int make_empty_file(const char* name);
// 0 or an errno.
int write_all(int file, const void* bytes, std::size_t size);
void close_descriptor(int fd);

}  // namespace uhmm::os
