// SPDX-License-Identifier: Apache-2.0
// Public calls about memory.
#include <signal.h>

#include <algorithm>
#include <mutex>

#include "runtime/api/runtime.hpp"
#include "runtime/base/arena.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/engine/device_work.hpp"
#include "runtime/engine/permissions.hpp"
#include "runtime/engine/range_end.hpp"

using namespace uhmm;
using api::Runtime;
using engine::Counts;
using engine::Want;

namespace {

// Checks (address, length), then runs body(ByteRange) on a worker.
template <typename Body>
uhmm_status with_range(const void* address, std::size_t length, Body body) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (const Status good = api::check_range(address, length, &bytes); !good.ok()) return good.code();
  return rt->context.workers.call([rt, bytes, body]() mutable -> Status { return body(*rt, bytes); }).code();
}

void fill_result(const Counts& counts, uhmm_migrate_result* result) {
  if (result == nullptr) return;
  result->pages_requested = counts.requested;
  result->pages_moved = counts.done.moved;
  result->pages_populated = counts.done.populated;
  result->pages_there = counts.done.there;
  result->pages_skipped = counts.done.skipped;
  result->bytes_moved = counts.done.moved << kPageShift;
}

Status acquire_for_write(Runtime& rt, ByteRange bytes, std::uint32_t device, Counts& counts) {
  // Only pages inside the range as a whole will be overwritten as a whole.
  const ByteRange whole{bytes.begin.page_ceil(), bytes.end.page_floor()};
  counts = {};
  const auto add = [&](ByteRange part, Want want) {
    if (part.empty()) return;
    const Counts more = engine::migrate(rt.context, {part, device, want, UHMM_CAUSE_ACQUIRE});
    counts.requested += more.requested;
    counts.done += more.done;
    if (counts.status.ok()) counts.status = more.status;
  };
  if (whole.empty()) {
    add(bytes, Want::Move);
  } else {
    add({bytes.begin, whole.begin}, Want::Move);
    add(whole, Want::Overwrite);
    add({whole.end, bytes.end}, Want::Move);
  }
  return counts.status;
}

Status get_hold(Runtime& rt, ByteRange bytes, std::uint32_t processor, uhmm_access access) {
  Counts counts;
  if (processor == UHMM_CPU) {
    const Want want = access == UHMM_ACCESS_READ ? Want::Duplicate : Want::Move;
    counts = engine::migrate(rt.context, {bytes, UHMM_CPU, want, UHMM_CAUSE_ACQUIRE});
    UHMM_TRY(counts.status);
    if (counts.done.skipped != 0) return fail(UHMM_ERR_DATA_LOST, "%lu pages are lost", counts.done.skipped);
  } else {
    // Held first: what has come is not evicted for what comes after it.
    const DeviceIndex device{processor - 1};
    UHMM_TRY(engine::hold(rt.context, bytes, device, true));
    if (access == UHMM_ACCESS_WRITE) {
      (void)acquire_for_write(rt, bytes, processor, counts);
    } else {
      const Want want = access == UHMM_ACCESS_READ ? Want::Duplicate : Want::Move;
      counts = engine::migrate(rt.context, {bytes, processor, want, UHMM_CAUSE_ACQUIRE});
    }
    Status status = counts.status;
    if (status.ok() && counts.done.skipped != 0)
      status = fail(UHMM_ERR_DEVICE_FULL, "%lu of %lu pages do not fit or are pinned", counts.done.skipped,
                    counts.requested);
    if (!status.ok()) {
      char detail[kDetailBytes];
      save_detail(detail);
      (void)engine::hold(rt.context, bytes, device, false);
      return fail(status.code(), "%s", detail);
    }
  }
  return {};
}

Status acquire(Runtime& rt, ByteRange bytes, std::uint32_t processor, uhmm_access access) {
  auto noted = rt.acquired.end();
  try {
    const std::scoped_lock lock(rt.acquires_mutex);
    noted = rt.acquired.insert(rt.acquired.end(), {bytes, processor, access, false});
  } catch (const std::bad_alloc&) {
    return fail(UHMM_ERR_NO_MEMORY, "no memory to note an acquire");
  }
  const Status got = get_hold(rt, bytes, processor, access);
  const std::scoped_lock lock(rt.acquires_mutex);
  if (got.ok())
    noted->ready = true;
  else
    rt.acquired.erase(noted);
  return got;
}

