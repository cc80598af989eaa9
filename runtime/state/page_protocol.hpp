// SPDX-License-Identifier: Apache-2.0
// The page protocol as one pure transition table: which states a page can be in and what may happen to it in each.
// Block, the one mutator, checks every commit against it; tests/model proves with it that no interleaving of the steps
// before a commit loses a write or shows a stale byte.
#pragma once

#include <cstdint>
#include <optional>

#include "runtime/base/types.hpp"
#include "uhmm/uhmm.h"

namespace uhmm {

enum class PageKind : std::uint8_t {
  None = UHMM_PAGE_NONE,            // no backing anywhere
  System = UHMM_PAGE_SYSTEM,        // the only copy is in system memory
  Shared = UHMM_PAGE_SHARED,        // current copies in system memory and on each holder, none of them written
  Device = UHMM_PAGE_DEVICE,        // the only copy is on the one holder
  Exclusive = UHMM_PAGE_EXCLUSIVE,  // the same, and only the holder may access it until revoked
  Lost = UHMM_PAGE_LOST,            // the only copy is gone
};

// A set of kinds.
struct StateSet {
  std::uint8_t bits = 0;

  constexpr StateSet() = default;
  constexpr StateSet(PageKind kind) : bits(static_cast<std::uint8_t>(1u << static_cast<unsigned>(kind))) {}  // NOLINT
  constexpr bool contains(PageKind kind) const { return (bits & StateSet(kind).bits) != 0; }
  constexpr bool operator==(const StateSet&) const = default;
  friend constexpr StateSet operator|(StateSet a, StateSet b) {
    a.bits = static_cast<std::uint8_t>(a.bits | b.bits);
    return a;
  }
};
constexpr StateSet operator|(PageKind a, PageKind b) { return StateSet(a) | StateSet(b); }

struct PageState {
  PageKind kind = PageKind::None;
  std::uint8_t holders = 0;  // bit d: device d has a current copy

  constexpr bool operator==(const PageState&) const = default;
  constexpr bool held_by(DeviceIndex device) const { return ((holders >> device.value) & 1) != 0; }
  // Does system memory have a current copy?
  constexpr bool cpu_current() const { return kind == PageKind::System || kind == PageKind::Shared; }
  // Shared has holders, Device and Exclusive have one, the others none.
  constexpr bool well_formed() const {
    const bool one = holders != 0 && (holders & (holders - 1)) == 0;
    if (kind == PageKind::Device || kind == PageKind::Exclusive) return one;
    return (holders != 0) == (kind == PageKind::Shared);
  }
};

// X(identifier, text, kinds it is allowed from). The event's device is named d.
#define UHMM_PAGE_EVENT_LIST(X)                                                                                        \
  X(Populate, "first touch by the CPU", PageKind::None)                                                                \
  X(PopulateOnDevice, "first touch by d", PageKind::None)                                                              \
  X(MigrateToDevice, "moved to d; other copies end",                                                                   \
    PageKind::None | PageKind::System | PageKind::Shared | PageKind::Device)                                           \
  X(DuplicateToDevice, "read by d: d gets a copy", PageKind::System | PageKind::Shared)                                \
  X(DeviceWrite, "holder d writes: other copies end", PageKind::Shared)                                                \
  X(CpuWrite, "the CPU writes: device copies end", PageKind::Shared)                                                   \
  X(MigrateToSystem, "moved to system memory", PageKind::Device | PageKind::Exclusive)                                 \
  X(DuplicateToSystem, "system memory gets a copy, the device keeps its own", PageKind::Device)                        \
  X(DropDuplicate, "d's copy ends", PageKind::Shared)                                                                  \
  X(MakeExclusive, "d gets exclusive access", PageKind::None | PageKind::System | PageKind::Shared | PageKind::Device) \
  X(Revoke, "exclusive access ends", PageKind::Exclusive)                                                              \
  X(Discard, "contents dropped",                                                                                       \
    PageKind::None | PageKind::System | PageKind::Shared | PageKind::Device | PageKind::Exclusive | PageKind::Lost)    \
  X(DeviceLost, "d died", PageKind::Shared | PageKind::Device | PageKind::Exclusive)                                   \
  X(Unregister, "management ends", PageKind::None | PageKind::System | PageKind::Lost)

enum class PageEvent : std::uint8_t {
#define UHMM_X(name, text, from) name,
  UHMM_PAGE_EVENT_LIST(UHMM_X)
#undef UHMM_X
};

inline constexpr unsigned kPageEvents = 0
#define UHMM_X(name, text, from) +1
    UHMM_PAGE_EVENT_LIST(UHMM_X)
#undef UHMM_X
    ;

constexpr const char* page_event_text(PageEvent event) {
  switch (event) {
#define UHMM_X(name, text, from) \
  case PageEvent::name: return text;
    UHMM_PAGE_EVENT_LIST(UHMM_X)
#undef UHMM_X
  }
  return "?";
}

// For whole masks: the kinds in which the event may happen. Conditions on holders are next()'s.
constexpr StateSet allowed_from(PageEvent event) {
  switch (event) {
#define UHMM_X(name, text, from) \
  case PageEvent::name: return from;
    UHMM_PAGE_EVENT_LIST(UHMM_X)
#undef UHMM_X
  }
  return {};
}

// The state after the event, or nothing when it may not happen. `device` is d; ignored by events without one.
constexpr std::optional<PageState> next(PageState state, PageEvent event, DeviceIndex device = {}) {
  if (!allowed_from(event).contains(state.kind)) return std::nullopt;
  const auto bit = static_cast<std::uint8_t>(1u << device.value);
  const auto others = static_cast<std::uint8_t>(state.holders & ~bit);
  const auto shared_with = [](std::uint8_t holders) {
    return holders == 0 ? PageState{PageKind::System, 0} : PageState{PageKind::Shared, holders};
  };
  switch (event) {
    case PageEvent::Populate:
    case PageEvent::CpuWrite:
    case PageEvent::MigrateToSystem:
    case PageEvent::Revoke: return PageState{PageKind::System, 0};
    case PageEvent::MigrateToDevice:
      if (state.kind == PageKind::Device && state.held_by(device)) return std::nullopt;  // it is there
      return PageState{PageKind::Device, bit};
    case PageEvent::PopulateOnDevice: return PageState{PageKind::Device, bit};
    case PageEvent::DuplicateToDevice:
      if (state.held_by(device)) return std::nullopt;
      return shared_with(static_cast<std::uint8_t>(state.holders | bit));
    case PageEvent::DeviceWrite:
      if (!state.held_by(device)) return std::nullopt;
      return PageState{PageKind::Device, bit};
    case PageEvent::DuplicateToSystem: return PageState{PageKind::Shared, state.holders};
    case PageEvent::MakeExclusive: return PageState{PageKind::Exclusive, bit};
    case PageEvent::DropDuplicate:
      if (!state.held_by(device)) return std::nullopt;
      return shared_with(others);
    case PageEvent::DeviceLost:
      if (!state.held_by(device)) return std::nullopt;
      return state.kind == PageKind::Shared ? shared_with(others) : PageState{PageKind::Lost, 0};
    case PageEvent::Discard: return PageState{};
    case PageEvent::Unregister: return state;
  }
  return std::nullopt;
}

}  // namespace uhmm
