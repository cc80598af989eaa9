// SPDX-License-Identifier: Apache-2.0
// A range ends, whole or in part: at the program's request, or because the memory itself ends.
#pragma once

#include "runtime/engine/context.hpp"

namespace uhmm::engine {

// Are the addresses still those that were registered, or has the kernel given them to something else?
enum class Place : bool { Ours, Gone };

// Under the address space's exclusive lock: the range, of which nothing is current on any device, ends and is
// destroyed.
void end_range(Context& context, Range* range, Place place = Place::Ours);

// Whole pages of the address space end: what is registered there is registered no more, contents are given up, and
// ranges that reach further are cut. All or nothing. Errors: NO_MEMORY; what revoking from a device says.
Status forget_pages(Context& context, ByteRange pages);

// The same, but contents come home first and stay. Errors: NO_MEMORY (something could not come home, or no memory for a
// cut: nothing ended); DATA_LOST (done, but pages of it are lost); BUSY (devices take pages away again and again).
Status unregister_pages(Context& context, ByteRange pages);

// The same as forget_pages() for pages whose addresses the kernel has given to something else, which is not touched.
// rescue(argument, segment) is called for each segment first, all under the address space's exclusive lock.
using Rescue = Status (*)(void* argument, const Segment& segment);
Status end_gone_pages(Context& context, ByteRange pages, Rescue rescue = nullptr, void* argument = nullptr);

// On return devices reach none of the pages; their next access asks again what the program's memory map allows.
Status revoke_access(Context& context, ByteRange pages);

}  // namespace uhmm::engine
