//! The rules for a write to table memory, and for that memory itself.

use super::order::Stamp;
use super::ranges::Span;
use super::residue::{Old, Removal, Residue};
use super::rule::{Rule, Violation};
use super::story::{self, Did};
use super::tables::Entry;
use super::tree::{At, Linking};
use super::{Judge, Judged};
use crate::address::Hpa;
use crate::architecture::{Architecture, Descriptor, Leaf};
use crate::event::{AccessKind, WriteKind};

/// A software write to a reachable entry.
struct Change<'a> {
    at: At,
    /// The entry before; `None` if it was never written.
    before: Option<&'a Entry>,
    old: Descriptor,
    new: Descriptor,
    linking: Linking,
}

impl Judge {
    pub(super) fn table_allocated(&mut self, did: Did, table: Hpa, bytes: u64) -> Judged {
        let span = Span::new(table.0, bytes);
        let granted = || {
            let (vm, answered) = self.host.granted(span)?;
            Some(answered.line(format!("the host granted it to VM {vm}")))
        };
        if let Some(owner) = self.owner(span).or_else(granted) {
            let text = format!("allocated the table {span}");
            let missing = "memory that nobody has";
            return Err(did.breaks(Rule::NoSuchTable, vec![owner], text, missing));
        }
        self.tables.insert(span, did);
        Ok(())
    }

    pub(super) fn table_freed(&mut self, did: Did, table: Hpa, bytes: u64) -> Judged {
        let span = Span::new(table.0, bytes);
        let text = format!("freed the table {span}");
        let Some(found) = self.tables.get(table).filter(|found| found.span == span) else {
            let missing = "an allocated table of that address and size";
            return Err(did.breaks(Rule::NoSuchTable, vec![], text, missing));
        };
        if let Some(place) = found.place {
            let linked = found
                .linked
                .map(|(entry, by)| by.line(format!("linked it at {entry}")));
            let story = linked.into_iter().collect();
            let missing = match found.linked {
                Some((entry, _)) => format!("a write that makes entry {entry} invalid"),
                None => format!("the end of VM {}, whose root it is", place.vm),
            };
            return Err(did.breaks(Rule::TableFreedWhileReachable, story, text, missing));
        }
        if let Some(residue) = self.residues.holding_table(span) {
            let (story, missing) = (self.journal.story(residue), self.journal.missing(residue));
            return Err(did.breaks(Rule::TableFreedWhileCached, story, text, missing));
        }
        self.tables.remove(table);
        Ok(())
    }

    pub(super) fn write(&mut self, did: Did, entry: Hpa, value: u64, kind: WriteKind) -> Judged {
        let entry_bytes = self.entry_bytes();
        let table = self.tables.containing_mut(entry.0);
        let Some(table) = table.filter(|_| entry.0.is_multiple_of(entry_bytes)) else {
            let who = match kind {
                WriteKind::Hardware => "a walker set a bit in",
                _ => "wrote to",
            };
            let text = format!("{who} {entry}, which is in no allocated table");
            let missing = "an allocated table there";
            return Err(did.breaks(Rule::WriteOutsideTables, vec![], text, missing));
        };
        if kind == WriteKind::Hardware {
            self.write_by_hardware(entry, value);
            return Ok(());
        }
        let before = table.entries.get(&entry.0).cloned();
        if kind == WriteKind::Exchange
            && let Some(before) = before.as_ref().filter(|it| it.kind != WriteKind::Plain)
        {
            self.order.acquire(did.moment.cpu, &before.writer);
        }
        let stamp = self.order.stamp(did.moment);
        self.set_entry(entry, value, did, stamp.clone(), kind);
        self.judge_change(entry, before.as_ref(), value, did, stamp, kind)
    }

    /// Bytes of an entry: all VMs of a machine have the same.
    fn entry_bytes(&self) -> u64 {
        let mut trees = self.trees.values();
        trees
            .next()
            .map_or(8, |tree| tree.architecture.entry_bytes())
    }

    fn set_entry(&mut self, entry: Hpa, raw: u64, did: Did, writer: Stamp, kind: WriteKind) {
        let new = Entry {
            raw,
            writer,
            did,
            kind,
            cached: None,
        };
        if let Some(table) = self.tables.containing_mut(entry.0) {
            table.entries.insert(entry.0, new);
        }
    }

