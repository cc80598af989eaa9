// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/context.hpp"

#include "runtime/os/thread.hpp"

namespace uhmm::engine {

void Context::record(uhmm_event_kind kind, uhmm_cause cause, ByteRange bytes, std::uint32_t pages,
                     std::uint32_t processor, std::uint64_t duration_ns) {
  uhmm_event event{};
  event.kind = static_cast<std::uint16_t>(kind);
  event.cause = static_cast<std::uint16_t>(cause);
  event.address = bytes.begin.value;
  event.bytes = bytes.bytes();
  event.pages = pages;
  event.processor = processor;
  event.duration_ns = duration_ns;
  event.thread = os::thread_id();
  events.record(event);
}

}  // namespace uhmm::engine
