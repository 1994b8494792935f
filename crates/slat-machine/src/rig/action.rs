//! What the host and the VMM can do to a guest's memory, as values: drawn by the churn
//! or listed by a test.
//!
//! Every one is something that a host really does: memory compaction migrates pages, a balloon
//! discards them, copy-on-write protects them, huge pages are split and collapsed, a device is
//! reset, a VMM remaps and moves slots.

use std::collections::BTreeSet;
use std::sync::Mutex;

use slat_mm::{FrameSize, Protection};
use slat_table::address::{Gpa, GpaRange, Hva, HvaRange};
use slat_table::attributes::Access;
use slat_table::geometry::Level;

use super::guest::GuestVcpu;
use super::plan::{Mapping, Slot};
use super::setup::{Rig, backing, protection};
use crate::lock::brief;
use crate::modelled::Modelled;
use crate::schedule::spin;

/// Something done to memory under a running guest. Addresses are host virtual unless they are
/// called `gpa`; sizes are in bytes. `pause` is for how many turns of others a change of two
/// halves stays half done.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are a range, a pause, or what their names say"
)]
#[non_exhaustive]
pub enum Action {
    /// Moves a page, or a 2 MiB block, to another frame.
    Migrate { hva: u64, huge: bool },
    /// Gives memory back.
    Discard { hva: u64, bytes: u64 },
    /// Makes a range of a mapping, by its place in the plan, read-only and then writable again.
    Protect {
        mapping: usize,
        hva: u64,
        bytes: u64,
        pause: usize,
    },
    /// Unmaps a range of a mapping and maps it again.
    Remap {
        mapping: usize,
        hva: u64,
        bytes: u64,
        pause: usize,
    },
    /// Splits a 2 MiB frame.
    Split { hva: u64 },
    /// Has the guest's tables split into leaves of a level, pages being level 0.
    SplitTables { gpa: u64, bytes: u64, level: u8 },
    /// Takes a revocable mapping, by its place in the plan, away and gives it back.
    Revoke { mapping: usize, pause: usize },
    /// Asks whether the guest used a range, and forgets that it did if `clear` says so.
    Age { hva: u64, bytes: u64, clear: bool },
    /// Brings memory.
    Populate { hva: u64, bytes: u64, write: bool },
    /// Maps guest memory ahead of faults.
    Prefault { gpa: u64, bytes: u64 },
    /// Deletes a slot.
    Delete { slot: u32 },
    /// Creates a slot, in place of the one with its number if there is one.
    Create { slot: Slot },
}

impl Action {
    /// Under which name a report counts it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Migrate { .. } => "migrate",
            Self::Discard { .. } => "discard",
            Self::Protect { .. } => "protect",
            Self::Remap { .. } => "remap",
            Self::Split { .. } | Self::SplitTables { .. } => "split",
            Self::Revoke { .. } => "revoke",
            Self::Age { .. } => "age",
            Self::Populate { .. } | Self::Prefault { .. } => "populate",
            Self::Delete { .. } | Self::Create { .. } => "slots",
        }
    }
}

/// Mappings that somebody is remapping or protecting: others leave them alone, since two that
/// unmap and map at once would leave holes that the plan does not have.
#[derive(Default)]
pub(crate) struct Claims(Mutex<BTreeSet<usize>>);

/// Does `action` and counts it. What cannot be done at the moment is counted as skipped.
pub(crate) fn perform<F: Modelled>(rig: &Rig<F>, vcpu: &mut GuestVcpu<'_, F>, action: &Action) {
    let done = done(rig, vcpu, action);
    let churn = &mut brief(&rig.counts).churn;
    if done {
        *churn.changes.entry(action.name().into()).or_default() += 1;
        churn.total += 1;
        churn.migrations_2m += u64::from(matches!(action, Action::Migrate { huge: true, .. }));
    } else {
        churn.skipped += 1;
    }
}

