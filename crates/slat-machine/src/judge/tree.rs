//! The trees: what is reachable from each VM's root, and what happens when part of it is linked or
//! cut off.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::dirty::Dirt;
use super::order::Stamp;
use super::ranges::{Disjoint, Span};
use super::residue::{Old, Removal, Residue};
use super::rule::Rule;
use super::runs::Whole;
use super::story::{self, Did};
use super::tables::{Entry, Place};
use super::{Judge, Judged};
use crate::address::Hpa;
use crate::architecture::{Architecture, Descriptor, Leaf};
use crate::event::{Cpu, Registers, Vm, WriteKind};

/// A reachable leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) leaf: Leaf,
    pub(super) entry: Hpa,
    pub(super) written: Did,
    /// All that hardware may translate by it.
    pub(super) whole: Whole,
}

/// What is reachable from a VM's root.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) architecture: Arc<dyn Architecture>,
    registers: Registers,
    /// The CPUs that point to the root.
    cpus: BTreeSet<Cpu>,
    pub(super) leaves: Disjoint<Reached>,
    /// Bytes of the longest run that there was.
    longest_run: u64,
    pub(super) dirt: Dirt,
}

/// A reachable entry's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) vm: Vm,
    pub(super) level: usize,
    /// What it translates.
    pub(super) gpa: Span,
    pub(super) entry: Hpa,
}

/// A write that makes something reachable.
#[derive(Clone, Debug)]
pub(super) struct Linking {
    pub(super) did: Did,
    pub(super) stamp: Stamp,
    pub(super) kind: WriteKind,
    /// The entry came with its table rather than being written by itself.
    pub(super) with_table: bool,
}

impl Tree {
    /// The reachable leaves by which hardware may translate some of `gpa`, and others near it.
    pub(super) fn leaves_near(&self, gpa: Span) -> impl Iterator<Item = (Span, &Reached)> {
        let run = self.longest_run;
        let start = gpa.start & !(run - 1);
        let end = gpa.end.checked_next_multiple_of(run).unwrap_or(u64::MAX);
        self.leaves.overlapping(Span::new(start, end - start))
    }
}

impl Judge {
    pub(super) fn architecture(&self, vm: Vm) -> Option<Arc<dyn Architecture>> {
        Some(Arc::clone(&self.trees.get(&vm)?.architecture))
    }

    /// A CPU was pointed to a VM's tables.
    pub(super) fn enter(&mut self, did: Did, vm: Vm, registers: &Registers) -> Judged {
        let cpu = did.moment.cpu;
        if let Some(tree) = self.trees.get_mut(&vm) {
            let attached = !tree.cpus.is_empty();
            if attached && tree.registers == *registers {
                tree.cpus.insert(cpu);
                let stamp = self.order.stamp(did.moment);
                self.residues.entered(vm, &stamp);
                return Ok(());
            }
            if let Some(other) = tree.cpus.iter().find(|other| **other != cpu) {
                let text = format!("pointed to VM {vm} with {registers:x?}");
                let missing = format!("that CPU {other} no longer uses {:x?}", tree.registers);
                return Err(did.breaks(Rule::BadRegisters, vec![], text, missing));
            }
        }
        let architecture: Arc<dyn Architecture> = match (self.from_registers)(registers) {
            Ok(architecture) => architecture.into(),
            Err(why) => {
                let text = format!("pointed to VM {vm} with {registers:x?}: {why}");
                return Err(did.breaks(Rule::BadRegisters, vec![], text, "other registers"));
            }
        };
        self.leave(did, vm, Removal::Replaced);
        let root = architecture.root();
        let level = architecture.levels().len().saturating_sub(1);
        let dirt = self.trees.remove(&vm).map(|tree| tree.dirt);
        let tree = Tree {
            architecture,
            registers: registers.clone(),
            cpus: BTreeSet::from([cpu]),
            leaves: Disjoint::default(),
            longest_run: 1,
            dirt: dirt.unwrap_or_default(),
        };
        self.trees.insert(vm, tree);
        let linking = Linking {
            did,
            stamp: self.order.stamp(did.moment),
            kind: WriteKind::Release,
            with_table: false,
        };
        self.attach(Place { vm, level, gpa: 0 }, root, None, &linking)
    }

