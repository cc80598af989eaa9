// SPDX-License-Identifier: Apache-2.0
// What a running program tells `uhmm maps`: a ReportHeader, then its devices, then its ranges, in address order.
// Program and tool may come from different versions: who reads goes by the sizes in the header and ignores what it
// doesn't know.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/base/types.hpp"

namespace uhmm::engine {

inline constexpr std::uint64_t kReportMagic = 0x31'50'41'4d'4d'4d'48'55;  // "UHMMMAP1"

// What a tool may ask for. Either is answered with a report.
enum class Request : char {
  Report = 'r',
  BringHome = 'h',  // bring all pages home first
};

struct ReportHeader {
  std::uint64_t magic = kReportMagic;
  std::uint32_t header_bytes = sizeof(ReportHeader);
  std::uint32_t device_bytes = 0;  // of each ReportDevice
  std::uint32_t range_bytes = 0;   // of each ReportRange
  std::uint32_t devices = 0;
  std::uint64_t ranges = 0;
  std::uint32_t version = 0;  // UHMM_VERSION of the program's library
  std::uint32_t reserved = 0;
};

struct ReportDevice {
  std::uint32_t processor = 0;
  std::uint32_t flags = 0;  // UHMM_DEVICE_*
  std::uint64_t memory_pages = 0;
  std::uint64_t current_pages = 0;  // copies of pages that are current
  char name[64] = {};
  char lost_reason[192] = {};
};

struct ReportRange {
  std::uint64_t begin = 0;  // the registered bytes
  std::uint64_t end = 0;
  std::uint64_t first_page = 0;  // the pages this range answers for, as addresses
  std::uint64_t end_page = 0;
  std::uint32_t shared_memory = 0;  // 1: shared anonymous memory, memfd or shm
  std::uint32_t pool = 0;           // 0: the default pool
  // Pages by state. Those in none of these are in system memory, or nowhere as yet.
  std::uint64_t device = 0;  // current on devices only; `exclusive` and `in_place` are among them
  std::uint64_t shared = 0;  // current in system memory and on devices
  std::uint64_t exclusive = 0;
  std::uint64_t in_place = 0;  // the CPU works on the device's memory
  std::uint64_t lost = 0;
  std::array<std::uint64_t, kMaxDevices> on_device{};  // current copies, by device
  std::uint64_t cpu_faults = 0;
  std::uint64_t device_faults = 0;
  std::uint32_t preferred = 0;    // advice: a processor, or ~0
  std::uint32_t accessed_by = 0;  // bit d-1: device d
  std::uint8_t read_mostly = 0;
  std::uint8_t pinned = 0;
  std::uint8_t held = 0;      // acquired, or used by queued work
  std::uint8_t poisoned = 0;  // lost pages have entries, which pagemap takes for swapped pages
  std::uint8_t marked = 0;    // and so have pages on devices
  std::uint8_t reserved[3] = {};
};

}  // namespace uhmm::engine
