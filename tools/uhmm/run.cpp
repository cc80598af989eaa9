// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/run.hpp"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "runtime/api/config.hpp"
#include "runtime/api/run_options.hpp"
#include "runtime/os/userfaultfd.hpp"

namespace uhmm::tool {
namespace {

constexpr int kBadOptions = 125;
constexpr int kCantRun = 126;
constexpr int kNotFound = 127;

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& word : words) list.push_back(word.data());
  list.push_back(nullptr);
  return list;
}

// Where execvp(3) would find it; the name itself when it finds nothing.
std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* path = getenv("PATH");
  std::string folders = path != nullptr ? path : "/bin:/usr/bin";
  for (std::size_t at = 0; at <= folders.size();) {
    const std::size_t end = std::min(folders.find(':', at), folders.size());
    const std::string folder = folders.substr(at, end - at);
    const std::string found = (folder.empty() ? "." : folder) + "/" + name;
    struct stat about {};
    if (access(found.c_str(), X_OK) == 0 && stat(found.c_str(), &about) == 0 && S_ISREG(about.st_mode)) return found;
    at = end + 1;
  }
  return name;
}

const char* variable_of(const std::string& word) {
#define UHMM_X(name, environment, form, meaning) \
  if (word == name) return environment;
  UHMM_RUN_OPTION_LIST(UHMM_X)
#undef UHMM_X
  return nullptr;
}

std::string absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path full = std::filesystem::absolute(path, error);
  return error ? path : full.string();
}

// Checks a value and puts it into the environment.
bool apply(api::RunOptions& all, const std::string& word, const std::string& shown, std::string value, bool overrides) {
  if (word == "stats-file") value = absolute(value);
  const char* variable = variable_of(word);
  if (value.empty()) {
    std::fprintf(stderr, "uhmm: %s has no value\n", shown.c_str());
    return false;
  }
  if (!api::set_run_option(all, word.c_str(), shown.c_str(), value.c_str()).ok()) {
    std::fprintf(stderr, "uhmm: %s\n", last_detail());
    return false;
  }
  setenv(variable, value.c_str(), overrides ? 1 : 0);
  return true;
}

bool apply_all(const RunCommand& command) {
  api::RunOptions all;
  // The weakest first: the file, the environment, the command line.
  std::vector<std::pair<std::string, std::string>> from_file;
  std::string problem;
  if (!command.config_file.empty() && !read_config_file(command.config_file, &from_file, &problem)) {
    std::fprintf(stderr, "uhmm: %s\n", problem.c_str());
    return false;
  }
  for (const auto& [word, value] : from_file)
    if (!apply(all, word, command.config_file + ": " + word, value, false)) return false;
  if (!api::read_run_environment(all).ok()) {
    std::fprintf(stderr, "uhmm: %s\n", last_detail());
    return false;
  }
  for (const auto& [word, value] : command.options)
    if (!apply(all, word, "--" + word, value, true)) return false;
  if (!api::resolve_config(nullptr).ok()) {
    std::fprintf(stderr, "uhmm: %s\n", last_detail());
    return false;
  }
  if (all.migrates()) {
    const int fd = os::open_rung(os::Rung::SystemCall) >= 0 ? 0 : os::open_rung(os::Rung::DeviceFile);
    if (fd < 0) {
      std::fprintf(stderr,
                   "uhmm: pages can't be moved under a program here: faults of system calls would fail (`uhmm doctor` "
                   "tells why)\n");
      return false;
    }
  }
  return true;
}

}  // namespace

std::string find_preload_library(bool dmirror) {
  namespace fs = std::filesystem;
  const char* name = dmirror ? "libuhmm_preload.so" : "libuhmm_malloc.so";
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  // In a build tree, and installed.
  for (const char* beside : {"../preload", "../" UHMM_LIBRARY_FOLDER "/uhmm"}) {
    const fs::path found = fs::weakly_canonical(here / beside / name, error);
    if (fs::exists(found, error)) return found.string();
  }
  return "";
}