    /// The VM is no more.
    pub(super) fn end_vm(&mut self, did: Did, vm: Vm) {
        self.leave(did, vm, Removal::VmEnded);
        self.residues.end(vm);
        self.host.end(vm);
        if let Some(tree) = self.trees.get_mut(&vm) {
            tree.dirt = Dirt::default();
        }
    }

    /// No CPU points to the tree any more; what it said may be cached all the same.
    fn leave(&mut self, did: Did, vm: Vm, removal: Removal) {
        let Some(tree) = self.trees.get_mut(&vm) else {
            return;
        };
        if tree.cpus.is_empty() {
            return;
        }
        let root = tree.architecture.root();
        self.detach(root, did, removal);
        if let Some(tree) = self.trees.get_mut(&vm) {
            tree.cpus.clear();
        }
    }

    /// Makes the table at `table` reachable, by the entry at `via` or, without one, as a root.
    pub(super) fn attach(
        &mut self,
        place: Place,
        table: Hpa,
        via: Option<Hpa>,
        linking: &Linking,
    ) -> Judged {
        let Some(architecture) = self.architecture(place.vm) else {
            return Ok(());
        };
        let index_bits = architecture.levels()[place.level].index_bits;
        let bytes = architecture.entry_bytes() << index_bits;
        let Some(found) = self
            .tables
            .get_mut(table)
            .filter(|it| it.span.bytes() >= bytes)
        else {
            let text = format!("made a pointer to {table} reachable");
            let missing = format!("an allocated table of {bytes:#x} bytes there");
            return Err(linking
                .did
                .breaks(Rule::PointerToNoTable, vec![], text, missing));
        };
        if let Some(other) = found.place {
            let before = found
                .linked
                .map(|(_, did)| did.line("linked the table first"));
            let text = format!("linked the table at {table} again");
            let missing = format!("its removal from GPA {:#x} of VM {}", other.gpa, other.vm);
            let story = before.into_iter().collect();
            return Err(linking.did.breaks(Rule::LinkedTwice, story, text, missing));
        }
        found.place = Some(place);
        found.linked = via.map(|entry| (entry, linking.did));
        let entries: Vec<(u64, Entry)> = found
            .entries
            .iter()
            .map(|(address, entry)| (*address, entry.clone()))
            .collect();
        if let Some(via) = via {
            self.check_order(table, &entries, linking)?;
            let mut pointers = self.residues.pointing_to(table);
            if let Some(residue) = pointers.find(|residue| residue.entry != via) {
                let text = format!("linked the table at {table} by entry {via}");
                return Err(self.reused(residue, linking.did, text));
            }
        }
        for (address, entry) in entries {
            if let Some(at) = self.at(Hpa(address)) {
                let descriptor = architecture.decode_at(at.level, at.entry, entry.raw);
                let with_table = Linking {
                    with_table: true,
                    ..linking.clone()
                };
                self.make(at, &descriptor, &with_table)?;
            }
        }
        Ok(())
    }

