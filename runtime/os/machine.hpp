// SPDX-License-Identifier: Apache-2.0
// What this machine offers, asked of the kernel itself: for `uhmm doctor`. Allocates; never on a service thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace uhmm::os {

struct Machine {
  std::string kernel;  // release, as uname says
  std::string architecture;
  std::uint32_t cpus = 0;
  std::uint64_t page_bytes = 0;
  std::uint64_t memory_bytes = 0;

  // The rungs of userfaultfd: 0, or the errno with which each is refused.
  struct Userfaultfd {
    int system_call = 0;  // userfaultfd(2) with faults of system calls
    int device = 0;       // /dev/userfaultfd
    int user_mode = 0;    // userfaultfd(2), faults of user mode only
    int fork_events = 0;  // the best of these with word of forks, which needs CAP_SYS_PTRACE
    bool any() const { return system_call == 0 || device == 0 || user_mode == 0; }
    bool kernel_faults() const { return system_call == 0 || device == 0; }
  } userfaultfd;
  // Of what UFFDIO_API offers.
  struct Features {
    bool fork_event = false, remap_event = false, remove_event = false, unmap_event = false;
    bool write_protect = false, shared_memory = false, shared_minor = false, shared_write_protect = false;
    bool poison = false, write_protect_async = false, move = false;
    bool signal = false, write_protect_absent = false;
  } features;

  int pagemap = 0;        // 0, or the errno of opening /proc/self/pagemap
  int own_memory = 0;     // the same for /proc/self/mem
  int pagemap_scan = 0;   // PAGEMAP_SCAN
  int procmap_query = 0;  // PROCMAP_QUERY
  int io_uring = 0;       // setting up a ring

  std::string huge_pages;  // /sys/kernel/mm/transparent_hugepage/enabled: always, madvise or never; empty: not built in
  std::uint64_t reserved_huge_pages = 0;  // hugetlb, all nodes
  std::optional<std::uint64_t> max_map_count;
  std::optional<std::uint64_t> unprivileged_userfaultfd;
  std::optional<std::uint64_t> overcommit;
  // Soft limits; nothing: unlimited.
  std::optional<std::uint64_t> file_bytes_limit, locked_bytes_limit, descriptor_limit;
};

Machine look_at_machine();

// A small file's contents without the last newline; nothing if it can't be read.
std::optional<std::string> read_text(const std::string& path);
std::optional<std::uint64_t> read_number(const std::string& path);

}  // namespace uhmm::os
