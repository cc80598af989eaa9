// SPDX-License-Identifier: Apache-2.0
// Makes the successors of one state. processors.cpp has what processors and the program do, operations.cpp what the
// engine does under the block's lock.
#pragma once

#include "tests/model/steps.hpp"

namespace uhmm::model {

// Does anything still have the latest version?
bool any_latest(const State& s);

class Stepper {
 public:
  Stepper(const State& s, const Config& config, Sink& sink) : s_(s), config_(config), sink_(sink) {}

  void all();

 private:
  bool broken(Mutation mutation) const { return config_.mutation == mutation; }
  void emit(const State& next, const char* what, unsigned who, Duty duty) { sink_.step(next, what, who, duty); }
  void must(const State& next, const char* what) { emit(next, what, s_.device, Duty::Must); }
  void fail(const State& next, const char* what) {
    if (config_.failures) emit(next, what, s_.device, Duty::May);
  }

  // ---- the table: every change of state goes through it
  void commit(State& s, PageEvent event, unsigned d);

  // ---- processors
  static void wake(Wait& wait) {
    if (wait == Wait::Fault || wait == Wait::Served) wait = Wait::Retry;
  }
  static void wake_cpu(State& s) {
    wake(s.reader);
    wake(s.writer);
  }
  void access_latest(bool latest, bool write, const char* who) {
    if (latest) return;
    sink_.violation(write ? Property::NoLostWrite : Property::NoStaleRead, who);
  }
  static void written(State& s, int device);
  void cpu_access(Wait State::*thread, bool write);
  void kernel(unsigned d);
  void launches(unsigned d);
  void die(State& s, unsigned d);
  void life(unsigned d);
  static void unmapped(Device& device) {
    device.entry = Entry::Absent;
    device.mapped = 0;
    device.writable = 0;
  }
  static void freed(Device& device) {
    unmapped(device);
    device.latest = 0;
  }

  // ---- operations
  State started(Operation operation, unsigned d = 0, Want want = Want::Move) const {
    State s = s_;
    s.operation = operation;
    s.device = static_cast<std::uint8_t>(d);
    s.want = want;
    return s;
  }
  // Unlock; the service wakes whom it served.
  void end(State s, const char* what);
  // A step that changes nothing another processor could see or undo is no step of its own.
  void now(const State& s) { Stepper(s, config_, sink_).go_on(); }
  static State at(State s, unsigned step) {
    s.step = static_cast<std::uint8_t>(step);
    return s;
  }
  void begin();
  void go_on();

  // On success goes to `next_step`; `failed_step` otherwise.
  void revoke(State s, unsigned d, unsigned next_step, unsigned failed_step);
  void revoke_write(State s, unsigned d, unsigned next_step, unsigned failed_step);

  void to_device();
  void map(State s, unsigned next_step);
  void to_system();
  void end_sharing();
  void home();
  void discard();
  void lose();

  const State& s_;
  const Config& config_;
  Sink& sink_;
};

}  // namespace uhmm::model
