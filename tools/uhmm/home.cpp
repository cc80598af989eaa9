// SPDX-License-Identifier: Apache-2.0
#include "tools/uhmm/home.hpp"

#include <cstdio>

#include "runtime/base/types.hpp"
#include "tools/uhmm/maps.hpp"

namespace uhmm::tool {
namespace {

struct Away {
  std::uint64_t pages = 0;
  std::uint64_t lost = 0;
};

Result<Away> ask_how_much(pid_t process, engine::Request request) {
  Result<Maps> maps = ask(process, request);
  if (!maps.ok()) return maps.status();
  Away away;
  for (const MappedRange& range : maps->ranges) {
    away.pages += range.told.device;
    away.lost += range.told.lost;
  }
  return away;
}

constexpr std::uint64_t kib(std::uint64_t pages) { return pages * (kPageBytes / 1024); }

}  // namespace

int home(pid_t process) {
  Result<Away> before = ask_how_much(process, engine::Request::Report);
  Result<Away> after = before.ok() ? ask_how_much(process, engine::Request::BringHome) : before;
  if (!after.ok()) {
    char why[kDetailBytes];
    save_detail(why);
    std::fprintf(stderr, "uhmm home: %s\n", why);
    return 1;
  }
  const std::uint64_t came = before->pages > after->pages ? before->pages - after->pages : 0;
  std::printf("%lu KiB came home\n", kib(came));
  if (after->lost != 0) std::printf("%lu KiB are lost\n", kib(after->lost));
  if (after->pages == 0) return 0;
  std::fprintf(stderr, "uhmm home: %lu KiB are on devices again, or still: kernels use them, or there is no memory\n",
               kib(after->pages));
  return 1;
}

}  // namespace uhmm::tool
