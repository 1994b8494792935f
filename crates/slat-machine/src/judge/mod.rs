//! The judge: knows the rules of translation tables, and nothing of who follows them.
//!
//! It is told everything that happens on a machine, one [`Record`] after the other, and objects to
//! the first that breaks a [`Rule`], with the story of how it came to that ([`Violation`]).
//!
//! It is *maximal*. It does not ask which translation some CPU happened to cache, but takes every
//! CPU to have cached everything as early as it could and to keep it for as long as it may. So the
//! verdict on a run does not depend on luck, the replay of a trace gives the same one, and a
//! missing flush is found at the moment somebody relies on it: a conflicting entry is made, a
//! table or frame freed, a notifier returns.
//!
//! * `order`: who has seen what, by vector clocks
//! * `tables`, `tree`: table memory, and what is reachable from the VMs' roots
//! * `runs`: neighbouring leaves that hardware may take for one
//! * `residue`, `journal`: what CPUs may still hold, and why it is not gone
//! * `write`, `dirty`: the rules for a write
//! * `host`, `allowed`: what the guest may reach, by what the host and the VMM said
//!
//! A VM of which neither host nor VMM says anything is judged by the rules of tables alone.

mod allowed;
mod dirty;
mod host;
mod journal;
mod order;
mod ranges;
mod residue;
mod rule;
mod runs;
mod story;
mod tables;
mod tree;
mod write;

use core::error::Error;
use std::collections::BTreeMap;

use host::{Change, Grant, Host, Notice};
use journal::Journal;
use order::{Moment, Order};
use ranges::{Overlapping, Span};
use residue::Residues;
use story::Did;
use tables::{CachedBy, Tables};
use tree::Tree;

pub use rule::{Line, Rule, Violation};

use crate::architecture::{self, Architecture, Descriptor, Effect, Reach};
use crate::event::{AccessKind, Event, Instruction, Record, Registers, Vm};
use crate::machine::Witness;

/// What makes an architecture of registers.
pub type FromRegisters = fn(&Registers) -> Result<Box<dyn Architecture>, String>;

/// What judging gives.
type Judged = Result<(), Violation>;

/// Judges what happens on a machine.
///
/// Its state grows with what exists (tables, frames, slots, translations not yet flushed) and not
/// with the length of the run.
#[derive(Debug)]
pub struct Judge {
    from_registers: FromRegisters,
    /// Records so far; the clock of `order`.
    records: u64,
    order: Order,
    tables: Tables,
    trees: BTreeMap<Vm, Tree>,
    /// Reachable leaves, by VM and first guest address, by the memory they lead to.
    leaves_by_hpa: Overlapping<(Vm, u64)>,
    residues: Residues,
    journal: Journal,
    host: Host,
    objected: bool,
}

impl Default for Judge {
    fn default() -> Self {
        Self::new()
    }
}

impl Judge {
    /// A judge for every architecture that the model knows.
    pub fn new() -> Self {
        Self::with_architecture(architecture::from_registers)
    }

    /// A judge for what `from_registers` makes of registers.
    pub fn with_architecture(from_registers: FromRegisters) -> Self {
        Self {
            from_registers,
            records: 0,
            order: Order::default(),
            tables: Tables::default(),
            trees: BTreeMap::new(),
            leaves_by_hpa: Overlapping::default(),
            residues: Residues::default(),
            journal: Journal::default(),
            host: Host::default(),
            objected: false,
        }
    }

    /// How many records were judged.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How many translations and table pointers CPUs may hold although they were removed.
    pub fn residues(&self) -> usize {
        self.residues.len()
    }

    /// Judges a record. After the first violation it takes note of nothing more.
    ///
    /// # Errors
    ///
    /// The [`Violation`] that the record is.
    pub fn judge(&mut self, record: &Record) -> Judged {
        if self.objected {
            return Ok(());
        }
        self.records += 1;
        let did = Did {
            step: record.step,
            moment: Moment {
                cpu: record.cpu,
                at: self.records,
            },
        };
        let judged = self.happened(did, &record.event);
        self.objected = judged.is_err();
        judged
    }

    /// Whether a CPU may have cached what it is said to have cached in `event`: what its entry says,
    /// or what it said before, as long as that is not forgotten. If not, hardware does more than
    /// the judge takes it to do, and its verdict is worth nothing.
    pub fn expects(&self, event: &Event) -> bool {
        let Event::Cached {
            vm,
            bytes,
            entry,
            value,
            ..
        } = event
        else {
            return true;
        };
        if self.residues.read_from(entry.0) || self.is_absence(*vm, *bytes, *value) {
            return true;
        }
        let table = self.tables.containing(entry.0);
        let current = table.and_then(|table| table.entries.get(&entry.0));
        let Some((current, at)) = current.zip(self.at(*entry)) else {
            return false;
        };
        // What was gained, and what hardware has set, may not have been seen yet.
        let says = |raw| match self.architecture(at.vm)?.decode_at(at.level, at.entry, raw) {
            Descriptor::Leaf(leaf) => Some((leaf.hpa, Some(leaf.memory))),
            Descriptor::Table(table) => Some((table, None)),
            Descriptor::Invalid | Descriptor::Reserved(_) => None,
        };
        says(*value).is_some_and(|said| says(current.raw) == Some(said))
    }

    /// Whether this is an entry that translates nothing, on an architecture that caches those. Who
    /// has cached one faults where it need not, and reaches nothing that it must not.
    fn is_absence(&self, vm: Vm, bytes: u64, value: u64) -> bool {
        self.architecture(vm).is_some_and(|architecture| {
            let mut levels = architecture.levels().iter();
            let level = levels.position(|shape| 1 << shape.shift == bytes);
            let decoded = level.map(|level| architecture.decode(level, value));
            architecture.caches_invalid() && decoded == Some(Descriptor::Invalid)
        })
    }