Status release(Runtime& rt, ByteRange bytes, std::uint32_t processor, uhmm_access access) {
  {
    const std::scoped_lock lock(rt.acquires_mutex);
    const auto found = std::find_if(rt.acquired.begin(), rt.acquired.end(), [&](const api::Acquired& one) {
      return one.bytes == bytes && one.processor == processor && one.access == access && one.ready;
    });
    if (found == rt.acquired.end()) return fail(UHMM_ERR_NOT_FOUND, "there is no such acquire");
    rt.acquired.erase(found);
  }
  return processor == UHMM_CPU ? Status{} : engine::hold(rt.context, bytes, DeviceIndex{processor - 1}, false);
}

uhmm_status acquire_or_release(void* address, std::size_t length, uhmm_processor processor, uhmm_access access,
                               Status (*call)(Runtime&, ByteRange, std::uint32_t, uhmm_access)) {
  UHMM_RUNTIME(rt);
  if (access < UHMM_ACCESS_READ || access > UHMM_ACCESS_READ_WRITE)
    return fail(UHMM_ERR_INVALID, "unknown access %d", static_cast<int>(access)).code();
  if (const Status good = api::check_processor(processor, true); !good.ok()) return good.code();
  return with_range(address, length,
                    [=](Runtime& runtime, ByteRange bytes) { return call(runtime, bytes, processor, access); });
}

// Data for and from a device travels through runtime memory in pieces of this size.
constexpr std::size_t kPiece = std::size_t{256} << 10;
// Accesses under way at once.
constexpr std::uint32_t kAccessThreads = 4;

struct Piece {
  Status status;
  std::byte* buffer = nullptr;
};
Piece get_piece(Runtime& rt) {
  if (const Status started = rt.context.accesses.start_once(kAccessThreads); !started.ok()) return {started, nullptr};
  auto* buffer = static_cast<std::byte*>(Arena::instance().allocate(kPiece, 64));
  if (buffer == nullptr) return {fail(UHMM_ERR_NO_MEMORY, "no memory for a transfer buffer"), nullptr};
  return {{}, buffer};
}

Status check_accessible(Runtime& rt, ByteRange range, bool write) {
  UHMM_TRY(engine::check_not_lost(rt.context, range));
  UHMM_TRY(engine::check_access(rt.context, range, write));
  return engine::check_registered(rt.context, range);
}

Status access_piece(Runtime& rt, DeviceIndex index, VirtAddr at, std::byte* buffer, std::size_t bytes, bool write) {
  // The memory map may change while the device is at it, and change back: then it is tried again.
  constexpr int kMostTries = 100;
  const ByteRange range{at, at + bytes};
  Status done;
  for (int tries = 0; tries < kMostTries; ++tries) {
    UHMM_TRY(check_accessible(rt, range, write));
    engine::Device* device = nullptr;
    UHMM_TRY(engine::begin_device_work(rt.context, index, &device));
    const Status covered = engine::check_registered(rt.context, range);
    done = covered.ok() ? device->access(at, buffer, bytes, write) : covered;
    // What was refused must not stay refused: no kernel failed there.
    const ByteRange pages = range.to_pages();
    if (done.code() == UHMM_ERR_FAULT) (void)device->unmap({&pages, 1});
    engine::end_device_work(rt.context, index, *device);
    if (done.code() != UHMM_ERR_FAULT) break;
  }
  return done;
}

// Runs of pages that the device would have to fault for: one fault each is what an access costs it. Counted before the
// access, so that work of others on the device is not in it.
struct MissingRuns {
  Status status;
  std::uint64_t count = 0;
};
MissingRuns missing_runs(Runtime& rt, DeviceIndex index, ByteRange bytes, bool write) {
  MissingRuns runs;
  const auto bit = static_cast<std::uint8_t>(1u << index.value);
  const ByteRange pages = bytes.to_pages();
  bool in_run = false;
  for (VirtAddr at = pages.begin; at < pages.end && runs.status.ok();) {
    const auto left =
        static_cast<std::uint32_t>(std::min<std::uint64_t>((pages.end - at) >> kPageShift, kPagesPerBlock));
    const engine::SnapshotPart part = engine::snapshot_part(rt.context, at, left);
    runs.status = part.status;
    for (std::uint32_t i = 0; i < part.count; ++i) {
      const uhmm_page_info& page = part.pages[i];
      const bool mirrored = (page.devices & bit) == 0 && (page.mapped & bit) != 0;
      const bool there = mirrored || ((page.devices & bit) != 0 && (!write || page.state != UHMM_PAGE_SHARED));
      if (!there && !in_run) ++runs.count;
      in_run = !there;
    }
    at = at + std::size_t{part.count} * kPageBytes;
  }
  return runs;
}

