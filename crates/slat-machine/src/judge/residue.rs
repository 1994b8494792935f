//! Residue: what CPUs may still hold of an entry that was removed or changed.
//!
//! Every CPU is taken to have cached an entry as early as it could, and to keep it for as long as
//! it may. So when a reachable entry goes, what it said stays behind as a [`Residue`], which is
//! gone only after all of these, in this order:
//!
//! 1. the removal is *visible* to every walker (a barrier by a CPU that has seen it),
//! 2. second-stage copies are invalidated by a CPU that knows it is visible, and
//! 3. a barrier of that CPU completes the invalidation,
//! 4. copies combined with the guest's own translation are invalidated by a CPU that knows of 3
//!    (before, one could be combined anew), and
//! 5. a barrier of that CPU completes that.
//!
//! An invalidation of everything does 2 and 4 in one. Pointers to tables are never combined, so 3
//! is the end of theirs. Where an invalidation reaches one CPU only, that CPU has to take all of these
//! steps for itself, the first by a barrier for its own walker, and the residue is gone when every CPU
//! has that may hold it.
//!
//! What was read from one of a run may translate the whole run ([`Whole`]); it
//! translates the entry's own page in any case, so an invalidation by that page's address finds it.
//!
//! As to leaves alone: A leaf that was cut off together with its table is still in memory, so an
//! invalidation of leaves alone counts for it only once no pointer on the way to it is held any
//! more: a walker that has one could read it anew. Each CPU's progress counts for itself and for those who know of it: two
//! CPUs that flush the same page at once do not help each other.

use std::collections::{BTreeMap, BTreeSet};

use super::order::{Moment, Stamp};
use super::ranges::{Overlapping, Span};
use super::runs::Whole;
use super::story::Did;
use super::tables::CachedBy;
use crate::address::Hpa;
use crate::architecture::{Forgotten, Leaf, Reach};
use crate::event::{Cpu, Vm};

/// What an entry said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Old {
    Leaf(Leaf),
    Table(Hpa),
}

impl Old {
    /// Where a leaf leads, as a range of host physical addresses.
    pub(super) fn target(&self, gpa: Span) -> Option<Span> {
        match self {
            Self::Leaf(leaf) => Some(Span::new(leaf.hpa.0, gpa.bytes())),
            Self::Table(_) => None,
        }
    }
}

/// How an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It was made invalid.
    Emptied,
    /// It was replaced by another valid one.
    Replaced,
    /// It now allows less.
    Restricted,
    /// A table above it was cut off.
    CutOff,
    /// The VM ended.
    VmEnded,
}

/// How far one CPU has come with having a residue forgotten, by all CPUs or by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) cpu: Cpu,
    pub(super) reach: Reach,
    pub(super) second_issued: Option<Did>,
    pub(super) second_done: Option<Did>,
    pub(super) combined_issued: Option<Did>,
    pub(super) all_issued: Option<Did>,
}

/// What CPUs may still hold.
#[derive(Clone, Debug)]
pub(super) struct Residue {
    pub(super) vm: Vm,
    /// The guest physical addresses that it may translate.
    pub(super) gpa: Span,
    /// Those of its own entry.
    pub(super) page: Span,
    pub(super) level: usize,
    pub(super) old: Old,
    /// Where it was read from.
    pub(super) entry: Hpa,
    pub(super) written: Option<Did>,
    pub(super) removed: Did,
    pub(super) removal: Removal,
    pub(super) cached: Option<CachedBy>,
    /// The CPUs that may hold it.
    pub(super) held_by: Vec<Cpu>,
    pub(super) progress: Vec<Progress>,
}

impl Residue {
    fn progress_of(&mut self, cpu: Cpu, reach: Reach) -> &mut Progress {
        let index = self
            .progress
            .iter()
            .position(|progress| progress.cpu == cpu && progress.reach == reach)
            .unwrap_or_else(|| {
                self.progress.push(Progress {
                    cpu,
                    reach,
                    second_issued: None,
                    second_done: None,
                    combined_issued: None,
                    all_issued: None,
                });
                self.progress.len() - 1
            });
        &mut self.progress[index]
    }

    /// Whether whoever holds `stamp` knows that second-stage copies are forgotten: by all, or by
    /// that CPU, which is enough if only it is to forget.
    fn knows_second_done(&self, stamp: &Stamp, reach: Reach) -> bool {
        let here = reach == Reach::Local;
        let counts = |progress: &&Progress| {
            progress.reach == Reach::All || here && progress.cpu == stamp.cpu()
        };
        let done = |progress: &Progress| progress.second_done.map(|did| did.moment);
        let mut moments = self.progress.iter().filter(counts).filter_map(done);
        here && !self.held_by.contains(&stamp.cpu())
            || moments.any(|moment: Moment| stamp.has_seen(moment))
    }

