// SPDX-License-Identifier: Apache-2.0
#include "preload/dmirror/mirror.hpp"

#include <errno.h>

#include <algorithm>

#include "preload/managed.hpp"
#include "runtime/base/inject.hpp"
#include "runtime/os/page_details.hpp"

namespace uhmm::preload::dmirror {
namespace {

// What a snapshot says of a page.
constexpr std::uint8_t kError = 0xff, kNone = 0, kRead = 1, kWrite = 2, kPmd = 4, kPud = 8, kZero = 0x10,
                       kPrivateLocal = 0x20, kCoherentLocal = 0x40, kCoherentRemote = 0x50;

int errno_of(uhmm_status status) {
  switch (status) {
    case UHMM_OK: return 0;
    case UHMM_ERR_PERMISSION: return EPERM;
    case UHMM_ERR_FAULT:
    case UHMM_ERR_NOT_REGISTERED:
    case UHMM_ERR_DATA_LOST: return EFAULT;
    case UHMM_ERR_NO_MEMORY:
    case UHMM_ERR_DEVICE_FULL: return ENOMEM;
    default: return EIO;
  }
}

bool is_coherent(uhmm_processor device) {
  uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
  return uhmm_device_get_info(device, &info) == UHMM_OK && (info.flags & UHMM_DEVICE_COHERENT) != 0;
}

// Calls visit(run of pages) for the runs of a piece whose states `wanted` wants.
template <typename Wanted, typename Visit>
void for_runs(ByteRange pages, const Vector<uhmm_page_info>& states, Wanted&& wanted, Visit&& visit) {
  for (std::size_t i = 0; i < states.size();) {
    std::size_t end = i;
    while (end < states.size() && wanted(states[end])) ++end;
    if (end != i) visit(ByteRange{pages.begin + i * kPageBytes, pages.begin + end * kPageBytes});
    i = std::max(end, i + 1);
  }
}

// A run of pages that were missing is one fault.
std::uint64_t missing_runs(const Vector<bool>& there) {
  std::uint64_t runs = 0;
  for (std::size_t i = 0; i < there.size(); ++i) runs += !there[i] && (i == 0 || there[i - 1]) ? 1 : 0;
  return runs;
}

}  // namespace

std::size_t bytes_in(Number number, const Command& command) {
  return number == Number::Write ? command.npages << kPageShift : 0;
}

std::size_t bytes_out(Number number, const Command& command) {
  switch (number) {
    case Number::Read:
    case Number::ReadUnlocked:
    case Number::MigrateToDevice:
    case Number::Exclusive: return command.npages << kPageShift;
    case Number::Snapshot: return command.npages;
    default: return 0;
  }
}

bool goes_by_pages(Number number) {
  switch (number) {
    case Number::CheckExclusive:
    case Number::Release:
    case Number::Flags:
    case Number::kCount: return false;
    default: return true;
  }
}

int Mirror::run(Number number, Command& command, std::byte* data) {
  command.cpages = 0;
  command.faults = 0;
  switch (number) {
    case Number::Read: return read(command, data, true);
    case Number::ReadUnlocked: return read(command, data, false);
    case Number::Write: return write(command, data);
    case Number::MigrateToDevice: return migrate_to_device(command, data);
    case Number::MigrateToSystem: return migrate_to_system(command);
    case Number::Snapshot: return snapshot(command, data);
    case Number::Exclusive: return exclusive(command, data);
    case Number::CheckExclusive: return check_exclusive(command);
    case Number::Release: evict(); return 0;
    case Number::Flags: return set_flags(command);
    case Number::kCount: break;
  }
  return EINVAL;
}

Vector<bool> Mirror::reached(const Vector<Piece>& pieces, bool write) {
  Vector<bool> pages;
  const std::scoped_lock lock(mutex_);
  if (generation_ != map_generation()) in_place_.clear();
  generation_ = map_generation();
  for (const Piece& piece : pieces) {
    if (!piece.managed) {
      for (VirtAddr at = piece.pages.begin; at < piece.pages.end; at = at + kPageBytes) {
        const auto known = in_place_.find(at.value >> kPageShift);
        pages.push_back(known != in_place_.end() && (known->second || !write));
      }
      continue;
    }
    for (const uhmm_page_info& page : states_of(piece.pages))
      pages.push_back(is_here(page) && (!write || page.state != UHMM_PAGE_SHARED));
  }
  return pages;
}

void Mirror::reach(const Piece& piece, bool write) {
  const std::scoped_lock lock(mutex_);
  for (VirtAddr at = piece.pages.begin; at < piece.pages.end; at = at + kPageBytes) {
    bool& writable = in_place_[at.value >> kPageShift];
    writable = writable || write;
  }
}

int Mirror::access(const Piece& piece, std::byte* data, bool write) {
  if (piece.hole()) return EFAULT;
  if (piece.managed) {
    void* const address = piece.pages.begin.pointer();
    return errno_of(write ? uhmm_device_write(device_, address, data, piece.pages.bytes(), nullptr)
                          : uhmm_device_read(device_, address, data, piece.pages.bytes(), nullptr));
  }
  const int error = write ? copy_to_program(piece.pages.begin.value, data, piece.pages.bytes())
                          : copy_from_program(data, piece.pages.begin.value, piece.pages.bytes());
  if (error == 0) reach(piece, write);
  return error;
}

int Mirror::read(Command& command, std::byte* data, bool manage) {
  const Vector<Piece> pieces = pieces_of(command.pages(), manage);
  for (const Piece& piece : pieces)
    if (!piece.readable()) return EFAULT;
  const Vector<bool> there = reached(pieces, false);
  for (const Piece& piece : pieces) {
    if (const int error = access(piece, data + (piece.pages.begin.value - command.addr), false); error != 0)
      return error;
  }
  command.cpages = command.npages;
  command.faults = missing_runs(there);
  return 0;
}

int Mirror::write(Command& command, const std::byte* data) {
  const Vector<Piece> pieces = pieces_of(command.pages(), true);
  for (const Piece& piece : pieces) {
    if (!piece.readable()) return EFAULT;
    if (!piece.writable()) return EPERM;
  }
  const Vector<bool> there = reached(pieces, true);
  for (const Piece& piece : pieces) {
    auto* from = const_cast<std::byte*>(data) + (piece.pages.begin.value - command.addr);
    if (const int error = access(piece, from, true); error != 0) return error;
  }
  command.cpages = command.npages;
  command.faults = missing_runs(there);
  return 0;
}

int Mirror::migrate_to_device(Command& command, std::byte* data) {
  for (const Piece& piece : pieces_of(command.pages(), true)) {
    if (!piece.readable() || piece.refuses_migration()) return EINVAL;
    if (!piece.managed) continue;
    // Only pages in system memory are taken: what is on another device stays there.
    const auto in_system = [](const uhmm_page_info& page) {
      return page.state == UHMM_PAGE_NONE || page.state == UHMM_PAGE_SYSTEM || page.state == UHMM_PAGE_SHARED;
    };
    for_runs(piece.pages, states_of(piece.pages), in_system,
             [&](ByteRange run) { (void)uhmm_migrate(run.begin.pointer(), run.bytes(), device_, nullptr); });
  }
  // What the device has now, for the caller to verify; a page that it does not have is the error.
  const Vector<Piece> pieces = pieces_of(command.pages(), false);
  const Vector<bool> there = reached(pieces, false);
  if (std::find(there.begin(), there.end(), false) != there.end()) return ENOENT;
  for (const Piece& piece : pieces) {
    if (const int error = access(piece, data + (piece.pages.begin.value - command.addr), false); error != 0)
      return error;
  }
  command.cpages = command.npages;
  return 0;
}

int Mirror::migrate_to_system(Command& command) {
  const auto on_this_device = [this](const uhmm_page_info& page) {
    return is_here(page) && (page.state == UHMM_PAGE_DEVICE || page.state == UHMM_PAGE_EXCLUSIVE);
  };
  for (const Piece& piece : pieces_of(command.pages(), false)) {
    if (!piece.readable() || piece.refuses_migration()) return EINVAL;
    for (const ByteRange& part : managed_parts(piece.pages)) {
      for_runs(part, states_of(part), on_this_device, [&](ByteRange run) {
        uhmm_migrate_result result = UHMM_MIGRATE_RESULT_INIT;
        (void)uhmm_migrate(run.begin.pointer(), run.bytes(), UHMM_CPU, &result);
        command.cpages += result.pages_moved;
      });
    }
  }
  return 0;
}

int Mirror::exclusive(Command& command, std::byte* data) {
  const Vector<Piece> pieces = pieces_of(command.pages(), true);
  for (const Piece& piece : pieces)
    if (!piece.managed || !piece.writable()) return EBUSY;
  void* const address = command.pages().begin.pointer();
  const std::size_t bytes = command.pages().bytes();
  const uhmm_status status = uhmm_make_exclusive(address, bytes, device_, nullptr);
  if (status != UHMM_OK) return status == UHMM_ERR_NO_MEMORY ? ENOMEM : EBUSY;
  if (const int error = errno_of(uhmm_device_read(device_, address, data, bytes, nullptr)); error != 0) return error;
  command.cpages = command.npages;
  return 0;
}

// The flags are in the place of the page count.
int Mirror::set_flags(const Command& command) {
  constexpr std::uint64_t kFailAllocation = 1;  // of the next huge page, once
  inject::arm(inject::Point::HugePage, (command.npages & kFailAllocation) != 0 ? 1 : 0);
  return 0;
}

int Mirror::check_exclusive(const Command& command) {
  for (const ByteRange& part : managed_parts(command.pages())) {
    for (VirtAddr at = part.begin; at < part.end; at = at.block_floor() + kBlockBytes)
      for (const uhmm_page_info& page : states_of(part.intersect({at, at.block_floor() + kBlockBytes})))
        if (page.state == UHMM_PAGE_EXCLUSIVE && is_here(page)) return EPERM;
  }
  return 0;
}

std::uint8_t Mirror::describe(const Piece& piece, const uhmm_page_info& state) const {
  const std::uint8_t access = piece.writable() ? kWrite : kRead;
  switch (state.state) {
    case UHMM_PAGE_LOST: return kError;
    case UHMM_PAGE_EXCLUSIVE: return kNone;
    case UHMM_PAGE_DEVICE: break;
    default: return kNone;
  }
  const std::uint8_t huge = (state.huge & state.devices) != 0 ? kPmd : 0;
  if (is_here(state)) return (coherent_ ? kCoherentLocal : kPrivateLocal) | access | huge;
  // Another device's private memory is nothing that this one could map.
  for (uhmm_processor other = 1; other <= UHMM_MAX_DEVICES; ++other)
    if ((state.devices & (1u << (other - 1))) != 0 && is_coherent(other)) return kCoherentRemote | access;
  return kNone;
}

int Mirror::snapshot(Command& command, std::byte* data) {
  for (const Piece& piece : pieces_of(command.pages(), false)) {
    std::byte* out = data + ((piece.pages.begin.value - command.addr) >> kPageShift);
    if (!piece.readable()) {
      std::fill_n(out, piece.pages.pages(), std::byte{kError});
      continue;
    }
    Vector<os::PageDetails> details(piece.pages.pages());
    if (!os::page_details(piece.pages.begin, details).ok()) return EIO;
    const bool shared = piece.mapping.kind == os::MappingKind::Shared;
    for (std::size_t i = 0; i < details.size(); ++i) {
      const os::PageDetails& page = details[i];
      std::uint8_t byte = kNone;
      if (page.zero)
        byte = kZero | kRead;
      else if (page.present)
        byte = piece.writable() && (shared || (!page.file && page.exclusive)) ? kWrite : kRead;
      if (page.present && page.huge) byte |= piece.mapping.page_bytes > kBlockBytes ? kPud : kPmd;
      out[i] = std::byte{byte};
    }
    for (const ByteRange& part : managed_parts(piece.pages)) {
      const Vector<uhmm_page_info> states = states_of(part);
      for (std::size_t i = 0; i < states.size(); ++i) {
        const bool away = states[i].state == UHMM_PAGE_DEVICE || states[i].state == UHMM_PAGE_EXCLUSIVE ||
                          states[i].state == UHMM_PAGE_LOST;
        if (away) out[((part.begin - piece.pages.begin) >> kPageShift) + i] = std::byte{describe(piece, states[i])};
      }
    }
  }
  command.cpages = command.npages;
  return 0;
}

void Mirror::evict() const {
  for (const ByteRange& part : managed_parts({VirtAddr{kPageBytes}, VirtAddr{kUserSpaceEnd}})) {
    // As much at a time as one look is cheap for.
    for (VirtAddr at = part.begin; at < part.end;) {
      const ByteRange block = part.intersect({at, at.block_floor() + kBlockBytes});
      for_runs(
          block, states_of(block), [this](const uhmm_page_info& page) { return is_here(page); },
          [](ByteRange run) { (void)uhmm_migrate(run.begin.pointer(), run.bytes(), UHMM_CPU, nullptr); });
      at = block.end;
    }
  }
}

}  // namespace uhmm::preload::dmirror
