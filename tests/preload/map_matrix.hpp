// SPDX-License-Identifier: Apache-2.0
// Every call that changes the memory map, on every kind of memory, with its pages in every state. What has to come of
// it is what comes of it without uhmm: the same steps are taken with a twin that is never registered, and everything
// that can be seen of the two is compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace uhmm::matrix {

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kHuge = std::size_t{2} << 20;

// ------------------------------------------------------------------------------------------------------- kinds of
// memory

enum class Kind {
  Anonymous,
  Ragged,
  SharedAnonymous,
  Memfd,
  NamedShm,
  PrivateFile,
  Heap,
  Data,
  Bss,
  Stack,
  Huge,
  kCount
};
const char* name_of(Kind kind);
constexpr bool is_shared(Kind kind) {
  return kind == Kind::SharedAnonymous || kind == Kind::Memfd || kind == Kind::NamedShm;
}
// Registered from the middle of its first page to the middle of its last one, as two ranges that meet inside a page.
constexpr std::size_t ragged_by(Kind kind) { return kind == Kind::Ragged ? 100 : 0; }
// Others see it by its name: devices work on it where it is.
constexpr bool is_mirrored(Kind kind) { return kind == Kind::NamedShm; }
// A part of something larger, which the program goes on using: its mapping can't be taken away.
constexpr bool is_part(Kind kind) {
  return kind == Kind::Heap || kind == Kind::Data || kind == Kind::Bss || kind == Kind::Stack;
}

struct Memory {
  Kind kind = Kind::Anonymous;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::byte* whole = nullptr;  // what was mapped for it, or the stack that it is on
  std::size_t whole_bytes = 0;
  std::byte* page(std::size_t i) const { return data + i * kPage; }
  std::size_t pages() const { return bytes / kPage; }
};
// Calls body(memory) with memory of that kind, and ends it afterwards. False: there is none on this machine.
bool with_memory(Kind kind, const std::function<void(Memory&)>& body);

// -------------------------------------------------------------------------------------------------------- states of
// pages

enum class State { Home, Device, Shared, Exclusive, Mixed, kCount };
const char* name_of(State state);

// ------------------------------------------------------------------------------------------------------------
// operations

// One run of an operation: on managed memory, or on its twin. Everything that it can see is noted.
class Run {
 public:
  Run(Memory& memory, State state, bool managed) : memory_(memory), state_(state), managed_(managed) {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run();

  // Contents, registration and places of the pages.
  void set_up();
  Memory& memory() { return memory_; }
  bool managed() const { return managed_; }
  std::byte* data() { return memory_.data; }
  std::size_t bytes() const { return memory_.bytes; }
  std::size_t pages() const { return memory_.pages(); }

  void note(const std::string& what, std::uint64_t value);
  // A call that returns 0 or -1, as the programs sees it.
  void call(const char* what, long result);
  // All that can be read of it; where nothing can, the signal.
  void look(const char* what, const std::byte* data, std::size_t bytes);
  // Writes a byte to the page: the signal, or 0.
  void poke(const char* what, std::byte* page, std::byte value);
  // What the kernel says of the mapping at `data`: its flags that advice sets.
  void flags(const char* what, const std::byte* data);
  // To the device and home again; the twin stays where it is.
  void travel(std::byte* data, std::size_t bytes);
  // Only away.
  void depart(std::byte* data, std::size_t bytes);
  // All of it is registered as it was; as far as that goes, of the twin, too.
  void registered(const char* what, std::byte* data, std::size_t bytes);
  // Also to be unmapped in the end.
  void also(std::byte* data, std::size_t bytes) { others_.push_back({data, bytes}); }
  // More managed memory, on the device, all bytes `value`.
  std::byte* another(std::size_t bytes, std::byte value);
  // Address space where nothing is mapped.
  static std::byte* empty_place(std::size_t bytes);

  struct Note {
    std::string what;
    std::uint64_t value = 0;
    bool operator==(const Note&) const = default;
  };
  const std::vector<Note>& notes() const { return notes_; }

 private:
  struct Other {
    std::byte* data;
    std::size_t bytes;
  };
  void put_pages();
  void put(std::byte* at, std::size_t length, State state);
  void check_states();
  bool is_untouched(std::size_t page) const;
  Memory& memory_;
  State state_;
  bool managed_;
  std::vector<Note> notes_;
  std::vector<Other> others_;
};

struct Operation {
  const char* name;
  void (*run)(Run&);
  bool of_parts = false;  // leaves the mapping: can be done to a part of something larger
};
const std::vector<Operation>& mapping_operations();  // munmap, MAP_FIXED, mremap, mprotect
const std::vector<Operation>& advice_operations();   // madvise, mlock, fork

// ------------------------------------------------------------------------------------------------------ known
// exceptions

// Something that is seen to differ, and is said in docs/protocol.md under "Limits".
struct Exception {
  const char* mode;       // nullptr: any
  const char* operation;  // nullptr: any
  const char* note;       // that its name begins with
  bool (*of)(Kind, State);
  const char* why;
  bool ends = false;  // what comes after it can't be compared
};
const std::vector<Exception>& known_exceptions();

// --------------------------------------------------------------------------------------------------------------
// failures

void fail(const std::string& what);
void expect(bool right, const char* what);

}  // namespace uhmm::matrix
