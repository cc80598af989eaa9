// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/signal_faults.hpp"

#include <algorithm>
#include <ctime>
#include <mutex>

#include "runtime/engine/fault_service.hpp"
#include "runtime/engine/pool_calls.hpp"

namespace uhmm::engine {
namespace {

// The thread was in the middle of something: what its last call said stays.
class KeptDetail {
 public:
  KeptDetail() { save_detail(text_); }
  KeptDetail(const KeptDetail&) = delete;
  KeptDetail& operator=(const KeptDetail&) = delete;
  ~KeptDetail() { set_detail(text_); }

 private:
  char text_[kDetailBytes];
};

thread_local bool serving = false;
class Serving {
 public:
  Serving() { serving = true; }
  Serving(const Serving&) = delete;
  Serving& operator=(const Serving&) = delete;
  ~Serving() { serving = false; }
};

enum class Finding : std::uint8_t {
  Away,     // there is something to do
  Home,     // somebody has done it, or the kernel has another reason
  Unknown,  // not managed
  Lost,
};

Finding look(Context& context, VirtAddr address) {
  const Operation operation(context);
  const Range* range = context.space.find_page(address);
  if (range == nullptr) return Finding::Unknown;
  Block* block = context.space.find_block(address);
  if (block == nullptr) return Finding::Home;
  const std::scoped_lock lock(block->mutex);
  const PageKind kind = block->kind_of(address.page_in_block());
  if (kind == PageKind::Lost) return Finding::Lost;
  return kind == PageKind::System ? Finding::Home : Finding::Away;
}

// Nothing to do, and the access fails again and again: that is not about where the page is. But pages come and go, so
// once means nothing.
bool is_hopeless(VirtAddr address) {
  constexpr std::uint32_t kMostTries = 1000;
  static thread_local VirtAddr last;
  static thread_local std::uint32_t tries = 0;
  tries = address == last ? tries + 1 : 0;
  last = address;
  return tries >= kMostTries;
}

}  // namespace

bool serving_signalled_fault() { return serving; }

bool serve_signalled_fault(Context& context, const os::SignalledFault& fault) {
  // The runtime's own threads touch no managed memory: that is something else, and they may hold the locks needed here.
  if (WorkerPool::on_runtime_thread()) return false;
  const KeptDetail detail;
  const Serving here;
  constexpr timespec kMoment{0, 100'000};
  const bool changing = context.changes.concern({fault.address.page_floor(), fault.address.page_floor() + kPageBytes});
  const Finding found = changing ? Finding::Unknown : look(context, fault.address);
  if (found == Finding::Lost) return false;
  if (found == Finding::Unknown && (changing || context.changes.pending() || !context.uffd.all_told())) {
    (void)nanosleep(&kMoment, nullptr);  // being moved: whoever follows it brings the contents
    return true;
  }
  if (found != Finding::Away && is_hopeless(fault.address)) return false;
  os::UffdFault message;
  message.address = fault.address;
  message.is_write = fault.is_write;
  message.is_write_protect = fault.is_write && fault.present;
  // Owners of pools are called where nothing of the program is interrupted; and what serves needs room on the stack.
  const bool owned = std::ranges::any_of(context.pools, [](const Pool& pool) { return pool.id.load() != 0; });
  if (owned || fault.on_alternate_stack) {
    (void)context.workers.call([&context, message]() -> Status {
      serve_cpu_fault(context, message);
      return {};
    });
  } else {
    serve_cpu_fault(context, message);
  }
  return true;
}

}  // namespace uhmm::engine
