// SPDX-License-Identifier: Apache-2.0
#include "preload/managed.hpp"

#include <atomic>
#include <mutex>

#include "preload/alternate_stack.hpp"
#include "runtime/engine/worker_pool.hpp"
#include "runtime/os/process.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload {
namespace {

std::atomic<std::uint64_t> generation{0};
std::atomic<std::uint64_t> version{0};
std::atomic<bool> all_mappings{false};

// By begin. Threads of the program take the lock; nothing that serves a fault does.
struct Table {
  std::mutex mutex;
  Map<std::uint64_t, std::uint64_t> ranges;
};
Table& table() {
  static Forever<Table> only;
  return *only;
}

void add(ByteRange pages) {
  Table& all = table();
  const std::scoped_lock lock(all.mutex);
  std::uint64_t begin = pages.begin.value;
  std::uint64_t end = pages.end.value;
  auto it = all.ranges.lower_bound(begin);
  if (it != all.ranges.begin() && std::prev(it)->second >= begin) --it;
  while (it != all.ranges.end() && it->first <= end) {
    begin = std::min(begin, it->first);
    end = std::max(end, it->second);
    it = all.ranges.erase(it);
  }
  all.ranges.emplace(begin, end);
  version.fetch_add(1);
}

bool register_pages(ByteRange pages);

// True: all of it.
bool register_halves(ByteRange pages) {
  if (pages.pages() == 1) return false;
  const VirtAddr middle = pages.begin + pages.pages() / 2 * kPageBytes;
  const bool lower = register_pages({pages.begin, middle});
  return register_pages({middle, pages.end}) && lower;
}

// Parts of it may be registered already, by the program itself.
bool register_pages(ByteRange pages) {
  if (is_alternate_stack(pages)) return register_halves(pages);
  const std::uint64_t before = map_generation();
  const uhmm_status status = uhmm_register(pages.begin.pointer(), pages.bytes());
  if (status == UHMM_OK) {
    add(pages);
    if (before == map_generation()) return true;
    // What was changed meanwhile has not found it among what is managed.
    unmanage(pages);
    (void)uhmm_unregister_pages(pages.begin.pointer(), pages.bytes());
    return false;
  }
  if (status != UHMM_ERR_OVERLAP) return false;
  std::size_t count = 0;
  if (uhmm_snapshot(pages.begin.pointer(), pages.bytes(), nullptr, 0, &count) == UHMM_OK) {
    add(pages);
    return true;
  }
  return register_halves(pages);
}

}  // namespace

bool manage(ByteRange pages) {
  bool all = true;
  VirtAddr at = pages.begin;
  for (const ByteRange& part : managed_parts(pages)) {
    if (at < part.begin) all = register_pages({at, part.begin}) && all;
    at = part.end;
  }
  if (at < pages.end) all = register_pages({at, pages.end}) && all;
  return all;
}

bool manage_own(ByteRange pages) {
  if (uhmm_register(pages.begin.pointer(), pages.bytes()) != UHMM_OK) return false;
  add(pages);
  return true;
}

Vector<ByteRange> managed_parts(ByteRange pages) {
  Vector<ByteRange> parts;
  Table& all = table();
  const std::scoped_lock lock(all.mutex);
  auto it = all.ranges.upper_bound(pages.begin.value);
  if (it != all.ranges.begin()) --it;
  for (; it != all.ranges.end() && it->first < pages.end.value; ++it) {
    const ByteRange part = pages.intersect({VirtAddr{it->first}, VirtAddr{it->second}});
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

void unmanage(ByteRange pages) {
  Table& all = table();
  const std::scoped_lock lock(all.mutex);
  auto it = all.ranges.upper_bound(pages.begin.value);
  if (it != all.ranges.begin()) --it;
  while (it != all.ranges.end() && it->first < pages.end.value) {
    const auto [begin, end] = *it;
    if (end <= pages.begin.value) {
      ++it;
      continue;
    }
    it = all.ranges.erase(it);
    version.fetch_add(1);
    if (begin < pages.begin.value) all.ranges.emplace(begin, pages.begin.value);
    if (end > pages.end.value) it = all.ranges.emplace(pages.end.value, end).first;
  }
}

void unmanage_all() {
  table().ranges.clear();
  version.fetch_add(1);
}
void lock_managed_for_fork() {
  table().mutex.lock();
  lock_stacks_for_fork();
}
void unlock_managed_after_fork() {
  unlock_stacks_after_fork();
  table().mutex.unlock();
}

std::uint64_t managed_version() { return version.load(); }

void manage_mappings(bool on) { all_mappings.store(on); }
bool mappings_managed() { return all_mappings.load(std::memory_order_relaxed); }

std::uint64_t map_generation() { return generation.load(std::memory_order_acquire); }
void map_changes() { generation.fetch_add(1, std::memory_order_acq_rel); }

bool called_by_program() { return !engine::WorkerPool::on_runtime_thread() && !os::in_device_process(); }

}  // namespace uhmm::preload
