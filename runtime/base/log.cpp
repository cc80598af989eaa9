// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/log.hpp"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "runtime/base/thread.hpp"

namespace uhmm::log {
namespace {

constexpr std::uint32_t kRecords = 256;

// A bounded queue after D. Vyukov: `turn` says whose turn the slot is. It counts from the slot's index, so that zeroed
// memory is a valid empty queue and the first constructor of the program may log.
struct Record {
  std::atomic<std::uint32_t> turn{0};
  Level level = Level::Debug;
  char text[256 - sizeof(std::atomic<std::uint32_t>) - sizeof(Level)] = {};
};
static_assert(sizeof(Record) == 256);

constinit Record records[kRecords];
constinit std::atomic<std::uint32_t> tail{0};     // next place to write
constinit std::uint32_t head = 0;                 // next place to read; the consumer's
constinit std::atomic<std::uint32_t> dropped{0};  // since the consumer last looked
constinit std::atomic<Level> threshold{Level::Debug};
constinit std::atomic<std::uint32_t> bell{0};  // rung by producers; the consumer sleeps on it
constinit std::atomic<bool> stopping{false};

Thread& consumer() {
  // Never destroyed: a child of fork() runs exit handlers without having the thread.
  alignas(Thread) static std::byte storage[sizeof(Thread)];
  static auto* const thread = new (storage) Thread;
  return *thread;
}

bool push(Level level, const char* text, std::size_t length) {
  std::uint32_t place = tail.load(std::memory_order_relaxed);
  for (;;) {
    Record& record = records[place % kRecords];
    const std::uint32_t turn = record.turn.load(std::memory_order_acquire) + place % kRecords;
    if (turn == place) {
      if (!tail.compare_exchange_weak(place, place + 1, std::memory_order_relaxed)) continue;
      record.level = level;
      std::memcpy(record.text, text, length + 1);
      record.turn.store(place + 1 - place % kRecords, std::memory_order_release);
      return true;
    }
    if (static_cast<std::int32_t>(turn - place) < 0) return false;  // a whole ring behind: full
    place = tail.load(std::memory_order_relaxed);
  }
}

bool pop(Level& level, char (&text)[sizeof(Record::text)]) {
  Record& record = records[head % kRecords];
  if (record.turn.load(std::memory_order_acquire) + head % kRecords != head + 1) return false;
  level = record.level;
  std::memcpy(text, record.text, sizeof text);
  record.turn.store(head + kRecords - head % kRecords, std::memory_order_release);
  ++head;
  return true;
}

spdlog::level::level_enum spdlog_level(Level level) {
  switch (level) {
    case Level::Debug: return spdlog::level::debug;
    case Level::Info: return spdlog::level::info;
    case Level::Warning: return spdlog::level::warn;
    case Level::Error: return spdlog::level::err;
    case Level::Off: break;
  }
  return spdlog::level::off;
}

// This thread may allocate and may fault on managed memory: nothing that serves faults ever waits for it.
void consume(void*) {
  spdlog::logger logger("uhmm", std::make_shared<spdlog::sinks::stderr_sink_st>());
  logger.set_level(spdlog_level(threshold.load(std::memory_order_relaxed)));
  logger.set_pattern("uhmm [%l] %v");
  logger.flush_on(spdlog::level::trace);
  for (;;) {
    // Read before the queue: a record pushed after the last pop has rung after this, so wait() returns at once.
    const std::uint32_t rung = bell.load(std::memory_order_acquire);
    const bool last_round = stopping.load(std::memory_order_acquire);
    Level level;
    char text[sizeof(Record::text)];
    while (pop(level, text)) logger.log(spdlog_level(level), spdlog::string_view_t(text));
    if (const std::uint32_t lost = dropped.exchange(0, std::memory_order_relaxed); lost != 0)
      logger.warn("{} messages dropped", lost);
    if (last_round) return;
    bell.wait(rung, std::memory_order_acquire);
  }
}

}  // namespace

void start(Level level) {
  if (consumer().running()) return;
  threshold.store(level, std::memory_order_relaxed);
  stopping.store(false, std::memory_order_release);
  // Without the thread the program runs on; its messages stay in the ring.
  if (!consumer().start("uhmm-log", &consume, nullptr).ok()) set_detail("");
}

void stop() {
  if (!consumer().running()) return;
  stopping.store(true, std::memory_order_release);
  bell.fetch_add(1, std::memory_order_release);
  bell.notify_one();
  consumer().join();
}

void forget_after_fork() {
  consumer().forget();
  for (Record& record : records) record.turn.store(0, std::memory_order_relaxed);
  tail.store(0, std::memory_order_relaxed);
  head = 0;
  dropped.store(0, std::memory_order_relaxed);
}

void write(Level level, const char* format, ...) {
  if (level < threshold.load(std::memory_order_relaxed)) return;
  // Formatted before a place is claimed, so that a slow writer holds nobody up.
  char text[sizeof(Record::text)];
  va_list arguments;
  va_start(arguments, format);
  const int wanted = std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (wanted < 0) return;
  if (!push(level, text, strnlen(text, sizeof text - 1))) dropped.fetch_add(1, std::memory_order_relaxed);
  // One futex wake, and only when the consumer sleeps; never waits.
  bell.fetch_add(1, std::memory_order_release);
  bell.notify_one();
}

}  // namespace uhmm::log
