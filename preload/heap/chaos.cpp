// SPDX-License-Identifier: Apache-2.0
#include "preload/heap/chaos.hpp"

#include <algorithm>
#include <bit>

#include "runtime/os/thread.hpp"

namespace uhmm::preload::heap {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
// A late step makes up for so many at most: a machine that is busy is not to be driven harder.
constexpr std::uint64_t kMostAtOnce = 64;

std::uint64_t mix(std::uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

bool is_live(const uhmm_page_info& page) { return page.state != UHMM_PAGE_NONE && page.state != UHMM_PAGE_LOST; }

}  // namespace

Chaos::Chaos(std::uint64_t seed, std::uint64_t rate) : interval_(std::max<std::uint64_t>(kSecond / rate, 1)) {
  for (std::uint64_t& word : state_) word = mix(seed);
  (void)uhmm_device_list(ids_.data(), UHMM_MAX_DEVICES, &devices_);
  devices_ = std::min<std::uint32_t>(devices_, UHMM_MAX_DEVICES);
}

// xoroshiro128+
std::uint64_t Chaos::random() {
  const std::uint64_t first = state_[0];
  std::uint64_t second = state_[1];
  const std::uint64_t out = first + second;
  second ^= first;
  state_[0] = std::rotl(first, 24) ^ second ^ (second << 16);
  state_[1] = std::rotl(second, 37);
  return out >> 3;  // the lowest bits are the least random
}

// A run of pages, the first of them live; empty when the dice fell on none.
ByteRange Chaos::pick() {
  live_.look_again();
  if (live_.bytes() < kPageBytes) return {};
  std::uint64_t at = random_below(live_.bytes()) & ~(kPageBytes - 1);
  for (const ByteRange& live : live_.parts()) {
    if (at >= live.bytes()) {
      at -= live.bytes();
      continue;
    }
    // Of the whole block, so that memory that is handed out but hardly used is not passed over each time.
    const ByteRange block =
        live.intersect({(live.begin + at).block_floor(), (live.begin + at).block_floor() + kBlockBytes});
    std::size_t count = 0;
    if (uhmm_snapshot(block.begin.pointer(), block.bytes(), pages_.data(), pages_.size(), &count) != UHMM_OK) return {};
    count = std::min(count, pages_.size());
    std::size_t lives = 0;
    for (std::size_t page = 0; page < count; ++page) lives += is_live(pages_[page]) ? 1 : 0;
    if (lives == 0) return {};
    std::size_t nth = random_below(lives);
    std::size_t first = 0;
    while (!is_live(pages_[first]) || nth-- != 0) ++first;
    // Mostly a few, sometimes many; never one that was not touched yet, which would only cost memory.
    const std::size_t wanted = std::size_t{1} << random_below(random_below(8) == 0 ? 10 : 4);
    std::size_t end = first;
    while (end < count && end - first < wanted && is_live(pages_[end])) ++end;
    return {block.begin + first * kPageBytes, block.begin + end * kPageBytes};
  }
  return {};
}

void Chaos::move_one() {
  const ByteRange pages = pick();
  if (pages.empty() || devices_ == 0) return;
  void* const address = pages.begin.pointer();
  const uhmm_processor device = ids_[random_below(devices_)];
  // What fails (a page that the kernel has pinned, a full device) is as good: the program must not notice either.
  switch (random_below(16)) {
    case 0:
    case 1: (void)uhmm_migrate(address, pages.bytes(), UHMM_CPU, nullptr); break;
    case 2:
    case 3: (void)uhmm_prefetch(address, pages.bytes(), device, 0); break;  // a copy on both sides
    case 4: (void)uhmm_make_exclusive(address, pages.bytes(), device, nullptr); break;
    default: (void)uhmm_migrate(address, pages.bytes(), device, nullptr); break;
  }
}

std::uint64_t Chaos::step() {
  std::uint64_t now = os::now_ns();
  if (due_ == 0 || due_ + kMostAtOnce * interval_ < now) due_ = now;
  for (; due_ <= now; due_ += interval_) move_one();
  now = os::now_ns();
  return due_ > now ? due_ - now : 1;
}

}  // namespace uhmm::preload::heap
