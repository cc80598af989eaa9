// SPDX-License-Identifier: Apache-2.0
// The program's memory as a mirror device finds it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "preload/kernel_access.hpp"
#include "preload/own_memory.hpp"
#include "runtime/os/memory.hpp"
#include "uhmm/uhmm.h"

namespace uhmm::preload::dmirror {

// A part of the address space that is of one kind.
struct Piece {
  ByteRange pages;
  os::Mapping mapping;   // kind None: a hole
  bool managed = false;  // registered with the runtime: pages can move; others are accessed where they are

  bool hole() const { return mapping.kind == os::MappingKind::None; }
  bool readable() const { return !hole() && mapping.readable; }
  bool writable() const { return readable() && mapping.writable; }
  // What the kernel's migrate_vma_setup() refuses.
  bool refuses_migration() const {
    return mapping.kind == os::MappingKind::Special || mapping.page_bytes != kPageBytes;
  }
};

// All of `pages`, holes too, ascending. With `manage`, private memory is registered on the way.
Vector<Piece> pieces_of(ByteRange pages, bool manage);

// What the runtime knows of a managed piece's pages. Pages that ended meanwhile count as untouched.
Vector<uhmm_page_info> states_of(ByteRange pages);

}  // namespace uhmm::preload::dmirror
