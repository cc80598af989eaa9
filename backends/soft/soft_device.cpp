// SPDX-License-Identifier: Apache-2.0
// Data and page table of a soft device. Everything but dropping page table entries acts from here, through the device's
// memory file and its userfaultfd.
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "backends/soft/soft_device_impl.hpp"
#include "runtime/base/copy.hpp"
#include "runtime/os/memory.hpp"
#include "runtime/os/process.hpp"
#include "runtime/os/thread.hpp"

namespace uhmm::soft {
namespace {

constexpr std::uint64_t kAnswerCheckNs = 50'000'000;  // how often a waiting thread looks whether the process lives

std::byte* host_of(const backend::Window& window, ByteRange pages) {
  return window.host + (pages.begin - window.range.begin);
}

// Calls visit(PageRun-sized piece of `pages`, pages are cached) for maximal runs that have memory already or have not.
template <typename Visit>
Status for_runs(const backend::Window& window, ByteRange pages, Visit&& visit) {
  for (std::uint64_t offset = 0; offset < pages.bytes(); offset += kBlockBytes) {
    const std::uint64_t bytes = std::min<std::uint64_t>(kBlockBytes, pages.bytes() - offset);
    const auto count = static_cast<std::uint32_t>(bytes >> kPageShift);
    const PageMask cached = os::cached(host_of(window, pages) + offset, {0, count});
    for (std::uint32_t page = 0; page < count;) {
      const bool present = cached.test(page);
      const std::uint32_t end = std::min(count, present ? cached.next_clear(page) : cached.next_set(page));
      const std::uint64_t begin = offset + (std::uint64_t{page} << kPageShift);
      UHMM_TRY(visit(begin, std::uint64_t{end - page} << kPageShift, present));
      page = end;
    }
  }
  return {};
}

}  // namespace

// ------------------------------------------------------------------------- data

// Pages that have memory are written through the window, which is fastest. Pages that have none are written by the
// file: that allocates without zeroing first, and lack of memory is an error there, not a SIGBUS here.
Status SoftDevice::do_copy_in(const backend::Window& window, ByteRange pages, const std::byte* from) {
  if (!open_now()) return lost_status();
  const std::uint64_t deadline = link_deadline(pages.bytes());
  std::byte* to = host_of(window, pages);
  UHMM_TRY(for_runs(window, pages, [&](std::uint64_t offset, std::uint64_t bytes, bool present) -> Status {
    if (present) {
      copy_pages(to + offset, from + offset, bytes);
      return {};
    }
    for (std::uint64_t done = 0; done < bytes;) {
      const ssize_t written = pwrite(memory_file_, from + offset + done, bytes - done,
                                     static_cast<off_t>((pages.begin + offset + done).value));
      if (written > 0) {
        done += static_cast<std::uint64_t>(written);
      } else if (errno != EINTR) {
        return fail_errno("allocating device memory", errno == ENOSPC ? ENOMEM : errno);
      }
    }
    return {};
  }));
  wait_until(deadline);
  return {};
}

Status SoftDevice::do_copy_out(const backend::Window& window, ByteRange pages, std::byte* to) {
  if (!open_now()) return lost_status();
  const std::uint64_t deadline = link_deadline(pages.bytes());
  copy_pages(to, host_of(window, pages), pages.bytes());
  wait_until(deadline);
  return {};
}

Status SoftDevice::do_zero(const backend::Window& window, ByteRange pages) {
  if (!open_now()) return lost_status();
  std::byte* host = host_of(window, pages);
  return for_runs(window, pages, [&](std::uint64_t offset, std::uint64_t bytes, bool present) -> Status {
    if (present) {
      std::memset(host + offset, 0, bytes);
      return {};
    }
    const int error = os::allocate_file(memory_file_, {pages.begin + offset, pages.begin + offset + bytes});
    if (error != 0) return fail_errno("allocating device memory", error == ENOSPC ? ENOMEM : error);
    return {};
  });
}

Status SoftDevice::do_free_memory(const backend::Window&, ByteRange pages) {
  if (!open_now()) return lost_status();
  const int error = os::punch_file(memory_file_, pages);
  return error == 0 ? Status{} : fail_errno("freeing device memory", error);
}

std::uint64_t SoftDevice::link_deadline(std::uint64_t bytes) {
  if (options_.link_latency_ns == 0 && options_.link_bytes_per_sec == 0) return 0;
  const std::uint64_t now = os::now_ns();
  std::uint64_t end = now;
  if (options_.link_bytes_per_sec != 0) {
    // One link for all threads: a copy begins to use it when the copies before it are through.
    const auto busy =
        static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(options_.link_bytes_per_sec));
    std::uint64_t free_at = link_free_ns_.load(std::memory_order_relaxed);
    do {
      end = std::max(now, free_at) + busy;
    } while (!link_free_ns_.compare_exchange_weak(free_at, end, std::memory_order_relaxed));
  }
  return end + options_.link_latency_ns;
}

