// SPDX-License-Identifier: Apache-2.0
// The main job, from one end to the other: real files come into malloc'd memory by plain read(2); a device computes on
// them by the same pointer; the CPU changes some of it in between; the result goes out by plain write(2), straight
// from device memory. Nothing is copied by hand, everything is compared with what the CPU alone computes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <uhmm/uhmm.hpp>

#include "demo_files.hpp"
#include "demo_kernels.hpp"
#include "demo_report.hpp"

namespace demo {
namespace {

constexpr std::size_t kDefaultBytes = 48'000'000;
constexpr std::size_t kCellBytes = std::size_t{1} << 20;
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kChangedShare = 100;  // the CPU changes one page of so many
constexpr std::size_t kLists = 4;
constexpr std::size_t kNodesPerList = 32 << 10;

// malloc'd memory that devices may use.
template <typename T>
class ManagedArray {
 public:
  explicit ManagedArray(std::size_t count) : memory_(static_cast<T*>(std::malloc(count * sizeof(T)))), count_(count) {
    if (memory_ == nullptr) throw std::bad_alloc();
    registration_ = uhmm::registration({memory_.get(), count * sizeof(T)});
  }
  std::span<T> span() const { return {memory_.get(), count_}; }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;  // before the registration, which ends first
  std::size_t count_;
  uhmm::registration registration_;
};

[[noreturn]] void mismatch(const std::string& what) { throw std::runtime_error("MISMATCH: " + what); }

void expect_equal(std::span<const Byte> got, std::span<const Byte> expected, const char* what) {
  if (std::memcmp(got.data(), expected.data(), expected.size()) == 0) return;
  std::size_t at = 0;
  while (got[at] == expected[at]) ++at;
  char text[160];
  std::snprintf(text, sizeof text, "%s differs at byte %zu of %zu: 0x%02x, the CPU alone has 0x%02x", what, at,
                expected.size(), got[at], expected[at]);
  mismatch(text);
}

void expect_equal(const Summary& got, const Counts& expected, const char* what) {
  for (std::size_t byte = 0; byte < expected.size(); ++byte) {
    if (got.counts[byte] == expected[byte]) continue;
    mismatch(std::string(what) + ": the device counted " + std::to_string(got.counts[byte]) + " bytes of value " +
             std::to_string(byte) + ", the CPU " + std::to_string(expected[byte]));
  }
  if (std::abs(got.entropy - entropy_of(expected)) > 1e-9) {
    mismatch(std::string(what) + ": the device has an entropy of " + std::to_string(got.entropy) + ", the CPU " +
             std::to_string(entropy_of(expected)));
  }
}

// Wait for the stream; the bar shows how much has come to the device so far.
void wait_for(uhmm::stream& stream, ProgressBar& bar) {
  const std::uint64_t before = uhmm::stats().bytes_to_device;
  const uhmm::fence done = stream.record();
  while (!done.wait_for(std::chrono::milliseconds(100))) bar.update(uhmm::stats().bytes_to_device - before);
}

class Demo {
 public:
  explicit Demo(std::vector<Source> sources)
      : sources_(std::move(sources)),
        bytes_(std::accumulate(sources_.begin(), sources_.end(), std::size_t{0},
                               [](std::size_t sum, const Source& source) { return sum + source.bytes; })),
        cells_(static_cast<std::uint32_t>(std::clamp<std::size_t>(bytes_ / kCellBytes, 1, 65536))),
        data_(bytes_),
        reference_(bytes_),
        partial_(cells_),
        summary_(1),
        stream_(uhmm::devices().front()) {}

  void run() {
    read_sources(sources_, reference_, [](std::size_t) {});
    StepTable::print_head();
    load();
    count("device: histogram and entropy");
    entropy_ = summary_.front().entropy;
    transform();
    change_on_cpu();
    count("device: histogram, second visit");
    write_out();
    undo();
    compare_on_cpu();
    walk_lists();
  }
  std::size_t bytes() const { return bytes_; }
  std::size_t files() const { return sources_.size(); }
  double entropy() const { return entropy_; }