    fn judge_change(
        &mut self,
        entry: Hpa,
        before: Option<&Entry>,
        value: u64,
        did: Did,
        stamp: Stamp,
        kind: WriteKind,
    ) -> Judged {
        let old_raw = before.map_or(0, |before| before.raw);
        if old_raw == value {
            return Ok(());
        }
        let Some(at) = self.at(entry) else {
            return self.check_reuse(did, entry, value);
        };
        let Some(architecture) = self.architecture(at.vm) else {
            return Ok(());
        };
        let change = Change {
            at,
            before,
            old: architecture.decode_at(at.level, entry, old_raw),
            new: architecture.decode_at(at.level, entry, value),
            linking: Linking {
                did,
                stamp,
                kind,
                with_table: false,
            },
        };
        if kind != WriteKind::Exchange && hardware_may_change(&*architecture, at.level, old_raw) {
            return Err(lost_update(&change));
        }
        match (&change.old, &change.new) {
            (Descriptor::Invalid, new) => self.make(at, new, &change.linking),
            (Descriptor::Leaf(old), Descriptor::Leaf(new)) if same_page(old, new) => {
                self.adjust(&change, *old, *new)
            }
            (_, Descriptor::Invalid) => {
                self.replace(&change, Removal::Emptied);
                Ok(())
            }
            (Descriptor::Table(old), Descriptor::Table(new)) if old == new => Ok(()),
            _ if architecture.break_before_make() => Err(changed_while_valid(&change)),
            (_, new) => {
                self.replace(&change, Removal::Replaced);
                self.make(at, new, &change.linking)
            }
        }
    }

    /// An entry of a table that is not reachable was written: nobody may read it.
    fn check_reuse(&self, did: Did, entry: Hpa, value: u64) -> Judged {
        let Some(table) = self.tables.containing(entry.0) else {
            return Ok(());
        };
        let reads = |residue: &&Residue| {
            let (architecture, level) = (self.architecture(residue.vm), residue.level);
            architecture
                .zip(level.checked_sub(1))
                .is_some_and(|(it, level)| !matches!(it.decode(level, value), Descriptor::Invalid))
        };
        let mut pointers = self.residues.pointing_to(Hpa(table.span.start));
        let Some(residue) = pointers.find(reads) else {
            return Ok(());
        };
        let text = format!("made entry {entry} of the table cut off valid");
        Err(self.reused(residue, did, text))
    }

    /// The violation that a table is used again while CPUs may hold the pointer `residue` to it.
    pub(super) fn reused(&self, residue: &Residue, did: Did, text: String) -> Violation {
        let (story, missing) = (self.journal.story(residue), self.journal.missing(residue));
        did.breaks(Rule::TableReusedWhileCached, story, text, missing)
    }

    fn replace(&mut self, change: &Change<'_>, removal: Removal) {
        if let Some(before) = change.before {
            self.take_away(&change.at, before, change.linking.did, removal);
        }
    }

    /// A leaf is replaced by one for the same page: what it allows may change, and its accessed,
    /// dirty and software bits.
    fn adjust(&mut self, change: &Change<'_>, old: Leaf, new: Leaf) -> Judged {
        let Change { at, linking, .. } = change;
        let did = linking.did;
        self.check_dirt(change, &old, &new)?;
        if let Some(before) = change.before
            && Allows::of(&old).exceed(&Allows::of(&new))
        {
            self.leave_residue(at, before, Old::Leaf(old), did, Removal::Restricted);
        }
        self.check_runs(at, &change.new, did)?;
        self.check_leaf(at, &new, did)?;
        self.reach(at, &new, did);
        self.dirt_is_in_memory(at);
        Ok(())
    }

    fn check_dirt(&self, change: &Change<'_>, old: &Leaf, new: &Leaf) -> Judged {
        let Change {
            at,
            before,
            linking,
            ..
        } = change;
        let story = |rule, missing| {
            let text = format!("made of entry {}: {}", at.entry, story::leaf(at.gpa, new));
            let written = before.map(|it| it.did.line(story::leaf(at.gpa, old)));
            Err(linking
                .did
                .breaks(rule, written.into_iter().collect(), text, missing))
        };
        if old.dirty && !new.dirty {
            return story(Rule::LostDirtyBit, "the dirty bit in the new entry");
        }
        if new.dirty && !old.dirty && !self.may_be_dirty(at, new) {
            return story(Rule::InventedDirtyBit, "a write by the guest");
        }
        Ok(())
    }

    fn may_be_dirty(&self, at: &At, leaf: &Leaf) -> bool {
        let tree = self.trees.get(&at.vm);
        tree.is_some_and(|tree| tree.dirt.may_be_dirty(self.whole(at, leaf).gpa))
    }