/// Whether it could be done.
fn done<F: Modelled>(rig: &Rig<F>, vcpu: &mut GuestVcpu<'_, F>, action: &Action) -> bool {
    let space = &rig.space;
    match *action {
        Action::Migrate { hva, huge } => {
            let size = if huge {
                FrameSize::Huge
            } else {
                FrameSize::Base
            };
            space.migrate(Hva::new(hva), size).is_ok()
        }
        Action::Discard { hva, bytes } => range(hva, bytes).is_some_and(|range| {
            let going = rig.contents.go(range);
            let done = space.discard(range).is_ok();
            rig.contents.gone(going);
            done
        }),
        Action::Split { hva } => space.split(Hva::new(hva)).is_ok(),
        Action::SplitTables { gpa, bytes, level } => {
            let range = GpaRange::new(Gpa::new(gpa), bytes);
            range.is_ok_and(|range| {
                rig.memory.split(&range, Level::new(level));
                true
            })
        }
        Action::Age { hva, bytes, clear } => range(hva, bytes).is_some_and(|range| {
            if clear {
                space.age(range);
            } else {
                space.test_young(range);
            }
            true
        }),
        Action::Populate { hva, bytes, write } => {
            let access = if write { Access::Write } else { Access::Read };
            range(hva, bytes).is_some_and(|range| space.populate(range, access).is_ok())
        }
        Action::Prefault { gpa, bytes } => {
            let range = GpaRange::new(Gpa::new(gpa), bytes);
            range.is_ok_and(|range| vcpu.prefault(&range).is_ok())
        }
        Action::Protect { mapping, pause, .. } | Action::Remap { mapping, pause, .. } => {
            claimed(rig, mapping, |planned| match *action {
                Action::Remap { hva, bytes, .. } => {
                    range(hva, bytes).is_some_and(|range| remap(rig, mapping, range, pause))
                }
                Action::Protect { hva, bytes, .. } => {
                    let range = range(hva, bytes).filter(|_| planned.writable);
                    range.is_some_and(|range| protect(rig, range, pause))
                }
                _ => false,
            })
        }
        Action::Revoke { mapping, pause } => revoke(rig, mapping, pause),
        Action::Delete { slot } => rig.slots.remove(rig, slot),
        Action::Create { ref slot } => rig.slots.replace(rig, slot),
    }
}

fn range(hva: u64, bytes: u64) -> Option<HvaRange> {
    HvaRange::new(Hva::new(hva), bytes).ok()
}

/// Others run for a while.
pub(crate) fn pause<F: Modelled>(rig: &Rig<F>, turns: usize) {
    for _ in 0..turns {
        if rig.is_over() {
            break;
        }
        spin();
    }
}

/// Does `act` to a mapping of the plan that nobody else claims.
fn claimed<F: Modelled>(rig: &Rig<F>, mapping: usize, act: impl FnOnce(&Mapping) -> bool) -> bool {
    let Some(planned) = rig.plan.mappings.get(mapping) else {
        return false;
    };
    if !brief(&rig.claims.0).insert(mapping) {
        return false;
    }
    let done = act(planned);
    brief(&rig.claims.0).remove(&mapping);
    done
}

fn protect<F: Modelled>(rig: &Rig<F>, range: HvaRange, turns: usize) -> bool {
    let done = rig.space.protect(range, Protection::ReadOnly).is_ok();
    pause(rig, turns);
    done && rig.space.protect(range, Protection::ReadWrite).is_ok()
}

fn remap<F: Modelled>(rig: &Rig<F>, mapping: usize, range: HvaRange, turns: usize) -> bool {
    let Some(planned) = rig.plan.mappings.get(mapping) else {
        return false;
    };
    let Some(offset) = range.start().raw().checked_sub(planned.hva) else {
        return false;
    };
    let driver = rig.drivers.get(mapping).and_then(Option::as_ref);
    let backing = backing(planned, offset, rig.device_memory, driver);
    let going = rig.contents.go(range);
    rig.space.unmap(range);
    pause(rig, turns);
    let mapped = rig.space.map(range, protection(planned), backing);
    rig.contents.gone(going);
    mapped.is_ok()
}

fn revoke<F: Modelled>(rig: &Rig<F>, mapping: usize, turns: usize) -> bool {
    let Some(Some(driver)) = rig.drivers.get(mapping) else {
        return false;
    };
    let revoking = rig.devices.revoking(mapping);
    driver.revoke();
    rig.devices.revoked(mapping, revoking);
    pause(rig, turns);
    rig.devices.restoring(mapping);
    driver.restore();
    rig.devices.restored(mapping);
    true
}
