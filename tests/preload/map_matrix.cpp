// SPDX-License-Identifier: Apache-2.0
// Run by `uhmm run --dmirror`, with the name of the mode: move, copy (UHMM_NO_MOVE), coherent (UHMM_SOFT_KIND) or
// user-mode (UHMM_FAULTS). More words name kinds, states and operations: then only cells that fit. UHMM_MATRIX_TRACE=1
// names each cell ahead of it.
#include "tests/preload/map_matrix.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "uhmm/uhmm.h"

namespace uhmm::matrix {

namespace {
std::vector<std::string> failures_of_cell;
}  // namespace

void fail(const std::string& what) { failures_of_cell.push_back(what); }
void expect(bool right, const char* what) {
  if (!right) fail(std::string(what) + ": " + uhmm_error_detail());
}

const std::vector<Exception>& known_exceptions() {
  static const auto private_file = [](Kind kind, State) { return kind == Kind::PrivateFile; };
  static const auto is_private = [](Kind kind, State) { return !is_shared(kind); };
  constexpr const char* kAnonymous = "a registered private file mapping is anonymous memory: it grows with zeros";
  constexpr const char* kLeaves = "a registered private file mapping is anonymous memory: moved, it leaves zeros";
  constexpr const char* kGuarded = "a registered private file mapping is anonymous memory: guards leave zeros";
  static const auto advised_before = [](Kind kind, State) { return kind == Kind::Huge; };
  static const auto in_pieces = [](Kind kind, State state) {
    return kind == Kind::Ragged || (!is_shared(kind) && state == State::Mixed);
  };
  constexpr const char* kPieces =
      "what is in place of a coherent device's memory comes home in pieces, each a mapping of its own";
  constexpr const char* kInPlace = "in place of a coherent device's memory is a mapping without what was advised";
  static const std::vector<Exception> all{
      {nullptr, "mremap grow and move", "and more", private_file, kAnonymous},
      {nullptr, "mremap grow in place", "and more", private_file, kAnonymous},
      {nullptr, "mremap DONTUNMAP", "here", private_file, kLeaves},
      {nullptr, "GUARD", "again", private_file, kGuarded},
      {"coherent", nullptr, "flags after a journey", is_private, kInPlace},
      {"coherent", nullptr, "flags", advised_before, kInPlace},
      {"coherent", "mremap grow and move", "in place", in_pieces, kPieces, true},
      {"coherent", "mremap grow in place", "mremap", in_pieces, kPieces, true},
      {"coherent", "mremap DONTUNMAP", "mremap", in_pieces, kPieces, true},
      {"coherent", "DONTFORK", "a child after a journey", is_private, kInPlace},
      {"coherent", "WIPEONFORK", "a child after a journey", is_private, kInPlace},
  };
  return all;
}

namespace {

const char* mode = "move";
std::vector<std::string> words;

bool is_wanted(Kind kind, State state, const Operation& operation) {
  return std::all_of(words.begin(), words.end(), [&](const std::string& word) {
    return word == name_of(kind) || word == name_of(state) || word == operation.name;
  });
}

std::vector<Run::Note> notes_of(Kind kind, State state, const Operation& operation, bool managed) {
  std::vector<Run::Note> notes;
  const bool there = with_memory(kind, [&](Memory& memory) {
    Run run(memory, state, managed);
    run.set_up();
    operation.run(run);
    notes = run.notes();
  });
  if (!there) fail("no such memory");
  return notes;
}

std::vector<unsigned> met;  // how often each exception was

const Exception* find_exception(Kind kind, State state, const Operation& operation, const std::string& note) {
  const std::vector<Exception>& known = known_exceptions();
  for (std::size_t i = 0; i < known.size(); ++i) {
    const Exception& one = known[i];
    if ((one.mode != nullptr && strcmp(one.mode, mode) != 0) ||
        (one.operation != nullptr && strcmp(operation.name, one.operation) != 0) || note.rfind(one.note, 0) != 0 ||
        !one.of(kind, state))
      continue;
    ++met[i];
    return &one;
  }
  return nullptr;
}

// True: they differ as is known.
bool compare(Kind kind, State state, const Operation& operation, const std::vector<Run::Note>& got,
             const std::vector<Run::Note>& plain) {
  bool differ = false;
  for (std::size_t i = 0; i < std::max(got.size(), plain.size()); ++i) {
    const bool both = i < got.size() && i < plain.size() && got[i].what == plain[i].what;
    if (both && got[i].value == plain[i].value) continue;
    const Exception* known = both ? find_exception(kind, state, operation, got[i].what) : nullptr;
    differ = differ || known != nullptr;
    if (known != nullptr && getenv("UHMM_MATRIX_TRACE") != nullptr)
      fprintf(stderr, "  %s: %#lx, without uhmm %#lx (%s)\n", got[i].what.c_str(), got[i].value, plain[i].value,
              known->why);
    if (known != nullptr && known->ends) break;
    if (known != nullptr) continue;
    char text[256];
    snprintf(text, sizeof(text), "%s is %#lx; without uhmm %s is %#lx", i < got.size() ? got[i].what.c_str() : "-",
             i < got.size() ? got[i].value : 0, i < plain.size() ? plain[i].what.c_str() : "-",
             i < plain.size() ? plain[i].value : 0);
    fail(text);
    break;
  }
  return differ;
}

struct Count {
  unsigned cells = 0;
  unsigned exceptions = 0;
  unsigned failed = 0;
};

void run_cell(Kind kind, State state, const Operation& operation, Count& count) {
  failures_of_cell.clear();
  ++count.cells;
  if (getenv("UHMM_MATRIX_TRACE") != nullptr)
    fprintf(stderr, "%s, %s, %s, %s\n", mode, name_of(kind), name_of(state), operation.name);
  const std::vector<Run::Note> plain = notes_of(kind, state, operation, false);
  if (compare(kind, state, operation, notes_of(kind, state, operation, true), plain)) ++count.exceptions;
  uhmm_stats stats = UHMM_STATS_INIT;
  expect(uhmm_get_stats(&stats) == UHMM_OK, "statistics");
  if (stats.ranges != 0) fail(std::to_string(stats.ranges) + " ranges are still registered");
  if (stats.pages_on_devices != 0) fail(std::to_string(stats.pages_on_devices) + " pages are still on the device");
  if (!failures_of_cell.empty()) ++count.failed;
  for (const std::string& what : failures_of_cell)
    fprintf(stderr, "%s, %s, %s, %s: %s\n", mode, name_of(kind), name_of(state), operation.name, what.c_str());
}

// For as long as it lives the administrator's pool has one huge page, where that is allowed.
class ReservedPage {
 public:
  ReservedPage() {
    FILE* file = fopen(kPath, "r");
    if (file == nullptr) return;
    if (fscanf(file, "%lu", &before_) == 1 && before_ == 0) set(1);
    fclose(file);
  }
  ReservedPage(const ReservedPage&) = delete;
  ReservedPage& operator=(const ReservedPage&) = delete;
  ~ReservedPage() {
    if (changed_) set(before_);
  }

