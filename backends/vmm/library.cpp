// SPDX-License-Identifier: Apache-2.0
#include "backends/vmm/library.hpp"

#include <dlfcn.h>

#include "runtime/base/arena.hpp"

namespace uhmm::vmm {

const char* vendor_name(Vendor vendor) { return vendor == Vendor::Cuda ? "CUDA" : "HIP"; }

namespace {

struct Meaning {
  int error;
  uhmm_status status;
};
// Of those after which every other call of the context fails as well: DEVICE_LOST.
constexpr Meaning kMeanings[] = {{2, UHMM_ERR_DEVICE_FULL},  // out of memory
                                 {3, UHMM_ERR_FORKED},  // not initialized: this process is a child of the one that was
                                 {4, UHMM_ERR_FORKED},  // deinitialized: the process is ending
                                 {35, UHMM_ERR_NOT_SUPPORTED},    // the driver is older than what was asked for
                                 {100, UHMM_ERR_NO_DEVICE},       //
                                 {101, UHMM_ERR_NO_DEVICE},       // no such ordinal
                                 {214, UHMM_ERR_DEVICE_LOST},     // uncorrectable memory error
                                 {220, UHMM_ERR_DEVICE_LOST},     // uncorrectable link error
                                 {600, UHMM_ERR_BUSY},            // not ready
                                 {700, UHMM_ERR_DEVICE_LOST},     // illegal address
                                 {702, UHMM_ERR_DEVICE_LOST},     // launch timeout
                                 {709, UHMM_ERR_DEVICE_LOST},     // context destroyed
                                 {710, UHMM_ERR_DEVICE_LOST},     // device assertion
                                 {714, UHMM_ERR_DEVICE_LOST},     // hardware stack error
                                 {715, UHMM_ERR_DEVICE_LOST},     // illegal instruction
                                 {716, UHMM_ERR_DEVICE_LOST},     // misaligned address
                                 {717, UHMM_ERR_DEVICE_LOST},     // invalid address space
                                 {718, UHMM_ERR_DEVICE_LOST},     // invalid program counter
                                 {719, UHMM_ERR_DEVICE_LOST},     // launch failure
                                 {800, UHMM_ERR_PERMISSION},      //
                                 {801, UHMM_ERR_NOT_SUPPORTED},   //
                                 {803, UHMM_ERR_NOT_SUPPORTED},   // library and kernel module don't fit together
                                 {804, UHMM_ERR_NOT_SUPPORTED}};  // compatibility mode not supported here

}  // namespace

Status driver_status(Vendor vendor, int error, const char* name, const char* call) {
  if (error == 0) return {};
  uhmm_status status = UHMM_ERR_SYSTEM;
  for (const Meaning& known : kMeanings)
    if (known.error == error) status = known.status;
  return fail(status, "%s: %s (%s error %d)", call, name != nullptr ? name : "?", vendor_name(vendor), error);
}

Library::~Library() {
  if (handle_ != nullptr) (void)dlclose(handle_);
}

Status Library::open(Vendor vendor, const char* name, const Symbol* symbols, std::size_t count) {
  handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    const char* why = dlerror();
    return fail(UHMM_ERR_NOT_SUPPORTED, "no %s driver: %s", vendor_name(vendor), why != nullptr ? why : name);
  }
  for (std::size_t i = 0; i < count; ++i) {
    *symbols[i].place = dlsym(handle_, symbols[i].name);
    if (*symbols[i].place == nullptr)
      return fail(UHMM_ERR_NOT_SUPPORTED, "the %s driver %s is too old: it has no %s", vendor_name(vendor), name,
                  symbols[i].name);
  }
  return {};
}

Result<Driver*> open_driver(Vendor vendor, const char* library) {
  switch (vendor) {
    case Vendor::Cuda:
#ifdef UHMM_HAS_CUDA
      return open_cuda(library);
#else
      break;
#endif
    case Vendor::Hip:
#ifdef UHMM_HAS_HIP
      return open_hip(library);
#else
      break;
#endif
  }
  (void)library;
  return fail(UHMM_ERR_NOT_SUPPORTED, "this build has no %s backend: its header was not there", vendor_name(vendor));
}

void destroy_driver(Driver* driver) { destroy_in_arena(driver); }

}  // namespace uhmm::vmm
