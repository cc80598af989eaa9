// SPDX-License-Identifier: Apache-2.0
// The engine's operations, cut into the steps between which accesses may happen. The order of steps is that of
// runtime/engine/migrator.cpp.
#include "tests/model/stepper.hpp"

namespace uhmm::model {

void Stepper::end(State s, const char* what) {
  if (!broken(Mutation::NoWake)) wake_cpu(s);
  if (s.operation == Operation::ToDevice && s.devices[s.device].wait == Wait::Served)
    s.devices[s.device].wait = Wait::Retry;
  s.operation = Operation::None;
  s.step = s.device = s.few = s.done = 0;
  s.want = Want::Move;
  must(s, what);
}

void Stepper::go_on() {
  if (s_.step == 31) return end(s_, "the operation ends");
  switch (s_.operation) {
    case Operation::None: return;
    case Operation::ToDevice: return to_device();
    case Operation::ToSystem: return to_system();
    case Operation::EndSharing: return end_sharing();
    case Operation::Home: return home();
    case Operation::Discard: return discard();
    case Operation::Lose: return lose();
    case Operation::Age: return revoke(s_, s_.device, 31, 31);
  }
}

void Stepper::revoke(State s, unsigned d, unsigned next_step, unsigned failed_step) {
  Device& device = s.devices[d];
  if (device.mapped == 0 || device.life != Life::Alive) return now(at(s, next_step));
  if (!device.busy()) {
    device.stale = 1;
    return must(at(s, next_step), "revoke: noted as stale");
  }
  fail(at(s, failed_step), "revoke fails");
  unmapped(device);
  must(at(s, next_step), "revoke: unmapped");
}

void Stepper::revoke_write(State s, unsigned d, unsigned next_step, unsigned failed_step) {
  Device& device = s.devices[d];
  if (device.mapped == 0 || device.writable == 0 || device.life != Life::Alive) return now(at(s, next_step));
  fail(at(s, failed_step), "revoking write access fails");
  if (device.entry == Entry::Write) device.entry = Entry::Read;
  device.writable = 0;
  must(at(s, next_step), "write access revoked");
}

enum ToDeviceStep : unsigned {
  kArm,
  kPlan,
  kRevokeOthers,
  kTake,
  kCopy,
  kCommitMove,
  kSettle,
  kPutBack,
  kProtectAgain,
  kStopOldWrites,
  kProtect,
  kDuplicate,
  kUnprotect,
  kCommitDuplicate,
  kZero,
  kCommitZero,
  kRevokePeer,
  kCopyPeer,
  kCommitPeer,
  kMap,
  kEnd = 31
};

void Stepper::to_device() {
  State s = s_;
  const unsigned d = s.device;
  const unsigned other = 1 - d;
  Device& device = s.devices[d];
  const bool alive = device.life == Life::Alive;
  const bool exclusive = s.want == Want::Exclusive;
  const bool upgrade = s.held_by(d);
  switch (static_cast<ToDeviceStep>(s.step)) {
    case kArm:
      if (!broken(Mutation::ArmLate)) s.armed = 1;
      return must(at(s, kPlan), "armed");
    case kPlan:
      if (!alive) return now(at(s, kEnd));
      if (s.kind == PageKind::Lost) {
        // A kernel that needs the page crashes, and its device with it.
        if (device.wait == Wait::Served) die(s, d);
        return must(at(s, kEnd), "the page is lost");
      }
      if (upgrade) {
        if (s.kind == PageKind::Shared && s.want != Want::Duplicate) return now(at(s, kRevokeOthers));
        if (exclusive && s.kind == PageKind::Device) commit(s, PageEvent::MakeExclusive, d);
        return now(at(s, kMap));
      }
      if (s.kind == PageKind::Device || s.kind == PageKind::Exclusive)
        return now(at(s, broken(Mutation::CommitBeforeRevoke) ? kCopyPeer : kRevokePeer));
      if (s.kind == PageKind::None) return now(at(s, kZero));
      if (s.want == Want::Duplicate)
        return now(at(s, broken(Mutation::FailedProtectIgnored) ? kProtect : kStopOldWrites));
      return now(at(s, kRevokeOthers));
    case kRevokeOthers: {
      const unsigned then = broken(Mutation::CopyBeforeTake) && !upgrade ? kCopy : kTake;
      if (!s.held_by(other) || broken(Mutation::KeepOtherDuplicates)) return now(at(s, then));
      return revoke(s, other, then, kEnd);
    }
    case kTake:
      fail(at(s, kMap), "the page is pinned");
      if (config_.move) {
        s.buffer = s.latest != 0 ? Buffer::Latest : Buffer::Old;
        s.entry = Entry::Absent;
        s.latest = 0;
      } else {
        s.entry = Entry::Read;
      }
      return must(at(s, upgrade || broken(Mutation::CopyBeforeTake) ? kCommitMove : kCopy), "taken from the CPU");
    case kCopy: {
      State failed = s;
      failed.devices[d].latest = 0;
      failed.step = kPutBack;
      if (!alive) return must(failed, "the copy fails: the device is dead");
      fail(failed, "the copy fails");
      device.latest = broken(Mutation::CopyBeforeTake) || !config_.move ? s.latest : s.buffer == Buffer::Latest;
      return must(at(s, broken(Mutation::CopyBeforeTake) ? kTake : kCommitMove), "copied");
    }
    case kCommitMove:
      commit(s,
             exclusive ? PageEvent::MakeExclusive
             : upgrade ? PageEvent::DeviceWrite
                       : PageEvent::MigrateToDevice,
             d);
      s.done = broken(Mutation::SettleAfterMap);
      return must(at(s, s.done != 0 ? kMap : kSettle), "committed");
    case kSettle:
      if (!config_.move) {
        s.entry = Entry::Absent;
        wake_cpu(s);
      }
      s.latest = 0;
      s.buffer = Buffer::Empty;
      return must(at(s, s.done != 0 ? kEnd : kMap), "the CPU's copy ends");
    case kPutBack: {
      if (broken(Mutation::NoRollback)) {
        s.buffer = Buffer::Empty;
        return must(at(s, kEnd), "not put back");
      }
      if (config_.move) s.latest = s.buffer == Buffer::Latest;
      s.buffer = Buffer::Empty;
      const bool shared = s.kind == PageKind::Shared;
      s.entry = shared && !broken(Mutation::PutBackWritable) ? Entry::Read : Entry::Write;
      wake_cpu(s);
      return must(at(s, shared ? kProtectAgain : kMap), "put back");
    }
    case kProtectAgain: s.entry = Entry::Read; return must(at(s, kMap), "protected again");
    case kStopOldWrites: return revoke_write(s, d, kProtect, kEnd);
    case kProtect:
      if (s.kind == PageKind::System) {
        fail(at(s, kEnd), "write-protecting fails");
        if (!broken(Mutation::SkipProtect)) s.entry = Entry::Read;
      }
      return must(at(s, kDuplicate), "write-protected");
    case kDuplicate: {
      State failed = s;
      failed.devices[d].latest = 0;
      failed.step = kUnprotect;
      if (!alive) return must(failed, "the copy fails: the device is dead");
      fail(failed, "the copy fails");
      device.latest = s.latest;
      return must(at(s, kCommitDuplicate), "copied");
    }
    case kUnprotect:
      if (s.kind == PageKind::System) {
        s.entry = Entry::Write;
        wake_cpu(s);
      }
      return must(at(s, kEnd), "unprotected");
    case kCommitDuplicate:
      commit(s, PageEvent::DuplicateToDevice, d);
      if (broken(Mutation::SkipProtect)) s.entry = Entry::Read;
      return must(at(s, kMap), "committed");
    case kZero:
      if (!alive) return now(at(s, kEnd));
      fail(at(s, kEnd), "zeroing fails");
      s.armed = 1;
      device.latest = s.zeros;
      return must(at(s, kCommitZero), "zeroed");
    case kCommitZero:
      commit(s, exclusive ? PageEvent::MakeExclusive : PageEvent::PopulateOnDevice, d);
      return must(at(s, kMap), "committed");
    case kRevokePeer: return revoke(s, other, broken(Mutation::CommitBeforeRevoke) ? kMap : kCopyPeer, kEnd);
    case kCopyPeer:
      if (!alive || s.devices[other].life != Life::Alive) return now(at(s, kEnd));
      fail(at(s, kEnd), "the copy fails");
      device.latest = s.devices[other].latest;
      return must(at(s, kCommitPeer), "copied from the other device");
    case kCommitPeer:
      if (s.kind == PageKind::Exclusive) commit(s, PageEvent::Revoke, other);
      commit(s, exclusive ? PageEvent::MakeExclusive : PageEvent::MigrateToDevice, d);
      return must(at(s, broken(Mutation::CommitBeforeRevoke) ? kRevokePeer : kMap), "committed");
    case kMap: return map(s, s.done != 0 ? kSettle : kEnd);
    case kEnd: return;
  }
}

// Give the device an entry for what it holds. A failure is repaired by its next fault.
void Stepper::map(State s, unsigned next_step) {
  const unsigned d = s.device;
  Device& device = s.devices[d];
  if (!s.held_by(d) || device.life != Life::Alive) return now(at(s, next_step));
  const bool write = s.kind != PageKind::Shared;
  if (device.mapped != 0 && (!write || device.writable != 0)) {
    if (write) return now(at(s, next_step));
    return revoke_write(s, d, next_step, next_step);
  }
  // Mapping fails without effect, or with: then the entry is noted as there may be one.
  State failed = at(s, next_step);
  fail(failed, "mapping fails");
  // Only access can be added to what is noted as mapped.
  if (device.mapped == 0 || device.entry != Entry::Absent) device.entry = write ? Entry::Write : Entry::Read;
  failed.devices[d].entry = device.entry;
  device.mapped = 1;
  device.writable = write;
  if (!broken(Mutation::FailedMapForgotten)) {
    failed.devices[d].mapped = 1;
    failed.devices[d].writable = write;
  }
  if (device.entry != Entry::Absent) fail(failed, "mapping fails half-way");
  wake(device.wait);
  must(at(s, next_step), "mapped");
}

enum ToSystemStep : unsigned {
  tPlan,
  tRevoke,
  tStage,
  tFree,
  tPublish,
  tCommit,
  tLateRevoke,
  tDrop0,
  tDrop1,
  tUnprotect
};

void Stepper::to_system() {
  State s = s_;
  const unsigned h = s.held_by(1) ? 1 : 0;
  Device& holder = s.devices[h];
  const bool alive = holder.life == Life::Alive;
  const bool duplicate = s.want == Want::Duplicate && s.kind != PageKind::Exclusive;
  switch (static_cast<ToSystemStep>(s.step)) {
    case tPlan:
      if (s.kind == PageKind::Shared && s.want == Want::Move) return now(at(s, tDrop0));
      if (s.kind != PageKind::Device && s.kind != PageKind::Exclusive) return now(at(s, 31));
      if (!alive) return now(at(s, 31));
      s.few = !duplicate && holder.busy() && holder.mapped != 0;
      return must(at(s, broken(Mutation::PublishBeforeRevoke) ? tPublish : tRevoke), "it is on a device");
    case tRevoke:
      if (duplicate && broken(Mutation::WriteWhileStaged)) return now(at(s, tStage));
      if (duplicate || s.few != 0) return revoke_write(s, h, tStage, 31);
      return revoke(s, h, tStage, 31);
    case tStage: {
      if (!alive) return now(at(s, 31));
      // Without a staging slot publish() copies straight from the device; then all access must have ended.
      State direct = s;
      direct.few = 0;
      if (s.few != 0)
        revoke(direct, h, tPublish, 31);
      else
        now(at(direct, tPublish));
      if (!config_.move) return;
      fail(at(s, 31), "copying out fails");
      s.buffer = holder.latest != 0 ? Buffer::Latest : Buffer::Old;
      return must(at(s, s.few != 0 ? tFree : tPublish), "copied out");
    }
    case tFree: {
      State failed = s;
      failed.buffer = Buffer::Empty;
      failed.step = 31;
      if (!alive) return must(failed, "unmapping fails: the device is dead");
      fail(failed, "unmapping by freeing fails");
      freed(holder);
      return must(at(s, tPublish), "unmapped by freeing");
    }
    case tPublish: {
      State failed = s;
      if (s.buffer != Buffer::Empty && s.few != 0 && alive) failed.devices[h].latest = s.buffer == Buffer::Latest;
      failed.buffer = Buffer::Empty;
      failed.step = 31;
      if (s.buffer == Buffer::Empty && !alive) return must(failed, "publishing fails: the device is dead");
      fail(failed, "publishing fails");
      s.entry = duplicate ? Entry::Read : Entry::Write;
      s.latest = s.buffer == Buffer::Empty ? holder.latest : s.buffer == Buffer::Latest;
      s.buffer = Buffer::Empty;
      wake_cpu(s);
      return must(at(s, broken(Mutation::PublishBeforeRevoke) ? tLateRevoke : tCommit), "published");
    }
    case tLateRevoke: return revoke(s, h, tCommit, tCommit);
    case tCommit:
      commit(s,
             duplicate                       ? PageEvent::DuplicateToSystem
             : s.kind == PageKind::Exclusive ? PageEvent::Revoke
                                             : PageEvent::MigrateToSystem,
             h);
      return must(at(s, 31), "committed");
    case tDrop0:
    case tDrop1: {
      const unsigned d = s.step - tDrop0;
      const unsigned then = d == 0 ? tDrop1 : tUnprotect;
      if (!s.held_by(d)) return now(at(s, then));
      if (((s.done >> d) & 1) == 0) {
        s.done = static_cast<std::uint8_t>(s.done | 1u << d);
        return revoke(s, d, s.step, then);
      }
      commit(s, PageEvent::DropDuplicate, d);
      return must(at(s, then), "duplicate dropped");
    }
    case tUnprotect:
      if (s.kind == PageKind::System) s.entry = Entry::Write;
      wake_cpu(s);
      return must(at(s, 31), "unprotected");
  }
}

enum EndSharingStep : unsigned { ePlan, eDevice0, eDevice1, eCommit, eUnprotect, eAbort };

void Stepper::end_sharing() {
  State s = s_;
  switch (static_cast<EndSharingStep>(s.step)) {
    case ePlan:
      if (s.kind != PageKind::Shared) return now(at(s, 31));
      if (broken(Mutation::UnprotectFirst)) s.entry = Entry::Write;
      return now(at(s, eDevice0));
    case eDevice0:
    case eDevice1: {
      const unsigned d = s.step - eDevice0;
      Device& device = s.devices[d];
      if (!s.held_by(d)) return now(at(s, s.step + 1u));
      if (!device.busy() || device.mapped == 0 || device.life != Life::Alive) return revoke(s, d, s.step + 1u, eAbort);
      fail(at(s, eAbort), "unmapping by freeing fails");
      freed(device);
      if (broken(Mutation::FreedStaysMapped)) device.mapped = 1;
      s.done = static_cast<std::uint8_t>(s.done | 1u << d);
      return must(at(s, s.step + 1u), "unmapped by freeing");
    }
    case eAbort:
      // What was freed is no copy any more, even though the sharing goes on with the others.
      for (unsigned d = 0; d < kDevices; ++d)
        if (((s.done >> d) & 1) != 0 && !broken(Mutation::FreedCopyStaysCurrent))
          commit(s, PageEvent::DropDuplicate, d);
      return must(at(s, 31), "given up");
    case eCommit: commit(s, PageEvent::CpuWrite, 0); return must(at(s, eUnprotect), "committed");
    case eUnprotect:
      s.entry = Entry::Write;
      wake_cpu(s);
      return must(at(s, 31), "unprotected");
  }
}

void Stepper::home() {
  State s = s_;
  if (s.kind == PageKind::Lost) {
    s.entry = Entry::Poison;
    wake_cpu(s);
  } else if (s.kind == PageKind::None) {
    commit(s, PageEvent::Populate, 0);
    s.entry = Entry::Write;
    s.latest = s.zeros;
    wake_cpu(s);
  } else if (s.kind == PageKind::System && s.entry == Entry::Read) {
    s.entry = Entry::Write;
    wake_cpu(s);
  }
  must(at(s, 31), "served at home");
}

void Stepper::discard() {
  State s = s_;
  switch (s.step) {
    case 0:
    case 1:
      if (broken(Mutation::DiscardKeepsMapping)) return now(at(s, s.step + 1u));
      return revoke(s, s.step, s.step + 1u, 31);
    case 2:
      commit(s, PageEvent::Discard, 0);
      if (!any_latest(s)) s.zeros = 1;  // it was lost
      return must(at(s, 3), "committed");
    case 3:
      if (!broken(Mutation::DiscardKeepsMapping))
        for (Device& device : s.devices) freed(device);
      if (!any_latest(s)) s.zeros = 1;
      return must(at(s, 4), "device memory freed");
    default:
      // Touched again while nobody watched it: the kernel knows, the block's masks need not.
      if (s.kind == PageKind::System) commit(s, PageEvent::Discard, 0);
      s.entry = Entry::Absent;
      s.latest = 0;
      for (Device& device : s.devices) device.latest = 0;
      s.zeros = 1;
      wake_cpu(s);
      return must(at(s, 31), "the CPU's copy is dropped");
  }
}

void Stepper::lose() {
  State s = s_;
  Device& device = s.devices[s.device];
  if (s.step == 0) {
    if (s.held_by(s.device)) commit(s, PageEvent::DeviceLost, s.device);
    freed(device);
    device.life = Life::Gone;
    return must(at(s, 1), "committed");
  }
  if (s.kind == PageKind::System && s.entry == Entry::Read) s.entry = Entry::Write;
  if (s.kind == PageKind::Lost && !broken(Mutation::LostReadsZeros)) s.entry = Entry::Poison;
  wake_cpu(s);
  must(at(s, 31), "unprotected or poisoned");
}

}  // namespace uhmm::model