    /// Whether whoever holds `stamp` knows that the walkers concerned see the removal.
    pub(super) fn knows_visible(&self, stamp: &Stamp, reach: Reach) -> bool {
        let removed = self.removed.moment;
        match reach {
            Reach::All => stamp.knows_visible(removed),
            Reach::Local => stamp.knows_visible_here(removed),
        }
    }

    /// Whether both lead the same guest addresses to different places, or by different means.
    pub(super) fn conflicts_with_leaf(&self, level: usize, new: &Whole) -> bool {
        let Whole { gpa, leaf: new } = *new;
        match &self.old {
            Old::Leaf(old) => {
                let same_page = level == self.level && gpa == self.gpa && old.hpa == new.hpa;
                !(same_page && old.memory == new.memory)
            }
            Old::Table(_) => true,
        }
    }

    /// Whether a pointer at `entry`, of `level`, to `table` leads elsewhere than this. What is below
    /// its level is for the entries below it to conflict with.
    pub(super) fn conflicts_with_table(&self, entry: Hpa, level: usize, table: Hpa) -> bool {
        let same = self.entry == entry && self.old == Old::Table(table);
        self.level >= level && !same
    }
}

/// All residues.
#[derive(Debug, Default)]
pub(super) struct Residues {
    all: BTreeMap<u64, Residue>,
    next: u64,
    by_gpa: BTreeMap<Vm, Overlapping<u64>>,
    by_hpa: Overlapping<u64>,
    by_entry: BTreeSet<(u64, u64)>,
    by_table: BTreeSet<(u64, u64)>,
    /// Those that VMs which ended left behind.
    of_ended: BTreeSet<(Vm, u64)>,
    /// What each CPU has issued for all, or for itself, and not yet completed.
    pending: BTreeMap<Cpu, Vec<(u64, Reach)>>,
}

impl Residues {
    pub(super) fn insert(&mut self, residue: Residue) {
        let id = self.next;
        self.next += 1;
        let by_gpa = self.by_gpa.entry(residue.vm).or_default();
        by_gpa.insert(residue.gpa, id);
        self.by_entry.insert((residue.entry.0, id));
        if let Some(target) = residue.old.target(residue.gpa) {
            self.by_hpa.insert(target, id);
        }
        if let Old::Table(table) = residue.old {
            self.by_table.insert((table.0, id));
        }
        self.all.insert(id, residue);
    }

    fn remove(&mut self, id: u64) {
        let Some(residue) = self.all.remove(&id) else {
            return;
        };
        if let Some(by_gpa) = self.by_gpa.get_mut(&residue.vm) {
            by_gpa.remove(residue.gpa, id);
        }
        self.by_entry.remove(&(residue.entry.0, id));
        if let Some(target) = residue.old.target(residue.gpa) {
            self.by_hpa.remove(target, id);
        }
        if let Old::Table(table) = residue.old {
            self.by_table.remove(&(table.0, id));
        }
        self.of_ended.remove(&(residue.vm, id));
    }