 private:
  static constexpr const char* kPath = "/proc/sys/vm/nr_hugepages";
  void set(unsigned long pages) {
    FILE* file = fopen(kPath, "w");
    if (file == nullptr) return;
    fprintf(file, "%lu", pages);
    changed_ = fclose(file) == 0;
  }
  unsigned long before_ = 0;
  bool changed_ = false;
};

// Memory of huge pages that the administrator reserves is not managed: nothing may happen to it. False: none to be had.
bool check_hugetlb() {
  const ReservedPage reserved;
  void* memory = mmap(nullptr, kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (memory == MAP_FAILED) return false;
  memset(memory, 5, kHuge);
  if (uhmm_register(memory, kHuge) != UHMM_ERR_NOT_SUPPORTED) fail("hugetlb can be registered");
  if (static_cast<char*>(memory)[kHuge - 1] != 5) fail("hugetlb has changed");
  munmap(memory, kHuge);
  return true;
}

int run_all() {
  uhmm_config config = UHMM_CONFIG_INIT;
  config.soft_devices = 1;
  config.device_memory = std::uint64_t{64} << 20;
  config.device_workers = 1;
  if (uhmm_init(&config) != UHMM_OK) {
    fprintf(stderr, "%s\n", uhmm_error_detail());
    return 1;
  }
  Count count;
  met.resize(known_exceptions().size());
  for (int kind = 0; kind < static_cast<int>(Kind::kCount); ++kind) {
    // Where the kernel's faults are not served it can't put a signal's frame on a stack that is away.
    if (strcmp(mode, "user-mode") == 0 && Kind{kind} == Kind::Stack) continue;
    for (const std::vector<Operation>* operations : {&mapping_operations(), &advice_operations()}) {
      for (const Operation& operation : *operations) {
        if (is_part(Kind{kind}) && !operation.of_parts) continue;
        for (int state = 0; state < static_cast<int>(State::kCount); ++state) {
          // What is mirrored is nowhere but at home; devices have seen it or not.
          if (is_mirrored(Kind{kind}) && State{state} != State::Home && State{state} != State::Shared) continue;
          if (is_wanted(Kind{kind}, State{state}, operation)) run_cell(Kind{kind}, State{state}, operation, count);
        }
      }
    }
  }
  failures_of_cell.clear();
  // Once is enough: what is reserved is the whole machine's.
  const char* hugetlb = "is another mode's";
  if (strcmp(mode, "move") == 0) hugetlb = check_hugetlb() ? "is refused" : "skipped: no page is reserved";
  for (const std::string& what : failures_of_cell) fprintf(stderr, "%s\n", what.c_str());
  count.failed += static_cast<unsigned>(failures_of_cell.size());
  // One that is not met any more is not an exception.
  for (std::size_t i = 0; i < met.size(); ++i) {
    const Exception& one = known_exceptions()[i];
    if (met[i] != 0 || !words.empty() || (one.mode != nullptr && strcmp(one.mode, mode) != 0)) continue;
    fprintf(stderr, "%s, %s: no exception any more: %s\n", one.operation != nullptr ? one.operation : "any operation",
            one.note, one.why);
    ++count.failed;
  }
  if (uhmm_shutdown() != UHMM_OK) ++count.failed;
  printf("%s: %u cells, %u of them known exceptions, %u wrong; hugetlb %s\n", mode, count.cells, count.exceptions,
         count.failed, hugetlb);
  return count.failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace uhmm::matrix

int main(int count, char** arguments) {
  if (count > 1) uhmm::matrix::mode = arguments[1];
  for (int i = 2; i < count; ++i) uhmm::matrix::words.emplace_back(arguments[i]);
  return uhmm::matrix::run_all();
}