void SoftDevice::wait_until(std::uint64_t deadline_ns) {
  if (deadline_ns == 0) return;
  constexpr std::uint64_t kSleepSlackNs = 100'000;
  for (;;) {
    const std::uint64_t now = os::now_ns();
    if (now >= deadline_ns) return;
    // Sleeping is inexact by a timer slack and a wake-up: spin the rest.
    if (deadline_ns - now > 2 * kSleepSlackNs) {
      const std::uint64_t span = deadline_ns - now - kSleepSlackNs;
      const timespec sleep{static_cast<time_t>(span / 1'000'000'000), static_cast<long>(span % 1'000'000'000)};
      (void)nanosleep(&sleep, nullptr);
    }
  }
}

void SoftDevice::do_charge_link(std::uint64_t bytes) { wait_until(link_deadline(bytes)); }

// ------------------------------------------------------------------- page table

Status SoftDevice::page_table_error(const char* what, ByteRange pages, int error) {
  // ESRCH: its memory map is gone.
  if (error == ESRCH || !still_alive(false)) {
    (void)still_alive(true);
    return lost_status();
  }
  (void)fail_errno(what, error);
  char detail[kDetailBytes];
  std::snprintf(detail, sizeof(detail), "%s", last_detail());
  return fail(error == ENOMEM ? UHMM_ERR_NO_MEMORY : UHMM_ERR_SYSTEM, "device %s, pages 0x%llx..0x%llx: %s",
              options_.name, static_cast<unsigned long long>(pages.begin.value),
              static_cast<unsigned long long>(pages.end.value), detail);
}

Status SoftDevice::map_run(ByteRange pages, bool write_protected) {
  bool some_were_mapped = false;
  for (VirtAddr at = pages.begin; at < pages.end;) {
    const os::Progress progress = uffd_.map_existing({at, pages.end}, write_protected);
    at = at + progress.done;
    if (progress.error == 0) break;
    if (progress.error == EAGAIN) {
      sched_yield();
      continue;
    }
    if (progress.error != EEXIST) return page_table_error("mapping", {at, pages.end}, progress.error);
    // Mapped already. Give it the access that was asked for, so that what map() leaves does not depend on the past.
    const ByteRange page{at, at + kPageBytes};
    if (uffd_.features().shared_write_protect) {
      const int error = uffd_.write_protect(page, write_protected);
      if (error != 0) return page_table_error("protecting", page, error);
    }
    some_were_mapped = true;
    at = page.end;
  }
  if (some_were_mapped) uffd_.wake(pages);
  return {};
}

Status SoftDevice::do_map(ByteRange pages, backend::MapAccess access) {
  if (!open_now()) return lost_status();
  return map_run(pages, access == backend::MapAccess::Read && capabilities_.read_only_maps);
}

Status SoftDevice::do_protect(ByteRange pages, backend::MapAccess access) {
  if (!open_now()) return lost_status();
  if (!uffd_.features().shared_write_protect)
    return fail(UHMM_ERR_NOT_SUPPORTED,
                "this kernel cannot write-protect shared memory by userfaultfd (5.19 and later)");
  const int error = uffd_.write_protect(pages, access == backend::MapAccess::Read);
  return error == 0 ? Status{} : page_table_error("protecting", pages, error);
}

Status SoftDevice::do_unmap(std::span<const ByteRange> pages) {
  if (!open_now()) return lost_status();
  return request(Operation::DropPageTable, pages);
}

Status SoftDevice::do_unmap_and_free(const backend::Window& window, ByteRange pages) {
  return do_free_memory(window, pages);  // a punched page is unmapped in every process
}

Status SoftDevice::do_poison(ByteRange pages) {
  if (!open_now()) return lost_status();
  if (!uffd_.features().poison || !options_.use_poison) {
    // Nothing is mapped there any more: whoever touches it crashes, and with it the device, which starts anew complete.
    UHMM_TRY(request(Operation::Remove, {&pages, 1}));
    uffd_.wake(pages);
    return {};
  }
  // The entry of an absent page may remember a protection, where the poison goes.
  (void)uffd_.write_protect(pages, false);
  const os::Progress progress = uffd_.poison(pages);
  return progress.error == 0 ? Status{} : page_table_error("poisoning", pages, progress.error);
}

Status SoftDevice::do_map_host(const backend::Window& /*window*/, ByteRange pages) {
  const int error = os::map_file_fixed(pages, memory_file_, pages.begin.value, true);
  return error == 0 ? Status{} : fail_errno("mapping device memory into the program", error);
}

