// SPDX-License-Identifier: Apache-2.0
#include "runtime/os/call_redirect.hpp"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace uhmm::os {
namespace {

#if defined(__x86_64__)
constexpr unsigned kSlotTypes[] = {R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT};
#elif defined(__aarch64__)
constexpr unsigned kSlotTypes[] = {R_AARCH64_JUMP_SLOT, R_AARCH64_GLOB_DAT};
#else
constexpr unsigned kSlotTypes[] = {~0u};
#endif

struct Tables {
  const char* strings = nullptr;
  const ElfW(Sym) * symbols = nullptr;
  const ElfW(Rela) * relocations[2] = {};
  std::size_t bytes[2] = {};
};

// The dynamic linker has made addresses of the entries already.
Tables tables_of(const link_map* map) {
  Tables tables;
  for (const ElfW(Dyn)* entry = map->l_ld; entry->d_tag != DT_NULL; ++entry) {
    switch (entry->d_tag) {
      case DT_STRTAB: tables.strings = reinterpret_cast<const char*>(entry->d_un.d_ptr); break;
      case DT_SYMTAB: tables.symbols = reinterpret_cast<const ElfW(Sym)*>(entry->d_un.d_ptr); break;
      case DT_RELA: tables.relocations[0] = reinterpret_cast<const ElfW(Rela)*>(entry->d_un.d_ptr); break;
      case DT_RELASZ: tables.bytes[0] = entry->d_un.d_val; break;
      case DT_JMPREL: tables.relocations[1] = reinterpret_cast<const ElfW(Rela)*>(entry->d_un.d_ptr); break;
      case DT_PLTRELSZ: tables.bytes[1] = entry->d_un.d_val; break;
      default: break;
    }
  }
  return tables;
}

// The dynamic linker may have made the slots read-only; which they stay is not known, so they stay writable.
bool write_slot(std::uint64_t slot, void* value) {
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  void* begin = reinterpret_cast<void*>(slot & ~(page - 1));
  if (mprotect(begin, page, PROT_READ | PROT_WRITE) != 0) return false;
  std::atomic_ref<void*>(*reinterpret_cast<void**>(slot)).store(value);
  return true;
}

bool is_slot(unsigned type) {
  for (const unsigned known : kSlotTypes)
    if (type == known) return true;
  return false;
}

}  // namespace

std::size_t redirect_calls(void* handle, const Redirect* redirects, std::size_t count) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return 0;
  const Tables tables = tables_of(map);
  if (tables.strings == nullptr || tables.symbols == nullptr) return 0;
  std::size_t done = 0;
  for (int table = 0; table < 2; ++table) {
    const std::size_t entries =
        tables.relocations[table] != nullptr ? tables.bytes[table] / sizeof(ElfW(Rela)) : std::size_t{0};
    for (std::size_t i = 0; i < entries; ++i) {
      const ElfW(Rela)& entry = tables.relocations[table][i];
      if (!is_slot(static_cast<unsigned>(ELF64_R_TYPE(entry.r_info)))) continue;
      const char* name = tables.strings + tables.symbols[ELF64_R_SYM(entry.r_info)].st_name;
      for (std::size_t k = 0; k < count; ++k)
        if (std::strcmp(name, redirects[k].function) == 0 &&
            write_slot(map->l_addr + entry.r_offset, redirects[k].replacement))
          ++done;
    }
  }
  return done;
}

}  // namespace uhmm::os
