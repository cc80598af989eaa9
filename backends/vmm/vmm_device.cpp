// SPDX-License-Identifier: Apache-2.0
// A GPU's beginning and end, and what happens when it is lost in between.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "backends/vmm/vmm_device_impl.hpp"
#include "runtime/base/arena.hpp"

namespace uhmm::vmm {

VmmDevice::VmmDevice(const Options& options)
    : options_(options), reservations_(Arena::instance().resource()), blocks_(Arena::instance().resource()) {
  std::snprintf(capabilities_.name, sizeof(capabilities_.name), "%s", options_.name);
  capabilities_.kind = options_.vendor == Vendor::Cuda ? UHMM_DEVICE_CUDA : UHMM_DEVICE_HIP;
  capabilities_.faulting = false;
  capabilities_.read_only_maps = false;
}

VmmDevice::~VmmDevice() {
  // In a forked child what is the parent's is left alone.
  if (!abandoned_.load()) do_close();
}

Status VmmDevice::do_open() {
  if (open_.load()) return fail(UHMM_ERR_ALREADY, "device %s is open", options_.name);
  Result<Driver*> driver = open_driver(options_.vendor, options_.library[0] != '\0' ? options_.library : nullptr);
  if (!driver.ok()) return driver.status();
  driver_ = *driver;
  const Status ready = prepare();
  if (!ready.ok()) {
    char why[kDetailBytes];
    save_detail(why);
    drop_everything(false);
    return fail(ready.code(), "%s", why);
  }
  return {};
}

Status VmmDevice::prepare() {
  Result<std::uint32_t> count = driver_->device_count();
  if (!count.ok()) return count.status();
  if (options_.ordinal >= *count)
    return fail(UHMM_ERR_NO_DEVICE, "%s device %u is not there: the driver has %u", vendor_name(options_.vendor),
                options_.ordinal, *count);
  UHMM_TRY(driver_->open(options_.ordinal, &facts_));
  if (facts_.granularity == 0 || kBlockBytes % facts_.granularity != 0)
    return fail(UHMM_ERR_NOT_SUPPORTED, "%s maps memory in pieces of %llu bytes, which 2 MiB can't be made of",
                facts_.name, static_cast<unsigned long long>(facts_.granularity));
  can_adopt_ = Adoption::prepare(driver_->library());
  death_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (death_fd_ < 0) return fail_errno("a descriptor for a device's end", errno);
  UHMM_TRY(driver_->enter());
  UHMM_TRY(lanes_.open(*driver_));
  const std::uint64_t most = options_.memory_bytes != 0 ? options_.memory_bytes : facts_.memory_free / 10 * 9;
  memory_bytes_ = std::max<std::uint64_t>(most & ~(kBlockBytes - 1), kBlockBytes);
  spill_bytes_ = facts_.host_chunks ? options_.spill_bytes & ~(kBlockBytes - 1) : 0;
  capabilities_.memory_bytes = memory_bytes_ + spill_bytes_;
  capabilities_.workers = facts_.processors;
  ++incarnation_;
  lost_.store(false);
  reason_ready_.store(false);
  reason_taken_.store(false);
  reason_[0] = '\0';
  open_.store(true);
  return {};
}

void VmmDevice::do_close() {
  if (!open_.exchange(false)) return;
  drop_everything(lost_.load());
}

void VmmDevice::drop_everything(bool broken) {
  (void)driver_->enter();
  {
    const std::scoped_lock lock(mutex_);
    for (Slot& slot : slots_) {
      if (!broken && slot.done != nullptr) driver_->destroy_event(slot.done);
      if (!broken && slot.stream != nullptr) driver_->destroy_stream(slot.stream);
      slot.done = nullptr;
      slot.stream = nullptr;
      slot.running = false;
      slot.outcome = UHMM_ERR_DEVICE_LOST;
    }
    for (auto& [base, block] : blocks_)
      if (block.chunk != 0) release_chunk(base, block);
    if (!broken) lanes_.close(*driver_);
    // The context takes with it what it had; the addresses are the process's.
    driver_->close(broken);
    lanes_.forget();
    for (const auto& [begin, reservation] : reservations_)
      (void)Adoption::unreserve(*driver_, begin, reservation.bytes);
    blocks_.clear();
    reservations_.clear();
    device_bytes_ = spilled_bytes_ = 0;
  }
  destroy_driver(driver_);
  driver_ = nullptr;
  if (death_fd_ >= 0) ::close(death_fd_);
  death_fd_ = -1;
}

Status VmmDevice::begin() const {
  if (!open_.load() || lost_.load()) return lost_status();
  return seen(driver_->enter());
}

Status VmmDevice::seen(Status status) const {
  if (status.code() == UHMM_ERR_DEVICE_LOST) lose(last_detail());
  return status;
}

void VmmDevice::lose(const char* why) const {
  if (reason_taken_.exchange(true)) return;
  std::snprintf(reason_, sizeof(reason_), "%s", why);
  reason_ready_.store(true);
  lost_.store(true);
  const std::uint64_t one = 1;
  (void)!write(death_fd_, &one, sizeof(one));
}

Status VmmDevice::lost_status() const {
  return fail(UHMM_ERR_DEVICE_LOST, "device %s was lost: %s", options_.name,
              reason_ready_.load() ? reason_ : "it is not open");
}

int VmmDevice::do_fault_fd() const { return -1; }
std::size_t VmmDevice::do_read_faults(std::span<backend::DeviceFault> /*faults*/) { return 0; }
int VmmDevice::do_death_fd() const { return death_fd_; }
bool VmmDevice::do_lost() const { return lost_.load(); }

void VmmDevice::do_handle_death(std::span<char> reason) {
  if (!reason.empty()) std::snprintf(reason.data(), reason.size(), "%s", reason_ready_.load() ? reason_ : "");
}

void VmmDevice::do_abandon_after_fork() {
  abandoned_.store(true);
  open_.store(false);
}

backend::Device* create(const Options& options) { return make_in_arena<VmmDevice>(options); }
void destroy(backend::Device* device) { destroy_in_arena(static_cast<VmmDevice*>(device)); }

}  // namespace uhmm::vmm