 private:
  void load() {
    StepTable::run("CPU: read(2) into malloc'd memory", bytes_, [&](ProgressBar& bar) {
      read_sources(sources_, data_.span(), [&](std::size_t done) { bar.update(done); });
    });
  }

  void count(const char* title) {
    const Counts expected = reference_histogram(reference_);
    StepTable::run(title, bytes_, [&](ProgressBar& bar) {
      stream_.launch<histogram_kernel>(cells_, HistogramArgs{data_.data(), bytes_, partial_.data()});
      stream_.launch<summary_kernel>(1, SummaryArgs{partial_.data(), cells_, summary_.data()});
      wait_for(stream_, bar);
      expect_equal(summary_.front(), expected, title);
    });
  }

  void transform() {
    reference_scramble(reference_);
    StepTable::run("device: transform in place", bytes_, [&](ProgressBar& bar) {
      stream_.launch<scramble_kernel>(cells_, TransformArgs{data_.data(), bytes_});
      wait_for(stream_, bar);
    });
  }

  // A few bytes of one page in a hundred, at places without a pattern.
  void change_on_cpu() {
    std::mt19937_64 random(1);
    std::vector<std::size_t> places;
    for (std::size_t page = 0; page < bytes_ / kPageBytes; page += kChangedShare) {
      const std::size_t chosen = page + random() % kChangedShare;
      const std::size_t place = chosen * kPageBytes + random() % (kPageBytes - sizeof(std::uint64_t));
      if (place + sizeof(std::uint64_t) <= bytes_) places.push_back(place);
    }
    if (places.empty() && bytes_ >= sizeof(std::uint64_t)) places.push_back(0);
    for (const std::size_t place : places) std::memcpy(&reference_[place], &place, sizeof place);
    StepTable::run("CPU: stores into 1 % of the pages", 0, [&](ProgressBar&) {
      for (const std::size_t place : places) std::memcpy(data_.data() + place, &place, sizeof place);
    });
  }

  void write_out() {
    const Descriptor file = temporary_file();
    StepTable::run("CPU: write(2) from device memory", bytes_, [&](ProgressBar& bar) {
      write_all(file.get(), data_.span(), [&](std::size_t done) { bar.update(done); });
    });
    expect_equal(read_back(file.get(), bytes_), reference_, "the file that was written");
  }

  void undo() {
    reference_unscramble(reference_);
    StepTable::run("device: undo the transform", bytes_, [&](ProgressBar& bar) {
      stream_.launch<unscramble_kernel>(cells_, TransformArgs{data_.data(), bytes_});
      wait_for(stream_, bar);
    });
  }

  void compare_on_cpu() {
    StepTable::run("CPU: compare every byte", bytes_,
                   [&](ProgressBar&) { expect_equal(data_.span(), reference_, "memory after all kernels"); });
  }