    /// What is written in a table comes before the link to it.
    fn check_order(&self, table: Hpa, entries: &[(u64, Entry)], linking: &Linking) -> Judged {
        let text = format!("linked the table at {table}");
        if linking.kind == WriteKind::Plain {
            let allocated = self
                .tables
                .get(table)
                .map(|it| it.allocated.line("allocated it"));
            let story = allocated.into_iter().collect();
            let missing = "release ordering of the link: a later store may overtake a plain one, \
                           and so may it what is written in the table";
            let text = text + " with a plain store";
            return Err(linking
                .did
                .breaks(Rule::LinkedBeforeVisible, story, text, missing));
        }
        let unseen = |(_, entry): &&(u64, Entry)| !linking.stamp.has_seen(entry.did.moment);
        let Some((address, entry)) = entries.iter().find(unseen) else {
            return Ok(());
        };
        let story = vec![
            entry
                .did
                .line(format!("wrote entry {address:#x} in the table")),
        ];
        let missing = format!(
            "something that orders this after the write by CPU {}, such as a lock",
            entry.did.moment.cpu
        );
        Err(linking
            .did
            .breaks(Rule::LinkedBeforeVisible, story, text, missing))
    }

    /// Where the entry at `entry` is in a tree, if its table is reachable.
    pub(super) fn at(&self, entry: Hpa) -> Option<At> {
        let table = self.tables.containing(entry.0)?;
        let place = table.place?;
        let architecture = &self.trees.get(&place.vm)?.architecture;
        let shape = architecture.levels()[place.level];
        let index = (entry.0 - table.span.start) / architecture.entry_bytes();
        (index >> shape.index_bits == 0).then(|| At {
            vm: place.vm,
            level: place.level,
            gpa: Span::new(place.gpa + (index << shape.shift), 1 << shape.shift),
            entry,
        })
    }

    /// An entry became reachable and valid.
    pub(super) fn make(&mut self, at: At, what: &Descriptor, linking: &Linking) -> Judged {
        match what {
            Descriptor::Invalid => Ok(()),
            Descriptor::Reserved(why) => {
                let text = format!("made a reserved encoding reachable at {}: {why}", at.entry);
                let missing = "an encoding that the architecture defines";
                Err(linking
                    .did
                    .breaks(Rule::ReservedEncoding, vec![], text, missing))
            }
            Descriptor::Table(table) => {
                self.check_residues(&at, what, linking)?;
                self.check_runs(&at, what, linking.did)?;
                let Some(level) = at.level.checked_sub(1) else {
                    return Ok(());
                };
                let place = Place {
                    vm: at.vm,
                    level,
                    gpa: at.gpa.start,
                };
                self.attach(place, *table, Some(at.entry), linking)
            }
            Descriptor::Leaf(leaf) => {
                self.check_residues(&at, what, linking)?;
                self.check_runs(&at, what, linking.did)?;
                self.check_new_dirt(&at, leaf, linking)?;
                self.check_leaf(&at, leaf, linking.did)?;
                self.reach(&at, leaf, linking.did);
                self.dirt_is_in_memory(&at);
                Ok(())
            }
        }
    }

    /// Break-before-make, second half: nobody may hold anything that conflicts with a new entry.
    fn check_residues(&self, at: &At, what: &Descriptor, linking: &Linking) -> Judged {
        let Some(tree) = self.trees.get(&at.vm) else {
            return Ok(());
        };
        if !tree.architecture.break_before_make() {
            return Ok(());
        }
        let conflicts = |residue: &&Residue| match what {
            Descriptor::Leaf(leaf) => residue.conflicts_with_leaf(at.level, &self.whole(at, leaf)),
            Descriptor::Table(table) => residue.conflicts_with_table(at.entry, at.level, *table),
            Descriptor::Invalid | Descriptor::Reserved(_) => false,
        };
        let span = match what {
            Descriptor::Leaf(leaf) => self.whole(at, leaf).gpa,
            _ => at.gpa,
        };
        let mut residues = self.residues.translating(at.vm, span);
        let Some(residue) = residues.find(conflicts) else {
            return Ok(());
        };
        let what = story::descriptor(at.gpa, what);
        let text = format!("made entry {} valid: {what}", at.entry);
        let story = self.journal.story(residue);
        let missing = self.journal.missing(residue);
        Err(linking
            .did
            .breaks(Rule::ConflictingEntries, story, text, missing))
    }