std::vector<std::string> preload_environment(const std::string& library, bool dmirror) {
  constexpr const char* kPreload = "LD_PRELOAD=";
  constexpr const char* kDmirror = "UHMM_DMIRROR=";
  std::vector<std::string> words;
  std::string preload = kPreload + library;
  for (char** word = environ; *word != nullptr; ++word) {
    if (strncmp(*word, kPreload, strlen(kPreload)) == 0)
      preload += std::string(":") + (*word + strlen(kPreload));
    else if (strncmp(*word, kDmirror, strlen(kDmirror)) != 0)
      words.emplace_back(*word);
  }
  words.push_back(preload);
  if (dmirror) words.push_back(std::string(kDmirror) + "1");
  return words;
}

bool read_config_file(const std::string& path, std::vector<std::pair<std::string, std::string>>* options,
                      std::string* problem) {
  std::ifstream file(path);
  std::string line;
  int number = 0;
  while (std::getline(file, line)) {
    ++number;
    line = line.substr(0, line.find('#'));
    const auto trimmed = [](const std::string& text) {
      const std::size_t first = text.find_first_not_of(" \t\r");
      return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r") + 1 - first);
    };
    if (trimmed(line).empty()) continue;
    const std::size_t equals = line.find('=');
    const std::string word = trimmed(line.substr(0, equals));
    if (equals == std::string::npos || variable_of(word) == nullptr) {
      *problem = path + ":" + std::to_string(number) + ": " +
                 (equals == std::string::npos ? "there is no '='" : "there is no option '" + word + "'");
      return false;
    }
    options->emplace_back(word, trimmed(line.substr(equals + 1)));
  }
  if (number == 0 && !file.eof()) {
    *problem = path + ": " + std::strerror(errno);
    return false;
  }
  return true;
}

std::string interposition_problem(const std::string& path) {
  struct stat about {};
  if (stat(path.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) return "";  // execve(2) will tell
  const bool more_rights = ((about.st_mode & S_ISUID) != 0 && about.st_uid != geteuid()) ||
                           ((about.st_mode & S_ISGID) != 0 && about.st_gid != getegid()) ||
                           (geteuid() != 0 && getxattr(path.c_str(), "security.capability", nullptr, 0) > 0);
  if (more_rights) return "it runs with more rights than its caller, so nothing may be put ahead of its libraries";
  std::ifstream file(path, std::ios::binary);
  Elf64_Ehdr header{};
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header)) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    return "";  // a script, whose interpreter is another program
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64)
    return "it is not a program for x86-64 with 64 bits";
  for (int i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr part{};
    file.seekg(static_cast<std::streamoff>(header.e_phoff + static_cast<std::uint64_t>(i) * header.e_phentsize));
    if (!file.read(reinterpret_cast<char*>(&part), sizeof(part))) return "";
    if (part.p_type == PT_INTERP) return "";
  }
  return "it is linked statically, so nothing can be put ahead of its libraries";
}

int run(const RunCommand& command) {
  if (!command.dmirror && !apply_all(command)) return kBadOptions;
  if (command.dmirror && (!command.options.empty() || !command.config_file.empty())) {
    std::fprintf(stderr, "uhmm: --dmirror goes with no other option\n");
    return kBadOptions;
  }
  const std::string library = find_preload_library(command.dmirror);
  if (library.empty()) {
    std::fprintf(stderr, "uhmm: %s is not where this program's installation has it\n",
                 command.dmirror ? "libuhmm_preload.so" : "libuhmm_malloc.so");
    return kBadOptions;
  }
  std::vector<std::string> words = command.program;
  if (const std::string problem = interposition_problem(find_program(words[0])); !problem.empty()) {
    std::fprintf(stderr, "uhmm: %s: %s\n", words[0].c_str(), problem.c_str());
    return kCantRun;
  }
  std::vector<std::string> environment = preload_environment(library, command.dmirror);
  execvpe(words[0].c_str(), pointers(words).data(), pointers(environment).data());
  const int error = errno;
  std::fprintf(stderr, "uhmm: %s: %s\n", words[0].c_str(), std::strerror(error));
  return error == ENOENT ? kNotFound : kCantRun;
}

}  // namespace uhmm::tool
