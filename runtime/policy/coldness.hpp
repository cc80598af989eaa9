// SPDX-License-Identifier: Apache-2.0
// Which pieces of memory are cold, known only from what is seen: a piece that was sent away and came back is in use. A
// hand goes round over what is in system memory; each time that it passes a piece in use, the piece becomes a little
// cooler, and what has cooled down goes. So what came back soon is asked again only after several rounds, and what has
// never come back is not asked at all: it is away. Pure decisions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace uhmm::policy {

class Warmth {
 public:
  // It was away, and has been touched.
  void came_back() { level_ = static_cast<std::uint8_t>(std::min(level_ + kStep, kHottest)); }
  // The hand passes. True: it may go.
  bool passed() {
    if (level_ == 0) return true;
    --level_;
    return false;
  }
  bool cold() const { return level_ == 0; }

  // After so many rounds everything has been asked.
  static constexpr int kHottest = 7;

 private:
  static constexpr int kStep = 2;
  std::uint8_t level_ = 0;
};

// How much has to leave, given what there is and what there may be: nothing below the limit, else so much that there
// is room for a while. All in bytes.
constexpr std::uint64_t surplus(std::uint64_t resident, std::uint64_t limit) {
  constexpr std::uint64_t kRoomPart = 16;
  const std::uint64_t target = limit - limit / kRoomPart;
  return resident > limit - limit / kRoomPart / 2 ? resident - target : 0;
}

// After how many nanoseconds to look again: before a fast program can have filled what is free.
constexpr std::uint64_t look_again(std::uint64_t resident, std::uint64_t limit) {
  constexpr std::uint64_t kSoonest = 1'000'000;
  constexpr std::uint64_t kLatest = 20'000'000;
  const std::uint64_t room = limit > resident ? limit - resident : 0;
  // A byte a nanosecond, and some.
  return std::clamp(room / 2, kSoonest, kLatest);
}

}  // namespace uhmm::policy
