// SPDX-License-Identifier: Apache-2.0
#include "backends/soft/kernel_registry.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "backends/soft/symbol_name.hpp"
#include "runtime/base/arena.hpp"

namespace uhmm::soft {
namespace {

template <typename Visit>
void for_each_executable(Visit&& visit) {
  (void)dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_LOAD || (header.p_flags & PF_X) == 0) continue;
          const std::uint64_t begin = info->dlpi_addr + header.p_vaddr;
          (*static_cast<std::remove_reference_t<Visit>*>(data))(
              ByteRange{VirtAddr{begin}, VirtAddr{begin + header.p_memsz}});
        }
        return 0;
      },
      &visit);
}

const char* base_name(const char* path) {
  if (path == nullptr || *path == '\0') return "the program";
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

}  // namespace

KernelRegistry::~KernelRegistry() { release(); }

void KernelRegistry::release() {
  Arena::instance().deallocate(segments_, capacity_ * sizeof(ByteRange), alignof(ByteRange));
  segments_ = nullptr;
  count_ = capacity_ = 0;
}

Status KernelRegistry::record() {
  release();
  std::size_t found = 0;
  for_each_executable([&](ByteRange) { ++found; });
  capacity_ = found + 8;  // another thread may load a library meanwhile; what does not fit counts as unknown
  segments_ = static_cast<ByteRange*>(Arena::instance().allocate(capacity_ * sizeof(ByteRange), alignof(ByteRange)));
  if (segments_ == nullptr) {
    capacity_ = 0;
    return fail(UHMM_ERR_NO_MEMORY, "no memory for the list of loaded libraries");
  }
  for_each_executable([&](ByteRange segment) {
    if (count_ < capacity_) segments_[count_++] = segment;
  });
  std::sort(segments_, segments_ + count_, [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  return {};
}

Status KernelRegistry::check(const void* kernel) {
  const VirtAddr address{kernel};
  const ByteRange* after =
      std::upper_bound(segments_, segments_ + count_, address,
                       [](VirtAddr value, const ByteRange& segment) { return value < segment.begin; });
  if (after != segments_ && (after - 1)->contains(address)) {
    remember(kernel);
    return {};
  }
  Dl_info info{};
  if (dladdr(kernel, &info) == 0 || info.dli_fname == nullptr)
    return fail(UHMM_ERR_UNKNOWN_KERNEL, "%p is not code of the program or of a loaded library", kernel);
  return fail(UHMM_ERR_UNKNOWN_KERNEL,
              "%s%s%p is in %s, which was loaded after the device started; uhmm_device_restart makes it known",
              info.dli_sname != nullptr ? info.dli_sname : "", info.dli_sname != nullptr ? " at " : "", kernel,
              base_name(info.dli_fname));
}

void KernelRegistry::remember(const void* kernel) {
  const auto value = reinterpret_cast<std::uint64_t>(kernel);
  const std::size_t start = (value >> 4) % kNames;
  for (std::size_t step = 0; step < kNames; ++step) {
    Name& name = names_[(start + step) % kNames];
    std::uint64_t holder = name.kernel.load(std::memory_order_acquire);
    if (holder == value) return;
    if (holder != 0) continue;
    if (!name.kernel.compare_exchange_strong(holder, value, std::memory_order_acq_rel)) {
      if (holder == value) return;
      continue;
    }
    symbol_name(kernel, name.text);
    name.complete.store(true, std::memory_order_release);
    return;
  }
}

void KernelRegistry::describe(std::uint64_t kernel, std::span<char> text) const {
  const std::size_t start = (kernel >> 4) % kNames;
  for (std::size_t step = 0; step < kNames; ++step) {
    const Name& name = names_[(start + step) % kNames];
    const std::uint64_t holder = name.kernel.load(std::memory_order_acquire);
    if (holder == 0) break;
    if (holder != kernel) continue;
    if (name.complete.load(std::memory_order_acquire) && name.text[0] != '\0') {
      std::snprintf(text.data(), text.size(), "0x%llx (%s)", static_cast<unsigned long long>(kernel), name.text);
      return;
    }
    break;
  }
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(kernel));
}

}  // namespace uhmm::soft
