// SPDX-License-Identifier: Apache-2.0
// mprotect, munmap, mmap(MAP_FIXED), mremap.
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "tests/preload/map_matrix.hpp"

namespace uhmm::matrix {
namespace {

constexpr int kReadWrite = PROT_READ | PROT_WRITE;
constexpr int kStays = 4;  // MREMAP_DONTUNMAP

// A few pages in the middle, or one.
std::byte* middle(Run& run) { return run.data() + run.pages() / 4 * kPage; }
std::size_t middle_bytes(Run& run) { return std::max<std::size_t>(run.pages() / 2, 1) * kPage; }

long failed(const void* mapped) { return mapped == MAP_FAILED ? -1 : 0; }

void protect_none(Run& run) {
  run.call("mprotect", mprotect(run.data(), run.bytes(), PROT_NONE));
  run.look("without access", run.data(), run.bytes());
  run.call("mprotect back", mprotect(run.data(), run.bytes(), kReadWrite));
  run.look("again", run.data(), run.bytes());
  run.poke("a write", run.data(), std::byte{3});
}
void protect_read(Run& run) {
  run.call("mprotect", mprotect(run.data(), run.bytes(), PROT_READ));
  run.poke("a write", run.data() + 5, std::byte{9});
  run.look("read only", run.data(), run.bytes());
  run.poke("a write at home", run.data() + 5, std::byte{9});
  run.travel(run.data(), run.bytes());
  run.poke("a write after a journey", run.data() + 5, std::byte{9});
  run.call("mprotect back", mprotect(run.data(), run.bytes(), kReadWrite));
  run.poke("a write at last", run.data() + 5, std::byte{9});
}
void protect_part(Run& run) {
  run.call("mprotect", mprotect(middle(run), middle_bytes(run), PROT_NONE));
  run.look("around", run.data(), run.bytes());
  run.call("mprotect back", mprotect(middle(run), middle_bytes(run), kReadWrite));
  run.call("of no page", mprotect(run.data() + 1, kPage, PROT_READ));
}
void protect_with_key(Run& run) {
  const int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  run.note("there are keys", key >= 0 ? 1 : 0);
  if (key < 0) return run.call("no key", pkey_mprotect(run.data(), run.bytes(), kReadWrite, -1));
  run.call("pkey_mprotect", pkey_mprotect(run.data(), run.bytes(), kReadWrite, key));
  run.poke("a write", run.data(), std::byte{1});
  pkey_set(key, 0);
  run.poke("a write with the key", run.data(), std::byte{2});
  run.call("back", pkey_mprotect(run.data(), run.bytes(), kReadWrite, 0));
  pkey_free(key);
}

void unmap_whole(Run& run) {
  run.call("munmap", munmap(run.data(), run.bytes()));
  run.look("nothing", run.data(), kPage);
  void* again = mmap(run.data(), run.bytes(), kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  run.call("mmap", failed(again));
  run.look("something else", run.data(), run.bytes());
}
void unmap_part(Run& run) {
  run.call("munmap", munmap(middle(run), middle_bytes(run)));
  run.look("around", run.data(), run.bytes());
  run.call("across the hole", munmap(run.data(), run.bytes()));
  run.look("nothing", run.data(), run.bytes());
}
void unmap_refused(Run& run) {
  run.call("munmap", munmap(run.data() + 1, kPage));
  run.call("munmap of nothing", munmap(run.data(), 0));
}
// What others may see is there again when it is mapped again.
void unmap_a_second_view(Run& run) {
  auto* view = static_cast<std::byte*>(mremap(run.data(), 0, run.bytes(), MREMAP_MAYMOVE));
  run.call("a second view", failed(view));
  if (view == MAP_FAILED) return;
  run.also(view, run.bytes());
  run.registered("the first view is registered", run.data(), run.bytes());
  run.depart(run.data(), run.bytes());
  run.call("munmap", munmap(run.data(), run.bytes()));
  run.look("what is left", view, run.bytes());
}

void map_over(Run& run, std::byte* at, std::size_t bytes, int flags) {
  run.call("mmap", failed(mmap(at, bytes, kReadWrite, flags | MAP_FIXED, -1, 0)));
  run.look("after it", run.data(), run.bytes());
  run.poke("a write", at, std::byte{5});
}
void map_over_whole(Run& run) { map_over(run, run.data(), run.bytes(), MAP_PRIVATE | MAP_ANONYMOUS); }
void map_over_part(Run& run) { map_over(run, middle(run), middle_bytes(run), MAP_PRIVATE | MAP_ANONYMOUS); }
void map_shared_over_part(Run& run) { map_over(run, middle(run), middle_bytes(run), MAP_SHARED | MAP_ANONYMOUS); }
void map_over_refused(Run& run) {
  run.call("mmap", failed(mmap(run.data(), kPage, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0)));
  run.call("in the way",
           failed(mmap(run.data(), kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)));
}

void move(Run& run) {
  std::byte* place = run.empty_place(run.bytes());
  run.call("mremap", failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, place)));
  run.also(place, run.bytes());
  run.registered("it is registered there", place, run.bytes());
  run.look("there", place, run.bytes());
  run.look("nothing", run.data(), kPage);
  run.travel(place, run.bytes());
  run.poke("a write", place, std::byte{4});
  run.look("after a journey", place, run.bytes());
}
void move_part(Run& run) {
  std::byte* place = run.empty_place(middle_bytes(run));
  run.call("mremap",
           failed(mremap(middle(run), middle_bytes(run), middle_bytes(run), MREMAP_MAYMOVE | MREMAP_FIXED, place)));
  run.also(place, middle_bytes(run));
  run.look("there", place, middle_bytes(run));
  run.look("around", run.data(), run.bytes());
}
void grow(Run& run) {
  // With something behind it, so that it has to move.
  std::byte* place = run.empty_place(3 * run.bytes());
  run.call("mremap to a place",
           failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, place)));
  run.call("the way",
           failed(mmap(place + run.bytes(), kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)));
  run.also(place, run.bytes() + kPage);
  run.call("in place", failed(mremap(place, run.bytes(), 2 * run.bytes(), 0)));
  run.look("as before", place, run.bytes());
  auto* now = static_cast<std::byte*>(mremap(place, run.bytes(), 2 * run.bytes(), MREMAP_MAYMOVE));
  run.call("mremap", failed(now));
  if (now == MAP_FAILED) return;
  run.also(now, 2 * run.bytes());
  run.look("there", now, run.bytes());
  run.look("and more", now + run.bytes(), run.bytes());
}
void grow_in_place(Run& run) {
  std::byte* place = run.empty_place(2 * run.bytes());
  run.call("mremap to a place",
           failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, place)));
  run.also(place, 2 * run.bytes());
  run.travel(place, run.bytes());
  run.call("mremap", failed(mremap(place, run.bytes(), 2 * run.bytes(), 0)));
  run.look("there", place, run.bytes());
  run.look("and more", place + run.bytes(), run.bytes());
}
void shrink(Run& run) {
  run.call("mremap", failed(mremap(run.data(), run.bytes(), middle_bytes(run), 0)));
  run.look("what is left", run.data(), run.bytes());
}
void move_and_stay(Run& run) {
  auto* now = static_cast<std::byte*>(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | kStays));
  run.call("mremap", failed(now));
  if (now == MAP_FAILED) return;
  run.also(now, run.bytes());
  run.registered("it is registered there", now, run.bytes());
  run.registered("it is registered here", run.data(), run.bytes());
  run.look("there", now, run.bytes());
  run.look("here", run.data(), run.bytes());
  run.travel(run.data(), run.bytes());
  run.poke("a write", run.data(), std::byte{8});
  run.poke("a write there", now + 1, std::byte{9});
  run.look("there, later", now, kPage);
}
void move_onto_another(Run& run) {
  std::byte* other = run.another(run.bytes(), std::byte{0x33});
  run.call("mremap", failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, other)));
  run.look("there", other, run.bytes());
  run.look("nothing", run.data(), kPage);
}
void move_onto_part_of_another(Run& run) {
  std::byte* other = run.another(run.bytes() + 4 * kPage, std::byte{0x33});
  run.call("mremap",
           failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, other + 2 * kPage)));
  run.look("all", other, run.bytes() + 4 * kPage);
}
void move_refused(Run& run) {
  std::byte* other = run.another(run.bytes(), std::byte{0x44});
  run.call("without MAYMOVE", failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_FIXED, other)));
  run.call("onto itself",
           failed(mremap(run.data(), run.bytes(), run.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, run.data() + kPage)));
  run.registered("it is registered", run.data(), run.bytes());
  run.look("as before", run.data(), run.bytes());
  run.look("the other", other, run.bytes());
}

}  // namespace

const std::vector<Operation>& mapping_operations() {
  static const std::vector<Operation> all{
      {"mprotect none", protect_none, true},
      {"mprotect read", protect_read, true},
      {"mprotect a part", protect_part, true},
      {"pkey_mprotect", protect_with_key, true},
      {"munmap", unmap_whole},
      {"munmap a part", unmap_part},
      {"munmap refused", unmap_refused, true},
      {"munmap one of two views", unmap_a_second_view},
      {"MAP_FIXED over it", map_over_whole},
      {"MAP_FIXED over a part", map_over_part},
      {"MAP_FIXED shared over a part", map_shared_over_part},
      {"MAP_FIXED refused", map_over_refused, true},
      {"mremap move", move},
      {"mremap move a part", move_part},
      {"mremap grow and move", grow},
      {"mremap grow in place", grow_in_place},
      {"mremap shrink", shrink},
      {"mremap DONTUNMAP", move_and_stay},
      {"mremap onto another", move_onto_another},
      {"mremap onto a part of another", move_onto_part_of_another},
      {"mremap refused", move_refused},
  };
  return all;
}

}  // namespace uhmm::matrix