    /// Whether something that was read from the entry at `entry` may still be held.
    pub(super) fn read_from(&self, entry: u64) -> bool {
        let mut there = self.by_entry.range((entry, 0)..=(entry, u64::MAX));
        there.next().is_some()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// `vm` has ended: whoever has its number next owns none of these.
    pub(super) fn end(&mut self, vm: Vm) {
        let left = self.of_vm(vm, Span::new(0, u64::MAX));
        self.of_ended.extend(left.into_iter().map(|id| (vm, id)));
    }

    /// What a VM that ended left behind under the number `vm`.
    pub(super) fn of_ended(&self, vm: Vm) -> Option<&Residue> {
        let (_, id) = self.of_ended.range((vm, 0)..=(vm, u64::MAX)).next()?;
        self.all.get(id)
    }

    /// Those of `vm` that translate some of `gpa`.
    pub(super) fn translating(&self, vm: Vm, gpa: Span) -> impl Iterator<Item = &Residue> {
        self.by_gpa
            .get(&vm)
            .into_iter()
            .flat_map(move |by_gpa| by_gpa.overlapping(gpa))
            .filter_map(|id| self.all.get(&id))
    }

    /// Those that lead to some of `hpa`.
    pub(super) fn leading_to(&self, hpa: Span) -> impl Iterator<Item = &Residue> {
        let ids = self.by_hpa.overlapping(hpa);
        ids.filter_map(|id| self.all.get(&id))
    }

    /// One that points to the table at `table`, or was read from the table in `span`.
    pub(super) fn holding_table(&self, span: Span) -> Option<&Residue> {
        let of = |set: &BTreeSet<(u64, u64)>, to: u64| {
            set.range((span.start, 0)..(to, 0))
                .next()
                .map(|(_, id)| *id)
        };
        let id = of(&self.by_table, span.start + 1).or_else(|| of(&self.by_entry, span.end))?;
        self.all.get(&id)
    }

    /// The pointers to the table at `table`.
    pub(super) fn pointing_to(&self, table: Hpa) -> impl Iterator<Item = &Residue> {
        let pointers = self.by_table.range((table.0, 0)..=(table.0, u64::MAX));
        pointers.filter_map(|(_, id)| self.all.get(id))
    }

    fn of_vm(&self, vm: Vm, span: Span) -> Vec<u64> {
        self.by_gpa
            .get(&vm)
            .map(|by_gpa| by_gpa.overlapping(span).collect())
            .unwrap_or_default()
    }

    /// Whether an invalidation by address, issued by one who knows what `stamp` says, need not find
    /// a residue although it is about the residue's address.
    fn spares(&self, id: u64, what: &Forgotten, reach: Reach, stamp: &Stamp) -> bool {
        let (
            Forgotten::Address {
                gpa,
                leaf_only,
                level,
            },
            Some(residue),
        ) = (what, self.all.get(&id))
        else {
            return false;
        };
        if !residue.page.contains(gpa.0) {
            return true;
        }
        let spares_pointers = *leaf_only || level.is_some();
        match residue.old {
            Old::Table(_) => spares_pointers,
            Old::Leaf(_) => {
                level.is_some_and(|level| level != residue.level)
                    || spares_pointers && self.can_be_read_again(residue, reach, stamp)
            }
        }
    }

    /// Whether a leaf that went with its table is still in there, for walkers that hold a pointer
    /// on the way to it.
    fn can_be_read_again(&self, residue: &Residue, reach: Reach, stamp: &Stamp) -> bool {
        let went_with_its_table = matches!(residue.removal, Removal::CutOff | Removal::VmEnded);
        let leads_there = |above: &Residue| {
            above.level > residue.level
                && matches!(above.old, Old::Table(_))
                && !above.knows_second_done(stamp, reach)
        };
        went_with_its_table && self.translating(residue.vm, residue.gpa).any(leads_there)
    }

    /// An invalidation was issued, by one who knows what `stamp` says.
    pub(super) fn forget(
        &mut self,
        vm: Vm,
        what: &Forgotten,
        reach: Reach,
        stamp: &Stamp,
        did: Did,
    ) {
        let span = match what {
            Forgotten::Address { gpa, .. } => Span::new(gpa.0, 1),
            Forgotten::Combined | Forgotten::All => Span::new(0, u64::MAX),
        };
        let cpu = did.moment.cpu;
        let found = self.of_vm(vm, span);
        let spared = |id: &u64| self.spares(*id, what, reach, stamp);
        let spared: Vec<u64> = found.iter().copied().filter(spared).collect();
        for id in found {
            let Some(residue) = self.all.get_mut(&id) else {
                continue;
            };
            let visible = residue.knows_visible(stamp, reach);
            let second_done = residue.knows_second_done(stamp, reach);
            let progress = residue.progress_of(cpu, reach);
            // What one instruction makes a CPU forget, it forgets at once.
            let at_once = progress.second_issued.is_some_and(|it| it.step == did.step);
            let issued = match what {
                Forgotten::Address { .. } if visible && !spared.contains(&id) => {
                    &mut progress.second_issued
                }
                Forgotten::All if visible => &mut progress.all_issued,
                Forgotten::Combined if second_done || at_once => &mut progress.combined_issued,
                _ => continue,
            };
            if issued.is_none() {
                *issued = Some(did);
                self.pending.entry(cpu).or_default().push((id, reach));
            }
        }
    }

    /// A barrier completed what its CPU issued before: for all CPUs, or only what is about itself.
    pub(super) fn complete(&mut self, completed: Reach, did: Did) {
        let cpu = did.moment.cpu;
        let Some(pending) = self.pending.get_mut(&cpu) else {
            return;
        };
        let waits = |(_, reach): &mut (u64, Reach)| completed == Reach::All || *reach == completed;
        let done: Vec<_> = pending.extract_if(.., waits).collect();
        for (id, reach) in done {
            let Some(residue) = self.all.get_mut(&id) else {
                continue;
            };
            let is_table = matches!(residue.old, Old::Table(_));
            let progress = residue.progress_of(cpu, reach);
            if progress.second_issued.is_some() {
                progress.second_done.get_or_insert(did);
            }
            let combined_too = progress.combined_issued.or(progress.all_issued).is_some();
            let gone = combined_too || (is_table && progress.second_done.is_some());
            if !gone {
                continue;
            }
            match reach {
                Reach::All => residue.held_by.clear(),
                Reach::Local => residue.held_by.retain(|holder| *holder != cpu),
            }
            if residue.held_by.is_empty() {
                self.remove(id);
            }
        }
    }

    /// A CPU was pointed to the tables of `vm`: it may read what was removed and is not yet visible
    /// to its walker.
    pub(super) fn entered(&mut self, vm: Vm, stamp: &Stamp) {
        for id in self.of_vm(vm, Span::new(0, u64::MAX)) {
            if let Some(residue) = self.all.get_mut(&id)
                && !residue.held_by.contains(&stamp.cpu())
                && !residue.knows_visible(stamp, Reach::Local)
            {
                residue.held_by.push(stamp.cpu());
            }
        }
    }
}
