// SPDX-License-Identifier: Apache-2.0
#include "runtime/state/page_protocol.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace uhmm {
namespace {

constexpr std::uint32_t kDevices = 3;

std::vector<PageState> all_states() {
  std::vector<PageState> states;
  for (unsigned kind = 0; kind <= UHMM_PAGE_LOST; ++kind)
    for (unsigned holders = 0; holders < 1u << kDevices; ++holders) {
      const PageState state{static_cast<PageKind>(kind), static_cast<std::uint8_t>(holders)};
      if (state.well_formed()) states.push_back(state);
    }
  return states;
}

template <typename Visit>
void for_all(Visit visit) {
  for (const PageState state : all_states())
    for (unsigned event = 0; event < kPageEvents; ++event)
      for (std::uint32_t device = 0; device < kDevices; ++device)
        visit(state, static_cast<PageEvent>(event), DeviceIndex{device});
}

TEST(PageProtocol, states_are_closed_under_events) {
  EXPECT_EQ(all_states().size(), 1u + 1 + 7 + 3 + 3 + 1);
  for_all([](PageState state, PageEvent event, DeviceIndex device) {
    if (const auto after = next(state, event, device)) {
      EXPECT_TRUE(after->well_formed()) << page_event_text(event);
    }
  });
}

TEST(PageProtocol, allowed_from_says_what_next_says) {
  for (unsigned e = 0; e < kPageEvents; ++e) {
    const auto event = static_cast<PageEvent>(e);
    StateSet reached;
    for_all([&](PageState state, PageEvent of, DeviceIndex device) {
      if (of == event && next(state, event, device)) reached = reached | StateSet(state.kind);
    });
    EXPECT_EQ(reached, allowed_from(event)) << page_event_text(event);
  }
}

TEST(PageProtocol, data_ends_only_where_it_may) {
  for_all([](PageState state, PageEvent event, DeviceIndex device) {
    const auto after = next(state, event, device);
    if (!after) return;
    const auto has_data = [](PageState s) { return s.cpu_current() || s.holders != 0; };
    if (has_data(state) && !has_data(*after)) {
      EXPECT_TRUE(event == PageEvent::Discard || event == PageEvent::DeviceLost) << page_event_text(event);
    }
    if (state.kind == PageKind::Lost) {
      EXPECT_TRUE(event == PageEvent::Discard || event == PageEvent::Unregister);
    }
    if (event == PageEvent::DeviceLost) {
      EXPECT_FALSE(after->held_by(device));
    }
  });
}

TEST(PageProtocol, every_state_is_reached) {
  std::set<std::pair<PageKind, std::uint8_t>> seen{{PageKind::None, std::uint8_t{0}}};
  for (bool grew = true; grew;) {
    grew = false;
    for_all([&](PageState state, PageEvent event, DeviceIndex device) {
      if (!seen.contains({state.kind, state.holders})) return;
      if (const auto after = next(state, event, device)) grew |= seen.insert({after->kind, after->holders}).second;
    });
  }
  EXPECT_EQ(seen.size(), all_states().size());
}

// The lines of docs/protocol.md that are easy to get wrong.
TEST(PageProtocol, examples) {
  constexpr PageState none{};
  constexpr PageState system{PageKind::System, 0};
  constexpr PageState on_0{PageKind::Device, 1};
  constexpr PageState shared_0{PageKind::Shared, 1};
  constexpr PageState shared_01{PageKind::Shared, 3};
  constexpr PageState exclusive_0{PageKind::Exclusive, 1};
  constexpr DeviceIndex d0{0};
  constexpr DeviceIndex d1{1};
  static_assert(next(none, PageEvent::PopulateOnDevice, d0) == on_0);
  static_assert(next(system, PageEvent::DuplicateToDevice, d0) == shared_0);
  static_assert(next(shared_0, PageEvent::DuplicateToDevice, d1) == shared_01);
  static_assert(!next(shared_0, PageEvent::DuplicateToDevice, d0));
  static_assert(!next(on_0, PageEvent::DuplicateToDevice, d1), "by way of DuplicateToSystem");
  static_assert(next(shared_01, PageEvent::DeviceWrite, d0) == on_0);
  static_assert(!next(shared_0, PageEvent::DeviceWrite, d1), "it has no copy to write");
  static_assert(next(shared_01, PageEvent::CpuWrite) == system);
  static_assert(!next(on_0, PageEvent::CpuWrite), "the CPU has no mapping");
  static_assert(next(shared_01, PageEvent::DropDuplicate, d1) == shared_0);
  static_assert(next(shared_0, PageEvent::DropDuplicate, d0) == system);
  static_assert(!next(on_0, PageEvent::DropDuplicate, d0), "the only copy");
  static_assert(!next(on_0, PageEvent::MigrateToDevice, d0));
  static_assert(next(on_0, PageEvent::MigrateToDevice, d1) == PageState{PageKind::Device, 2});
  static_assert(!next(exclusive_0, PageEvent::MigrateToDevice, d1), "revoke first");
  static_assert(next(exclusive_0, PageEvent::Revoke) == system);
  static_assert(next(shared_0, PageEvent::DeviceLost, d0) == system);
  static_assert(next(on_0, PageEvent::DeviceLost, d0) == PageState{PageKind::Lost, 0});
  static_assert(!next(on_0, PageEvent::DeviceLost, d1), "not concerned");
  static_assert(!next(on_0, PageEvent::Unregister), "brought back first");
}

TEST(PageProtocol, texts_are_distinct) {
  std::set<std::string> texts;
  for (unsigned event = 0; event < kPageEvents; ++event) texts.insert(page_event_text(static_cast<PageEvent>(event)));
  EXPECT_EQ(texts.size(), kPageEvents);
}

}  // namespace
}  // namespace uhmm