    /// A leaf that was not there: is it as dirty as it should be?
    pub(super) fn check_new_dirt(&self, at: &At, leaf: &Leaf, linking: &Linking) -> Judged {
        let tree = self.trees.get(&at.vm);
        let was_dirty = tree.and_then(|tree| tree.dirt.was_dirty(at.gpa, leaf));
        let text = format!(
            "made entry {} valid: {}",
            at.entry,
            story::leaf(at.gpa, leaf)
        );
        match was_dirty {
            Some(removed) if linking.with_table && !leaf.dirty => {
                let story = vec![removed.line("removed a dirty leaf for the same page")];
                let missing = "the dirty bit: a block that is split hands it to its parts";
                Err(linking.did.breaks(Rule::LostDirtyBit, story, text, missing))
            }
            None if leaf.dirty && !self.may_be_dirty(at, leaf) => {
                let missing = "a write by the guest";
                Err(linking
                    .did
                    .breaks(Rule::InventedDirtyBit, vec![], text, missing))
            }
            _ => Ok(()),
        }
    }

    /// A walker set an accessed or dirty bit. A store of software that has not reached memory yet
    /// may come between; then what the walker found is not what the judge was told last, and the
    /// store, which comes after, decides.
    fn write_by_hardware(&mut self, entry: Hpa, value: u64) {
        let at = self.at(entry);
        let architecture = at.and_then(|at| self.architecture(at.vm));
        let table = self.tables.containing_mut(entry.0);
        let Some(found) = table.and_then(|table| table.entries.get_mut(&entry.0)) else {
            return;
        };
        let (Some(at), Some(architecture)) = (at, architecture) else {
            found.raw = value;
            return;
        };
        if !hardware_values(&*architecture, at.level, found.raw).contains(&Some(value)) {
            return;
        }
        found.raw = value;
        let did = found.did;
        if let Descriptor::Leaf(leaf) = architecture.decode_at(at.level, entry, value) {
            self.reach(&at, &leaf, did);
        }
    }
}

fn same_page(old: &Leaf, new: &Leaf) -> bool {
    old.hpa == new.hpa && old.memory == new.memory && old.run_bits == new.run_bits
}

/// What hardware may make of an entry.
fn hardware_values(architecture: &dyn Architecture, level: usize, raw: u64) -> [Option<u64>; 3] {
    if let Descriptor::Table(_) = architecture.decode(level, raw) {
        return [architecture.table_with_accessed(level, raw), None, None];
    }
    let accessed = architecture.with_accessed(level, raw);
    let dirty = architecture.with_dirty(level, raw);
    let both = accessed.and_then(|raw| architecture.with_dirty(level, raw));
    [accessed, dirty, both]
}

fn hardware_may_change(architecture: &dyn Architecture, level: usize, raw: u64) -> bool {
    let is_leaf = matches!(architecture.decode(level, raw), Descriptor::Leaf(_));
    let values = hardware_values(architecture, level, raw);
    is_leaf && values.iter().flatten().any(|value| *value != raw)
}

/// The violation that overwriting what was there is, with who wrote that.
fn overwritten(change: &Change<'_>, rule: Rule, text: String, missing: &str) -> Violation {
    let Change {
        at,
        before,
        old,
        linking,
        ..
    } = change;
    let was = story::descriptor(at.gpa, old);
    let written = before.map(|it| it.did.line(format!("wrote entry {}: {was}", at.entry)));
    let story = written.into_iter().collect();
    linking.did.breaks(rule, story, text, missing)
}

fn lost_update(change: &Change<'_>) -> Violation {
    let text = format!("overwrote entry {} by a store", change.at.entry);
    let missing = "an atomic exchange: the hardware may set a bit between the load and the store";
    overwritten(change, Rule::LostHardwareUpdate, text, missing)
}

fn changed_while_valid(change: &Change<'_>) -> Violation {
    let is = story::descriptor(change.at.gpa, &change.new);
    let text = format!("replaced it while it was valid: {is}");
    let missing = "an invalid entry in between, and its invalidation";
    overwritten(change, Rule::ChangedWhileValid, text, missing)
}

/// What a leaf lets the guest do.
#[derive(PartialEq, Eq)]
pub(super) struct Allows([bool; 3]);

impl Allows {
    pub(super) fn of(leaf: &Leaf) -> Self {
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];
        Self(kinds.map(|kind| leaf.allows(kind)))
    }

    /// Whether it allows something that `other` does not.
    fn exceed(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .any(|(ours, theirs)| *ours && !theirs)
    }
}