  // Nodes in an order that no prefetcher guesses: the device goes from page to page as the pointers say.
  void walk_lists() {
    const ManagedArray<Node> nodes(kLists * kNodesPerList);
    uhmm::vector<List> lists(kLists);
    std::vector<std::uint32_t> order(nodes.span().size());
    std::iota(order.begin(), order.end(), 0u);
    std::mt19937_64 random(2);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::vector<std::uint64_t>> expected(kLists);
    for (std::size_t list = 0; list < kLists; ++list) {
      expected[list].resize(kNodesPerList);
      Node** link = &lists[list].head;
      std::uint64_t sum = 0;
      for (std::size_t i = 0; i < kNodesPerList; ++i) {
        Node& node = nodes.data()[order[list * kNodesPerList + i]];
        node = {nullptr, random(), 0};
        *link = &node;
        link = &node.next;
        sum = fold(sum, node.value);
        expected[list][i] = sum;
      }
    }
    const std::size_t bytes = nodes.span().size_bytes();
    StepTable::run("device: follow pointers, 4 lists", bytes, [&](ProgressBar& bar) {
      stream_.launch<walk_kernel>(kLists, WalkArgs{lists.data()});
      wait_for(stream_, bar);
      for (std::size_t list = 0; list < kLists; ++list) {
        if (lists[list].sum != expected[list].back()) mismatch("the device's walk of list " + std::to_string(list));
      }
    });
    StepTable::run("CPU: follow the same pointers", bytes, [&](ProgressBar&) {
      for (std::size_t list = 0; list < kLists; ++list) {
        const Node* node = lists[list].head;
        for (std::size_t i = 0; i < kNodesPerList; ++i, node = node->next) {
          if (node != nullptr && node->seen == expected[list][i]) continue;
          mismatch("node " + std::to_string(i) + " of list " + std::to_string(list) + " after the device's walk");
        }
      }
    });
  }

  std::vector<Source> sources_;
  std::size_t bytes_;
  std::uint32_t cells_;
  ManagedArray<Byte> data_;
  std::vector<Byte> reference_;  // never seen by the device
  uhmm::vector<Counts> partial_;
  uhmm::vector<Summary> summary_;
  uhmm::stream stream_;
  double entropy_ = 0;
};

void run(const std::vector<std::string>& paths, const uhmm_config& config) {
  std::vector<Source> sources;
  sources.reserve(paths.size());
  for (const std::string& path : paths) sources.push_back(source_from_path(path));
  if (sources.empty()) sources = sources_of_this_machine(kDefaultBytes);
  if (std::none_of(sources.begin(), sources.end(), [](const Source& source) { return source.bytes > 0; })) {
    throw std::runtime_error("there is nothing to read");
  }
  uhmm::runtime runtime(config);
  {
    const uhmm_device_info device = uhmm::device_info(uhmm::devices().front());
    Demo demo(std::move(sources));
    std::printf("uhmm %s, device %s: %s, %.0f MiB, %u workers; %zu %s, %.1f MiB\n\n", uhmm_version_string(),
                device.name, (device.flags & UHMM_DEVICE_COHERENT) != 0 ? "coherent" : "private",
                mib(device.memory_bytes), device.workers, demo.files(), demo.files() == 1 ? "file" : "files",
                mib(demo.bytes()));
    demo.run();
    print_causes(uhmm::stats(), device.page_bytes);
    std::printf("\nEvery byte is as the CPU alone computes it. Entropy of the input: %.4f bits per byte.\n",
                demo.entropy());
  }
  runtime.shutdown();
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  CLI::App app(
      "Runs uhmm's main job on real files: kernels and the CPU work on the same memory, checked byte by byte.");
  std::vector<std::string> paths;
  std::uint64_t device_memory = 0;
  bool no_move = false;
  bool coherent = false;
  app.add_option("file", paths, "Files to work on, one after the other [default: some of this machine's, 48 MB]")
      ->check(CLI::ExistingFile);
  app.add_option("--device-memory", device_memory,
                 "Memory of the device, such as 64MB or 2GB; less than the files "
                 "need shows eviction [default: as configured]")
      ->transform(CLI::AsSizeValue(false));
  app.add_flag("--no-move", no_move, "Don't use UFFDIO_MOVE: write-protect, copy and drop pages instead");
  app.add_flag("--coherent", coherent, "The CPU may map the device's memory");
  CLI11_PARSE(app, argc, argv);
  try {
    uhmm_config config = uhmm::default_config();
    config.device_memory = device_memory;
    config.flags = (no_move ? UHMM_CONFIG_NO_MOVE : 0u) | (coherent ? UHMM_CONFIG_COHERENT : 0u);
    demo::run(paths, config);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "uhmm_demo: %s\n", error.what());
    return 1;
  }
  return 0;
}
