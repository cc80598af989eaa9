// SPDX-License-Identifier: Apache-2.0
// What is registered of memory that a call of the program is about, whoever has registered it.
#pragma once

#include "preload/own_memory.hpp"
#include "runtime/base/types.hpp"

namespace uhmm::preload {

struct RegisteredPart {
  ByteRange bytes;      // registered as a whole
  ByteRange pages;      // that they touch
  bool shared = false;  // memory that others may see: nobody drops its contents but with MADV_REMOVE
};
using Parts = Vector<RegisteredPart>;

// Of `pages`, ascending, one for each range. Takes no lock, and costs next to nothing where nothing is registered.
Parts registered_parts(ByteRange pages);

// What the program may do with its memory, to be put back.
class Protections {
 public:
  explicit Protections(const Parts& parts);
  // All access is taken away from the parts. Errors: as mprotect(2); then everything is as it was.
  bool take(const Parts& parts) const;
  void put_back() const;
  // The program may write everywhere, until put_back().
  void allow_writing() const;

 private:
  struct One {
    ByteRange pages;
    int protection;
  };
  bool has_hole(ByteRange part) const;
  Vector<One> before_;
};

// A coherent device's memory may be in the place of the program's, and what is asked of a mapping would be asked of
// that one: then it comes home.
void bring_mappings_home(const Parts& parts);
// Pages of which only a part is registered can't be discarded: they come home, and the kernel drops them there.
void drop_edges(const Parts& parts, int advice);
// The contents of private parts end, those of shared ones if `shared`; what was a file's reads as the file again if
// `renew`.
void discard(const Parts& parts, bool shared, bool renew);
// Registration as it was, as far as it fits into `place`, to where memory has moved that was at `from`.
void register_again(const Parts& parts, VirtAddr from, ByteRange place);

}  // namespace uhmm::preload