uhmm_status device_access(uhmm_processor processor, std::uint64_t address, void* buffer, std::size_t length,
                          std::uint64_t* faults, bool write) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (const Status good = api::check_range(reinterpret_cast<void*>(address), length, &bytes); !good.ok())
    return good.code();
  if (buffer == nullptr) return fail(UHMM_ERR_INVALID, "the buffer is NULL").code();
  if (const Status good = api::check_processor(processor, false); !good.ok()) return good.code();
  const DeviceIndex index{processor - 1};
  const Piece piece = rt->context.workers.call([rt]() { return get_piece(*rt); });
  if (!piece.status.ok()) return piece.status.code();
  auto* user = static_cast<std::byte*>(buffer);
  Status status = rt->context.workers.call([rt, bytes]() { return engine::check_registered(rt->context, bytes); });
  std::uint64_t taken = 0;
  if (status.ok() && faults != nullptr) {
    const MissingRuns runs =
        rt->context.workers.call([rt, index, bytes, write]() { return missing_runs(*rt, index, bytes, write); });
    status = runs.status;
    taken = runs.count;
  }
  for (std::size_t done = 0; done < length && status.ok(); done += kPiece) {
    const std::size_t part = std::min(kPiece, length - done);
    // The program's buffer is touched here, on its own thread, with no lock held: it may be managed memory.
    if (write) std::copy_n(user + done, part, piece.buffer);
    // Not on the workers: it may wait for a release, or for the device's end, which need one.
    status = rt->context.accesses.call([rt, index, at = bytes.begin + done, buffer_at = piece.buffer, part, write]() {
      return access_piece(*rt, index, at, buffer_at, part, write);
    });
    if (!write && status.ok()) std::copy_n(piece.buffer, part, user + done);
  }
  char detail[kDetailBytes];
  save_detail(detail);
  (void)rt->context.workers.call([at = piece.buffer]() -> Status {
    Arena::instance().deallocate(at, kPiece, 64);
    return {};
  });
  set_detail(detail);
  if (status.ok() && faults != nullptr) *faults = taken;
  return status.code();
}

// Signal handlers don't run on the calling thread while this lives.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// munmap(2)'s way to name pages: a page-aligned address and any length.
uhmm_status with_pages(void* address, std::size_t length, Status (*body)(engine::Context&, ByteRange)) {
  if ((reinterpret_cast<std::uintptr_t>(address) & (kPageBytes - 1)) != 0)
    return fail(UHMM_ERR_INVALID, "%p is not the address of a page", address).code();
  return with_range(address, length,
                    [body](Runtime& rt, ByteRange bytes) { return body(rt.context, bytes.to_pages()); });
}

}  // namespace

extern "C" {

uhmm_status uhmm_register(void* address, size_t length) {
  // The memory may have to be replaced, and what a signal handler wrote meanwhile would be lost.
  const SignalsBlocked blocked;
  return with_range(address, length, [program = !Thread::is_ours()](Runtime& rt, ByteRange bytes) {
    return engine::register_range(rt.context, bytes, program);
  });
}

uhmm_status uhmm_unregister(void* address) {
  UHMM_RUNTIME(rt);
  return rt->context.workers
      .call([rt, at = VirtAddr{address}]() -> Status { return engine::unregister_range(rt->context, at); })
      .code();
}

uhmm_status uhmm_forget(void* address, size_t length) { return with_pages(address, length, engine::forget_pages); }

uhmm_status uhmm_unregister_pages(void* address, size_t length) {
  return with_pages(address, length, engine::unregister_pages);
}

uhmm_status uhmm_revoke(void* address, size_t length) { return with_pages(address, length, engine::revoke_access); }

uhmm_status uhmm_migrate(void* address, size_t length, uhmm_processor to, uhmm_migrate_result* result) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (result != nullptr && result->size < sizeof(*result))
    return fail(UHMM_ERR_INVALID, "uhmm_migrate_result.size is %zu, at least %zu is needed", result->size,
                sizeof(*result))
        .code();
  if (const Status good = api::check_range(address, length, &bytes); !good.ok()) return good.code();
  if (const Status good = api::check_processor(to, true); !good.ok()) return good.code();
  const Counts counts = rt->context.workers.call([rt, bytes, to]() {
    Counts moved = engine::migrate(rt->context, {bytes, to, Want::Move, UHMM_CAUSE_USER});
    if (moved.status.ok() && to == UHMM_CPU && moved.done.skipped != 0 && moved.done.status.ok())
      moved.status = engine::check_not_lost(rt->context, bytes);
    return moved;
  });
  fill_result(counts, result);
  return counts.status.code();
}

