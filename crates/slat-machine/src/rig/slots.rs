//! The slots as the VMM knows them, and its changes of them.
//!
//! Changes of different slots may overlap in time; a slot that is being changed is left alone by
//! everybody else. While a change is under way, an access may go by the old slot or the new.

use std::collections::BTreeMap;
use std::sync::Mutex;

use slat::SlotId;
use slat::region::{Mapping, Region};
use slat::transaction::TransactionError;
use slat_table::address::{Gpa, Hva, PAGE_SIZE};

use super::setup::{Memory, Rig, VM};
use super::{Finding, plan};
use crate::address;
use crate::event::{Event, Slot};
use crate::lock::brief;
use crate::modelled::Modelled;
use crate::schedule::cpu;

/// All slots.
pub(crate) struct Slots {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<u32, Known>,
    changes: u64,
    faults: BTreeMap<u32, u64>,
    /// What was mapped when the slot was created first, for the report.
    reports: BTreeMap<u32, slat::report::RegionReport>,
}

/// What is known of a slot.
#[derive(Clone, Default)]
struct Known {
    now: Option<plan::Slot>,
    /// Whether a change is under way.
    changing: bool,
    /// What comes after it.
    next: Option<plan::Slot>,
}

/// Where a guest address leads.
pub(crate) struct Behind {
    /// The pages, by host virtual address: none in no slot, several while slots change.
    pub(crate) hvas: Vec<u64>,
    /// Whether no slot there is being changed.
    pub(crate) settled: bool,
}

/// A change of slots that this task alone may make.
struct Claim {
    id: u32,
    now: Option<plan::Slot>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
        }
    }

    /// Creates `slot`, which nobody else knows of yet.
    pub(crate) fn insert<F: Modelled>(
        &self,
        rig: &Rig<F>,
        slot: &plan::Slot,
    ) -> Result<(), TransactionError> {
        let Some(claim) = self.claim(slot.id, Some(slot.clone())) else {
            return Err(TransactionError::SlotExists(SlotId(slot.id)));
        };
        self.change(rig, &claim, Some(slot))
    }

    /// Deletes the slot `id`, if it is there and nobody else changes it. Returns whether it did.
    pub(crate) fn remove<F: Modelled>(&self, rig: &Rig<F>, id: u32) -> bool {
        let Some(claim) = self.claim(id, None) else {
            return false;
        };
        if claim.now.is_none() {
            self.settle(id, false);
            return false;
        }
        let changed = self.change(rig, &claim, None);
        if let Err(error) = &changed {
            // A slot that is there can be deleted.
            rig.find(Finding::new("slot-not-deleted", error));
        }
        changed.is_ok()
    }

    /// Creates `slot`, in place of the one with its number if there is one and nobody else changes
    /// it. Returns whether it did.
    pub(crate) fn replace<F: Modelled>(&self, rig: &Rig<F>, slot: &plan::Slot) -> bool {
        self.claim(slot.id, Some(slot.clone()))
            .is_some_and(|claim| self.change(rig, &claim, Some(slot)).is_ok())
    }

    /// The slots that there are.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let state = brief(&self.state);
        let there = state.slots.iter().filter(|(_, known)| known.now.is_some());
        there.map(|(id, _)| *id).collect()
    }

    /// The slot `id` as it is, if it is there and nobody changes it.
    pub(crate) fn get(&self, id: u32) -> Option<plan::Slot> {
        let state = brief(&self.state);
        let known = state.slots.get(&id)?;
        known.now.clone().filter(|_| !known.changing)
    }

    /// Claims the slot `id`, to make `next` of it.
    fn claim(&self, id: u32, next: Option<plan::Slot>) -> Option<Claim> {
        let mut state = brief(&self.state);
        let known = state.slots.entry(id).or_default();
        if known.changing {
            return None;
        }
        known.changing = true;
        known.next = next;
        let now = known.now.clone();
        Some(Claim { id, now })
    }

    /// Makes `next` of a claimed slot, in one transaction.
    fn change<F: Modelled>(
        &self,
        rig: &Rig<F>,
        claim: &Claim,
        next: Option<&plan::Slot>,
    ) -> Result<(), TransactionError> {
        let change = {
            let mut state = brief(&self.state);
            state.changes += 1;
            state.changes
        };
        rig.machine.note(
            cpu(),
            Event::SlotsChanging {
                change,
                vm: VM,
                remove: claim.now.iter().map(|slot| slot.id).collect(),
                add: next.map(noted).into_iter().collect(),
            },
        );
        let committed = commit(&rig.memory, claim, next);
        let done = committed.is_ok();
        rig.machine
            .note(cpu(), Event::SlotsChanged { change, done });
        self.settle(claim.id, done);
        let mut state = brief(&self.state);
        for report in committed? {
            state.reports.entry(claim.id).or_insert(report);
        }
        Ok(())
    }

    fn settle(&self, id: u32, done: bool) {
        if let Some(known) = brief(&self.state).slots.get_mut(&id) {
            known.changing = false;
            let next = known.next.take();
            if done {
                known.now = next;
            }
        }
    }

    /// What is behind the page at `gpa`.
    pub(crate) fn behind(&self, gpa: u64) -> Behind {
        let page = gpa & !(PAGE_SIZE - 1);
        let state = brief(&self.state);
        let mut behind = Behind {
            hvas: Vec::new(),
            settled: true,
        };
        for known in state.slots.values() {
            let now = known.now.as_ref().and_then(|slot| hva_at(slot, page));
            let next = known.next.as_ref().and_then(|slot| hva_at(slot, page));
            let found: Vec<_> = now.into_iter().chain(next).collect();
            if known.changing && !found.is_empty() {
                behind.settled = false;
            }
            behind.hvas.extend(found);
        }
        behind
    }

    pub(crate) fn count_fault(&self, id: u32) {
        *brief(&self.state).faults.entry(id).or_default() += 1;
    }

    /// Faults taken in the slot `id`, and what was mapped when it was created first.
    pub(crate) fn summary(&self, id: u32) -> (u64, Option<slat::report::RegionReport>) {
        let state = brief(&self.state);
        let faults = state.faults.get(&id).copied().unwrap_or(0);
        (faults, state.reports.get(&id).cloned())
    }
}

fn commit<F: Modelled>(
    memory: &Memory<F>,
    claim: &Claim,
    next: Option<&plan::Slot>,
) -> Result<Vec<slat::report::RegionReport>, TransactionError> {
    let mut transaction = memory.transaction();
    if let Some(now) = &claim.now {
        transaction = transaction.delete(SlotId(now.id));
    }
    if let Some(next) = next {
        transaction = transaction.create(region(next));
    }
    transaction.commit()
}

fn hva_at(slot: &plan::Slot, page: u64) -> Option<u64> {
    let offset = page.checked_sub(slot.gpa)?;
    (offset < slot.bytes).then(|| slot.hva + offset)
}

fn region(slot: &plan::Slot) -> Region {
    let (gpa, hva) = (Gpa::new(slot.gpa), Hva::new(slot.hva));
    let mut region = Region::new(SlotId(slot.id), gpa, slot.bytes, hva);
    if slot.read_only {
        region = region.read_only();
    }
    if slot.on_fault {
        region = region.mapping(Mapping::OnFault);
    }
    region
}

fn noted(slot: &plan::Slot) -> Slot {
    Slot {
        id: slot.id,
        gpa: address::Gpa(slot.gpa),
        bytes: slot.bytes,
        hva: address::Hva(slot.hva),
        read_only: slot.read_only,
    }
}
