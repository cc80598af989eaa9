// SPDX-License-Identifier: Apache-2.0
// Accesses through page tables, launches, death, and what may begin while nobody holds the block's lock. Accesses
// exclude nothing and are excluded by nothing but the page tables.
#include "tests/model/stepper.hpp"

namespace uhmm::model {

bool any_latest(const State& s) {
  bool found = s.buffer == Buffer::Latest || (s.latest != 0 && s.entry != Entry::Absent && s.entry != Entry::Poison);
  for (const Device& d : s.devices) found = found || (d.latest != 0 && d.life == Life::Alive);
  return found;
}

void Stepper::all() {
  cpu_access(&State::reader, false);
  cpu_access(&State::writer, true);
  for (unsigned d = 0; d < kDevices; ++d) {
    launches(d);
    kernel(d);
    life(d);
  }
  if (s_.operation == Operation::None)
    begin();
  else
    go_on();
}

void Stepper::commit(State& s, PageEvent event, unsigned d) {
  if (const auto after = next(s.page(), event, DeviceIndex{d})) {
    sink_.committed(event);
    s.kind = after->kind;
    s.holders = after->holders;
  } else {
    sink_.violation(Property::InTable, page_event_text(event));
  }
}

void Stepper::written(State& s, int device) {
  s.zeros = 0;
  s.latest = device < 0;
  if (s.buffer == Buffer::Latest) s.buffer = Buffer::Old;
  for (unsigned d = 0; d < kDevices; ++d) s.devices[d].latest = static_cast<int>(d) == device;
}

void Stepper::cpu_access(Wait State::*thread, bool write) {
  const Wait wait = s_.*thread;
  if (wait == Wait::Fault || wait == Wait::Served) return;
  const Duty duty = wait == Wait::Retry ? Duty::Must : Duty::May;
  State s = s_;
  s.*thread = Wait::No;
  const char* what = write ? "CPU writes" : "CPU reads";
  switch (s.entry) {
    case Entry::Poison: return emit(s, "CPU gets SIGBUS", 0, duty);
    case Entry::Write: break;
    case Entry::Read:
      if (!write) break;
      if (s.armed == 0) sink_.violation(Property::Watched, what);
      s.*thread = Wait::Fault;
      return emit(s, "CPU write faults", 0, duty);
    case Entry::Absent:
      if (s.armed != 0) {
        s.*thread = Wait::Fault;
        return emit(s, write ? "CPU write faults" : "CPU read faults", 0, duty);
      }
      // Nobody watches: the kernel gives zeros.
      if (s.kind != PageKind::None) sink_.violation(Property::Watched, what);
      commit(s, PageEvent::Populate, 0);
      s.entry = Entry::Write;
      s.latest = s.zeros;
      what = write ? "CPU writes a fresh page" : "CPU reads a fresh page";
      break;
  }
  access_latest(s.latest != 0, write, what);
  if (write) written(s, -1);
  emit(s, what, 0, duty);
}

void Stepper::kernel(unsigned d) {
  const Device& now = s_.devices[d];
  if (!now.running() || now.wait == Wait::Fault || now.wait == Wait::Served) return;
  for (const bool write : {false, true}) {
    if (now.wait == Wait::Retry && write != (now.wait_write != 0)) continue;
    const Duty duty = now.wait == Wait::Retry ? Duty::Must : Duty::May;
    State s = s_;
    Device& device = s.devices[d];
    if (device.entry == Entry::Write || (device.entry == Entry::Read && !write)) {
      device.wait = Wait::No;
      device.wait_write = 0;
      access_latest(device.latest != 0, write, write ? "kernel writes" : "kernel reads");
      if (write) written(s, static_cast<int>(d));
      emit(s, write ? "kernel writes" : "kernel reads", d, duty);
    } else {
      device.wait = Wait::Fault;
      device.wait_write = write;
      emit(s, write ? "kernel write faults" : "kernel read faults", d, duty);
    }
  }
}

void Stepper::launches(unsigned d) {
  for (unsigned i = 0; i < kLaunches; ++i) {
    if (i == 1 && ((config_.second_launch >> d) & 1) == 0) continue;
    State s = s_;
    Device& device = s.devices[d];
    Launch& launch = device.launches[i];
    const Launch other = device.launches[1 - i];
    switch (launch) {
      case Launch::None:
        if (device.life != Life::Alive || ((config_.launching >> d) & 1) == 0) break;
        launch = Launch::Announced;
        emit(s, "a launch is announced", d, Duty::May);
        break;
      case Launch::Announced:
        if (device.stale != 0 && !broken(Mutation::SkipFlush)) {
          device.stale = 0;
          launch = Launch::Flushing;
          emit(s, "the launch takes the page off the stale list", d, Duty::Must);
        } else if (other != Launch::Flushing || broken(Mutation::FlushAfterLaunch)) {
          launch = Launch::Running;
          emit(s, "a kernel starts", d, Duty::Must);
        }
        break;
      case Launch::Flushing: {
        if (s.operation != Operation::None) break;  // the block's lock
        const bool unmap = device.mapped != 0 && !s.held_by(d);
        State failed = s;
        if (unmap) unmapped(device);
        launch = Launch::Announced;
        emit(s, "the launch flushes", d, Duty::Must);
        if (!unmap) break;
        failed.devices[d].launches[i] = Launch::None;
        failed.devices[d].stale = !broken(Mutation::ForgetFailedFlush);
        fail(failed, "the flush fails, so does the launch");
        break;
      }
      case Launch::Running:
        if (device.wait != Wait::No && other != Launch::Running) break;
        launch = Launch::None;
        emit(s, "a kernel ends", d, Duty::May);
        break;
    }
  }
}

void Stepper::die(State& s, unsigned d) {
  Device& device = s.devices[d];
  device.life = Life::Dead;
  device.entry = Entry::Absent;
  device.latest = 0;
  device.launches = {};
  device.wait = Wait::No;
  device.wait_write = 0;
  // A discard under way is complete where the data dies by itself.
  if (s.operation == Operation::Discard && s.kind == PageKind::None && !any_latest(s)) s.zeros = 1;
}

void Stepper::life(unsigned d) {
  State s = s_;
  if (s.devices[d].life == Life::Alive && ((config_.mortal >> d) & 1) != 0) {
    die(s, d);
    emit(s, "the device dies", d, Duty::May);
  } else if (s.devices[d].life == Life::Gone) {
    s.devices[d].life = Life::Alive;
    emit(s, "the device is restarted", d, Duty::May);
  }
}

void Stepper::begin() {
  State s;
  // A service thread read a fault. What it decided before it had the lock may be out of date: all are possible.
  for (Wait State::*thread : {&State::reader, &State::writer}) {
    if (s_.*thread != Wait::Fault) continue;
    const auto serve = [&](Operation operation, Want want, const char* what) {
      s = started(operation, 0, want);
      s.*thread = Wait::Served;
      emit(s, what, 0, Duty::Must);
    };
    serve(Operation::ToSystem, Want::Move, "CPU fault: bring home");
    serve(Operation::Home, Want::Move, "CPU fault: serve at home");
    if (thread == &State::reader)
      serve(Operation::ToSystem, Want::Duplicate, "CPU fault: duplicate");
    else
      serve(Operation::EndSharing, Want::Move, "CPU fault: end sharing");
  }
  for (unsigned d = 0; d < kDevices; ++d) {
    const Device& device = s_.devices[d];
    if (device.wait == Wait::Fault) {
      for (const Want want : {Want::Move, Want::Duplicate}) {
        if (want == Want::Duplicate && device.wait_write != 0) continue;
        s = started(Operation::ToDevice, d, want);
        s.devices[d].wait = Wait::Served;
        emit(s, want == Want::Move ? "device fault: move" : "device fault: duplicate", d, Duty::Must);
      }
    }
    if (device.life == Life::Dead) emit(started(Operation::Lose, d), "the death is noticed", d, Duty::Must);
    if (!config_.requests || device.life != Life::Alive) continue;
    emit(started(Operation::ToDevice, d, Want::Move), "request: move to device", d, Duty::May);
    emit(started(Operation::ToDevice, d, Want::Duplicate), "request: duplicate to device", d, Duty::May);
    emit(started(Operation::ToDevice, d, Want::Exclusive), "request: exclusive access", d, Duty::May);
    if (s_.held_by(d)) emit(started(Operation::Age, d), "pressure: unmap", d, Duty::May);
    if (!s_.held_by(d)) {
      s = s_;
      freed(s.devices[d]);
      emit(s, "pressure: free retained memory", d, Duty::May);
    }
  }
  if (config_.requests) {
    emit(started(Operation::ToSystem), "request or eviction: bring home", 0, Duty::May);
    emit(started(Operation::ToSystem, 0, Want::Duplicate), "request: duplicate to system", 0, Duty::May);
    emit(started(Operation::Discard), "request: discard", 0, Duty::May);
  }
  if (s_.armed != 0 && s_.holders == 0) {
    s = s_;
    s.armed = 0;
    if (s.entry == Entry::Read) s.entry = Entry::Write;
    wake_cpu(s);
    emit(s, "the range is disarmed", 0, Duty::May);
  }
}

void successors(const State& state, const Config& config, Sink& sink) { Stepper(state, config, sink).all(); }

bool somebody_waits(const State& s) {
  bool waits = s.reader != Wait::No || s.writer != Wait::No;
  for (const Device& d : s.devices) waits = waits || d.wait != Wait::No;
  return waits;
}

std::optional<Property> broken_invariant(const State& s) {
  if (!s.page().well_formed()) return Property::WellFormed;
  // Data dies with the device that has the only copy by the state, even if something still has it by chance.
  bool died = s.kind == PageKind::Lost;
  for (unsigned d = 0; d < kDevices; ++d)
    if (s.held_by(d) && !s.page().cpu_current() && s.devices[d].life != Life::Alive) died = true;
  if (!any_latest(s) && s.zeros == 0 && !died) return Property::CopyExists;
  for (const Device& d : s.devices) {
    if (d.entry != Entry::Absent && d.mapped == 0) return Property::MasksCover;
    if (d.entry == Entry::Write && d.writable == 0) return Property::MasksCover;
  }
  if (s.operation != Operation::None) return std::nullopt;
  // Nobody holds the lock: masks, page tables and data agree.
  if (s.buffer != Buffer::Empty) return Property::StagingEmpty;
  if (s.holders != 0 && s.armed == 0) return Property::Watched;
  Entry wanted = Entry::Absent;
  if (s.kind == PageKind::System) wanted = Entry::Write;
  if (s.kind == PageKind::Shared) wanted = Entry::Read;
  if (s.kind == PageKind::Lost) wanted = Entry::Poison;
  if (s.entry != wanted) return Property::CpuEntryFits;
  if (s.page().cpu_current() && s.latest == 0) return Property::HoldersCurrent;
  for (unsigned d = 0; d < kDevices; ++d) {
    const Device& device = s.devices[d];
    if (s.held_by(d) && device.life == Life::Alive && device.latest == 0) return Property::HoldersCurrent;
    if (!device.running()) continue;
    if (device.entry != Entry::Absent && !s.held_by(d)) return Property::DeviceEntryFits;
    if (device.entry == Entry::Write && s.kind == PageKind::Shared) return Property::DeviceEntryFits;
  }
  return std::nullopt;
}

}  // namespace uhmm::model
