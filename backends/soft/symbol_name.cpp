// SPDX-License-Identifier: Apache-2.0
#include "backends/soft/symbol_name.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace uhmm::soft {
namespace {

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

// A whole file, read-only, for as long as the object lives.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    struct stat info {};
    if (fstat(fd, &info) == 0 && info.st_size > 0) {
      void* memory = mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
      if (memory != MAP_FAILED) {
        data_ = static_cast<const std::byte*>(memory);
        bytes_ = static_cast<std::size_t>(info.st_size);
      }
    }
    ::close(fd);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), bytes_);
  }
  // `count` objects at `offset`, or nullptr when the file is too short.
  template <typename T>
  const T* at(std::uint64_t offset, std::uint64_t count = 1) const {
    if (data_ == nullptr || offset > bytes_ || count > (bytes_ - offset) / sizeof(T) || offset % alignof(T) != 0)
      return nullptr;
    return reinterpret_cast<const T*>(data_ + offset);
  }

 private:
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// The function symbol that begins at `offset` (an address as the file counts them).
bool find_in_file(const char* path, std::uint64_t offset, std::span<char> text) {
  const MappedFile file(path);
  const auto* header = file.at<ElfW(Ehdr)>(0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return false;
  const auto* sections = file.at<ElfW(Shdr)>(header->e_shoff, header->e_shnum);
  if (sections == nullptr) return false;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header->e_shnum) continue;
    const auto& strings = sections[sections[i].sh_link];
    const char* names = file.at<char>(strings.sh_offset, strings.sh_size);
    const std::uint64_t count = sections[i].sh_size / sizeof(ElfW(Sym));
    const auto* symbols = file.at<ElfW(Sym)>(sections[i].sh_offset, count);
    if (names == nullptr || symbols == nullptr || strings.sh_size == 0) return false;
    if (names[strings.sh_size - 1] != '\0') return false;
    for (std::uint64_t s = 0; s < count; ++s) {
      if ((symbols[s].st_info & 0xf) != STT_FUNC || symbols[s].st_value != offset) continue;
      if (symbols[s].st_name >= strings.sh_size) continue;
      plain_name(names + symbols[s].st_name, text);
      return true;
    }
  }
  return false;
}

}  // namespace

void plain_name(const char* mangled, std::span<char> text) {
  std::snprintf(text.data(), text.size(), "%s", mangled);
  const char* at = mangled;
  if (std::strncmp(at, "_Z", 2) != 0) return;
  at += 2;
  if (*at == 'L') ++at;  // a static function
  const bool nested = *at == 'N';
  if (nested) ++at;
  std::size_t used = 0;
  int parts = 0;
  while (*at >= '1' && *at <= '9') {
    std::size_t length = 0;
    for (; *at >= '0' && *at <= '9'; ++at) length = length * 10 + static_cast<std::size_t>(*at - '0');
    if (length > std::strlen(at)) return;
    const bool anonymous = length >= 11 && std::strncmp(at, "_GLOBAL__N_", 11) == 0;
    // Without its namespaces when there is no room: the last part says most.
    const std::size_t needed = (parts > 0 ? 2 : 0) + (anonymous ? 11 : length);
    if (used + needed + 1 > text.size()) return;
    used += static_cast<std::size_t>(std::snprintf(text.data() + used, text.size() - used, "%s%.*s",
                                                   parts > 0 ? "::" : "", static_cast<int>(anonymous ? 11 : length),
                                                   anonymous ? "(anonymous)" : at));
    at += length;
    ++parts;
    if (!nested) break;
  }
  // Operators, templates and the like: better the whole mangled name than half a plain one.
  if (parts == 0 || (nested && *at != 'E')) std::snprintf(text.data(), text.size(), "%s", mangled);
}

void symbol_name(const void* function, std::span<char> text) {
  text[0] = '\0';
  Dl_info info{};
  void* extra = nullptr;
  if (dladdr1(function, &info, &extra, RTLD_DL_LINKMAP) == 0 || info.dli_fname == nullptr) return;
  const auto* map = static_cast<const link_map*>(extra);
  const char* module = base_name(info.dli_fname);
  char name[80] = {};
  if (info.dli_sname != nullptr && info.dli_saddr == function) {
    plain_name(info.dli_sname, name);
  } else {
    const bool is_program = map == nullptr || map->l_name == nullptr || map->l_name[0] == '\0';
    const std::uint64_t offset = reinterpret_cast<std::uint64_t>(function) - (map != nullptr ? map->l_addr : 0);
    if (!find_in_file(is_program ? "/proc/self/exe" : info.dli_fname, offset, name)) {
      std::snprintf(text.data(), text.size(), "%.48s+0x%llx", module, static_cast<unsigned long long>(offset));
      return;
    }
  }
  std::snprintf(text.data(), text.size(), "%s in %.32s", name, module);
}

}  // namespace uhmm::soft