Status SoftDevice::do_mirror(const backend::Mirrored& source) {
  if (!open_now()) return lost_status();
  const std::scoped_lock files(files_mutex_);
  const char byte = 0;
  if (const int error = os::send_message(files_, &byte, sizeof(byte), source.file); error != 0)
    return page_table_error("sending a file to mirror", source.pages, error);
  const std::uint32_t index = lock_mailbox();
  const std::unique_lock lock(mailbox_mutex_[index], std::adopt_lock);
  Mailbox& mailbox = control_->mailbox[index];
  mailbox.offset = source.offset;
  mailbox.readable = source.readable;
  mailbox.writable = source.writable;
  std::size_t done = 0;
  const int error = post_request(mailbox, Operation::Mirror, {&source.pages, 1}, &done);
  if (error == ESRCH) return lost_status();
  return error == 0 ? Status{} : page_table_error("mapping a file of the program's", source.pages, error);
}

void SoftDevice::do_unmirror(ByteRange pages) {
  if (open_now()) (void)request(Operation::Remove, {&pages, 1});
}

void SoftDevice::do_wake(ByteRange pages) {
  if (open_now()) uffd_.wake(pages);
}

std::size_t SoftDevice::do_read_faults(std::span<backend::DeviceFault> faults) {
  constexpr std::size_t kBatch = 32;
  os::UffdFault read[kBatch];
  if (!open_now()) return 0;
  const std::size_t count = uffd_.read(std::span(read).first(std::min(kBatch, faults.size())));
  for (std::size_t i = 0; i < count; ++i) faults[i] = {read[i].address, read[i].is_write, read[i].is_write_protect};
  return count;
}

// --------------------------------------------------------------------- requests

std::uint32_t SoftDevice::lock_mailbox() {
  // That of this CPU: its control thread runs here too, as soon as this thread sleeps. If it is taken, any free one:
  // slower to wake, but its owner may have been interrupted by a signal handler that waits for us.
  const int cpu = sched_getcpu();
  const std::uint32_t mine = cpu < 0 ? 0 : mailbox_of_cpu_[static_cast<std::size_t>(cpu) % std::size(mailbox_of_cpu_)];
  for (std::uint32_t step = 0; step < control_->mailboxes; ++step) {
    const std::uint32_t index = (mine + step) % control_->mailboxes;
    if (mailbox_mutex_[index].try_lock()) return index;
  }
  mailbox_mutex_[mine].lock();
  return mine;
}

Status SoftDevice::request(Operation operation, std::span<const ByteRange> ranges, std::size_t* done) {
  if (ranges.empty()) return {};
  const std::uint32_t index = lock_mailbox();
  std::unique_lock lock(mailbox_mutex_[index], std::adopt_lock);
  Mailbox& mailbox = control_->mailbox[index];
  while (!ranges.empty()) {
    const auto part = ranges.first(std::min<std::size_t>(ranges.size(), kRequestRanges));
    std::size_t succeeded = 0;
    const int error = post_request(mailbox, operation, part, &succeeded);
    if (done != nullptr) *done += succeeded;
    if (error == ESRCH) return lost_status();
    if (error != 0) {
      const ByteRange failed = part[std::min(succeeded, part.size() - 1)];
      return page_table_error("changing the device's memory map", failed, error);
    }
    ranges = ranges.subspan(part.size());
  }
  return {};
}

int SoftDevice::post_request(Mailbox& mailbox, Operation operation, std::span<const ByteRange> ranges,
                             std::size_t* done) {
  constexpr auto kPosted = static_cast<std::uint32_t>(MailboxState::Posted);
  if (mailbox.state.load(std::memory_order_acquire) == kPosted) {
    // An earlier request was given up because the process had died; it can't be alive.
    (void)still_alive(true);
    return ESRCH;
  }
  mailbox.operation = operation;
  mailbox.count = static_cast<std::uint32_t>(ranges.size());
  for (std::size_t i = 0; i < ranges.size(); ++i) mailbox.ranges[i] = {ranges[i].begin.value, ranges[i].end.value};
  mailbox.state.store(kPosted, std::memory_order_release);
  os::futex_wake_shared(mailbox.state, 1);
  while (mailbox.state.load(std::memory_order_acquire) == kPosted) {
    os::futex_wait_shared(mailbox.state, kPosted, kAnswerCheckNs);
    if (mailbox.state.load(std::memory_order_acquire) != kPosted) break;
    if (!still_alive(false)) return ESRCH;
  }
  *done = std::min<std::size_t>(mailbox.succeeded, ranges.size());
  return mailbox.error;
}

}  // namespace uhmm::soft