    fn happened(&mut self, did: Did, event: &Event) -> Judged {
        match event {
            Event::Registers { vm, registers } => self.enter(did, *vm, registers),
            Event::VmEnded { vm } => {
                self.end_vm(did, *vm);
                Ok(())
            }
            Event::TableAllocated { table, bytes } => self.table_allocated(did, *table, *bytes),
            Event::TableFreed { table, bytes } => self.table_freed(did, *table, *bytes),
            Event::Write { entry, value, kind } => self.write(did, *entry, *value, *kind),
            Event::Instruction { vm, instruction } => {
                self.instruction(did, *vm, instruction);
                Ok(())
            }
            Event::Locked { lock } => {
                self.order.locked(did.moment.cpu, *lock);
                Ok(())
            }
            Event::Unlocked { lock } => {
                self.order.unlocked(did.moment, *lock);
                Ok(())
            }
            Event::Cached {
                entry,
                value,
                combined,
                ..
            } => {
                self.cached(did, entry.0, *value, *combined);
                Ok(())
            }
            Event::Accessed {
                vm, gpa, kind, hpa, ..
            } => {
                self.touched(*vm, gpa.0, *kind);
                self.runs(did, *vm)?;
                self.accessed(did, *vm, *gpa, *kind, *hpa)
            }
            Event::Faulted { vm, gpa, kind } => {
                self.touched(*vm, gpa.0, *kind);
                self.runs(did, *vm)
            }
            _ => self.host_said(did, event),
        }
    }

    fn host_said(&mut self, did: Did, event: &Event) -> Judged {
        match event {
            Event::FrameAllocated { frame, bytes } => {
                self.frame_allocated(did, Span::new(frame.0, *bytes))
            }
            Event::FrameFreed { frame, bytes } => self.frame_freed(did, Span::new(frame.0, *bytes)),
            Event::Answered {
                vm,
                hva,
                bytes,
                hpa,
                writable,
                device,
            } => {
                let grant = Grant::new(hva.0, *hpa, *writable, *device, did);
                self.answered(did, *vm, Span::new(hva.0, *bytes), grant)
            }
            Event::NoticeBeginning {
                notice,
                vm,
                hva,
                bytes,
            } => {
                let new = Notice {
                    vm: *vm,
                    hva: Span::new(hva.0, *bytes),
                    beginning: did,
                    begun: false,
                };
                self.host.notices.insert(*notice, new);
                Ok(())
            }
            Event::NoticeBegun { notice } => self.notice_begun(did, *notice),
            Event::NoticeEnded { notice } => {
                self.host.notices.remove(notice);
                Ok(())
            }
            Event::SlotsChanging {
                change,
                vm,
                remove,
                add,
            } => {
                let new = Change {
                    vm: *vm,
                    remove: remove.clone(),
                    add: add.clone(),
                    did,
                };
                self.host.changing(*change, new);
                Ok(())
            }
            Event::SlotsChanged { change, done } => self.slots_changed(did, *change, *done),
            _ => Ok(()),
        }
    }

    fn instruction(&mut self, did: Did, vm: Vm, instruction: &Instruction) {
        // A barrier is one whatever the registers point to, so any tree's architecture will do.
        let tree = self.trees.get(&vm).or_else(|| self.trees.values().next());
        let effects = tree.map(|tree| tree.architecture.effects(instruction));
        for effect in effects.unwrap_or_default() {
            self.effect(did, vm, effect);
        }
    }

    fn effect(&mut self, did: Did, vm: Vm, effect: Effect) {
        match effect {
            Effect::Complete {
                reach,
                invalidations,
            } => {
                if invalidations {
                    self.residues.complete(reach, did);
                }
                match reach {
                    Reach::All => self.order.barrier(did.moment),
                    Reach::Local => self.order.barrier_here(did.moment),
                }
            }
            Effect::Forget { reach, what } => {
                let stamp = self.order.stamp(did.moment);
                self.residues.forget(vm, &what, reach, &stamp, did);
            }
            Effect::Synchronise => {}
        }
        if self.residues.len() != 0 {
            let stamp = self.order.stamp(did.moment);
            self.journal.note(did, vm, effect, stamp);
        }
    }

    fn cached(&mut self, did: Did, entry: u64, value: u64, combined: bool) {
        let table = self.tables.containing_mut(entry);
        let Some(entry) = table.and_then(|table| table.entries.get_mut(&entry)) else {
            return;
        };
        if entry.raw == value {
            entry.cached.get_or_insert(CachedBy { did, combined });
        }
    }

    /// A guest runs under the number `vm`: it must not meet what another one left behind.
    fn runs(&self, did: Did, vm: Vm) -> Judged {
        let Some(residue) = self.residues.of_ended(vm) else {
            return Ok(());
        };
        let (story, missing) = (self.journal.story(residue), self.journal.missing(residue));
        let text = format!("the guest of another VM {vm} runs");
        Err(did.breaks(Rule::VmReusedWhileCached, story, text, missing))
    }

    /// The guest accessed a page, or tried to. What is in no slot has no page that could be dirty.
    fn touched(&mut self, vm: Vm, gpa: u64, kind: AccessKind) {
        let allowed = self.host.allowed(vm);
        if kind == AccessKind::Write
            && allowed.is_none_or(|allowed| allowed.has_slot(gpa))
            && let Some(tree) = self.trees.get_mut(&vm)
        {
            tree.dirt.written(gpa);
        }
    }
}

impl Witness for Judge {
    fn observe(&mut self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.judge(record).map_err(Into::into)
    }
}