uhmm_status uhmm_discard(void* address, size_t length) {
  return with_range(address, length,
                    [](Runtime& rt, ByteRange bytes) { return engine::discard_bytes(rt.context, bytes); });
}

uhmm_status uhmm_advise(void* address, size_t length, uhmm_advice advice, uhmm_processor processor) {
  UHMM_RUNTIME(rt);
  if (advice < UHMM_ADVISE_NONE || advice > UHMM_ADVISE_NOT_READ_MOSTLY)
    return fail(UHMM_ERR_INVALID, "unknown advice %d", static_cast<int>(advice)).code();
  if (advice == UHMM_ADVISE_PREFERRED_LOCATION || advice == UHMM_ADVISE_ACCESSED_BY)
    if (const Status good = api::check_processor(processor, true); !good.ok()) return good.code();
  return with_range(address, length, [=](Runtime& runtime, ByteRange bytes) {
    return engine::advise(runtime.context, bytes, advice, processor);
  });
}

uhmm_status uhmm_acquire(void* address, size_t length, uhmm_processor processor, uhmm_access access) {
  return acquire_or_release(address, length, processor, access, acquire);
}

uhmm_status uhmm_release(void* address, size_t length, uhmm_processor processor, uhmm_access access) {
  return acquire_or_release(address, length, processor, access, release);
}

uhmm_status uhmm_device_read(uhmm_processor device, const void* address, void* buffer, size_t length,
                             uint64_t* faults) {
  return device_access(device, reinterpret_cast<std::uint64_t>(address), buffer, length, faults, false);
}

uhmm_status uhmm_device_write(uhmm_processor device, void* address, const void* buffer, size_t length,
                              uint64_t* faults) {
  return device_access(device, reinterpret_cast<std::uint64_t>(address), const_cast<void*>(buffer), length, faults,
                       true);
}

uhmm_status uhmm_make_exclusive(void* address, size_t length, uhmm_processor device, uint64_t* pages) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (const Status good = api::check_range(address, length, &bytes); !good.ok()) return good.code();
  if (const Status good = api::check_processor(device, false); !good.ok()) return good.code();
  const Counts counts = rt->context.workers.call(
      [rt, bytes, device]() { return engine::make_exclusive(rt->context, bytes, DeviceIndex{device - 1}); });
  if (counts.status.ok() && pages != nullptr) *pages = counts.requested;
  return counts.status.code();
}

uhmm_status uhmm_snapshot(const void* address, size_t length, uhmm_page_info* pages, size_t capacity, size_t* count) {
  UHMM_RUNTIME(rt);
  ByteRange bytes;
  if (const Status good = api::check_range(address, length, &bytes); !good.ok()) return good.code();
  if (count == nullptr || (pages == nullptr && capacity != 0))
    return fail(UHMM_ERR_INVALID, count == nullptr ? "count is NULL" : "pages is NULL").code();
  const Status covered =
      rt->context.workers.call([rt, bytes]() { return engine::check_registered(rt->context, bytes); });
  if (!covered.ok()) return covered.code();
  const ByteRange all = bytes.to_pages();
  *count = all.pages();
  const std::size_t wanted = std::min<std::size_t>(capacity, all.pages());
  for (std::size_t done = 0; done < wanted;) {
    const VirtAddr at = all.begin + done * kPageBytes;
    const auto left = static_cast<std::uint32_t>(std::min<std::size_t>(wanted - done, kPagesPerBlock));
    const engine::SnapshotPart part =
        rt->context.workers.call([rt, at, left]() { return engine::snapshot_part(rt->context, at, left); });
    if (!part.status.ok()) return part.status.code();
    std::copy_n(part.pages, part.count, pages + done);
    done += part.count;
  }
  return UHMM_OK;
}

}  // extern "C"