    /// Takes note of a reachable leaf.
    pub(super) fn reach(&mut self, at: &At, leaf: &Leaf, written: Did) {
        let Some(tree) = self.trees.get_mut(&at.vm) else {
            return;
        };
        let whole = Whole::of(&*tree.architecture, at, leaf);
        let reached = Reached {
            leaf: *leaf,
            entry: at.entry,
            written,
            whole,
        };
        if leaf.run_bits != 0 {
            tree.longest_run = tree.longest_run.max(whole.gpa.bytes());
        }
        tree.leaves.set(at.gpa, reached);
        self.leaves_by_hpa
            .insert(whole.target(), (at.vm, at.gpa.start));
    }

    /// Software mapped something, so what was dirty there is to be known from memory. Hardware that
    /// notes something in a leaf knows nothing of the other leaves of its run.
    pub(super) fn dirt_is_in_memory(&mut self, at: &At) {
        if let Some(tree) = self.trees.get_mut(&at.vm) {
            tree.dirt.mapped(at.gpa);
        }
    }

    /// A reachable leaf is none any more.
    fn unreach(&mut self, at: &At, leaf: &Leaf, did: Did) {
        let whole = self.whole(at, leaf);
        if let Some(tree) = self.trees.get_mut(&at.vm) {
            tree.leaves.remove(at.gpa);
            tree.dirt.leaf_removed(whole.gpa, &whole.leaf, did);
        }
        self.leaves_by_hpa
            .remove(whole.target(), (at.vm, at.gpa.start));
    }

    /// A reachable valid entry goes: what it said becomes residue, and what hung below it too.
    pub(super) fn take_away(&mut self, at: &At, entry: &Entry, did: Did, removal: Removal) {
        let Some(architecture) = self.architecture(at.vm) else {
            return;
        };
        let old = match architecture.decode_at(at.level, at.entry, entry.raw) {
            Descriptor::Leaf(leaf) => {
                self.unreach(at, &leaf, did);
                Old::Leaf(leaf)
            }
            Descriptor::Table(table) => {
                let below = match removal {
                    Removal::VmEnded => Removal::VmEnded,
                    _ => Removal::CutOff,
                };
                self.detach(table, did, below);
                Old::Table(table)
            }
            Descriptor::Invalid | Descriptor::Reserved(_) => return,
        };
        self.leave_residue(at, entry, old, did, removal);
    }

    pub(super) fn leave_residue(
        &mut self,
        at: &At,
        entry: &Entry,
        old: Old,
        did: Did,
        removal: Removal,
    ) {
        let (gpa, old) = match old {
            Old::Leaf(leaf) => {
                let whole = self.whole(at, &leaf);
                (whole.gpa, Old::Leaf(whole.leaf))
            }
            Old::Table(_) => (at.gpa, old),
        };
        let tree = self.trees.get(&at.vm);
        let cpus = tree.into_iter().flat_map(|tree| &tree.cpus);
        self.residues.insert(Residue {
            vm: at.vm,
            gpa,
            page: at.gpa,
            level: at.level,
            old,
            entry: at.entry,
            written: Some(entry.did),
            removed: did,
            removal,
            cached: entry.cached,
            held_by: cpus.copied().collect(),
            progress: Vec::new(),
        });
    }

    /// The table at `table` and all below it cannot be reached any more.
    fn detach(&mut self, table: Hpa, did: Did, removal: Removal) {
        let Some(found) = self.tables.get(table) else {
            return;
        };
        let places: Vec<(At, Entry)> = found
            .entries
            .iter()
            .filter_map(|(address, entry)| Some((self.at(Hpa(*address))?, entry.clone())))
            .collect();
        for (at, entry) in places {
            self.take_away(&at, &entry, did, removal);
        }
        if let Some(found) = self.tables.get_mut(table) {
            found.place = None;
            found.linked = None;
        }
    }
}
