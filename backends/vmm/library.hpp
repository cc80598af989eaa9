// SPDX-License-Identifier: Apache-2.0
// A driver library at run time: its functions by their names.
#pragma once

#include "backends/vmm/driver.hpp"

namespace uhmm::vmm {

// One function of a symbol list and where its address goes.
struct Symbol {
  const char* name;
  void** place;
};

class Library {
 public:
  Library() = default;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library();

  // All of `symbols` are found, or the status names what is missing.
  Status open(Vendor vendor, const char* name, const Symbol* symbols, std::size_t count);
  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// What a call's error means. CUDA's driver API and HIP number their errors alike. `name`: as the driver calls it.
Status driver_status(Vendor vendor, int error, const char* name, const char* call);

// One per vendor whose header was there at build time.
Result<Driver*> open_cuda(const char* library);
Result<Driver*> open_hip(const char* library);

}  // namespace uhmm::vmm
