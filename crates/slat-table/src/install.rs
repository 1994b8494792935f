//! Installing leaves under held stripes: link what tables are missing, store entries, and see what
//! is there already.
//!
//! An entry that is there is never overwritten (P4). One for the same memory is made to allow what
//! is wanted; anything else is a conflict, which the caller removes.

use core::ops::Range;

use crate::address::{Gpa, GpaRange};
use crate::attributes::Attributes;
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::format::{Entry, Format};
use crate::geometry::Level;
use crate::hold::{Place, Tree};
use crate::leaves::Leaves;
use crate::platform::Platform;
use crate::run::is_in_run;

/// What an installation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Leaves that were not there.
    pub new: u64,
    /// Leaves that were there and now allow more, or are young again.
    pub extended: u64,
    /// Leaves that were there and needed no change.
    pub present: u64,
    /// Where something else is in the way (P4): an entry for another address, of another memory
    /// type, or of another size, or a run that would have to allow more. The installation stopped
    /// there. Remove this range, then ask the host again.
    pub conflict: Option<GpaRange>,
}

impl Installed {
    /// Adds what was done after this.
    fn add(&mut self, after: &Self) {
        self.new += after.new;
        self.extended += after.extended;
        self.present += after.present;
        self.conflict = after.conflict;
    }
}

/// A cache without the table that an installation needs; fill it and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no table ready for level {}", .0.index())]
pub struct NoTableReady(pub Level);

enum Extended {
    Changed,
    Nothing,
    Conflict,
}

impl<F: Format, P: Platform> Tree<'_, F, P> {
    /// See [`Hold::install`](crate::hold::Hold::install).
    #[expect(clippy::inline_always, reason = "as for `Hold::install`")]
    #[inline(always)]
    pub(crate) fn install(
        self,
        leaves: &Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, NoTableReady> {
        let Leaves {
            range,
            level,
            count,
            first,
            ..
        } = *leaves;
        if count == 1 && self.install_where_empty(range.start(), level, first) {
            return Ok(Installed {
                new: 1,
                ..Installed::default()
            });
        }
        // By value: what callers know of the leaves need then not be in memory but for this.
        self.install_anywhere(*leaves, tables)
    }

    /// What is most of what is ever installed: one leaf, in a table that is there, where nothing
    /// is. False, and nothing is done, anywhere else.
    #[expect(clippy::inline_always, reason = "as for `Hold::install`")]
    #[inline(always)]
    fn install_where_empty(self, gpa: Gpa, lowest: Level, leaf: u64) -> bool {
        let Place { entry, level, raw } = self.descend(gpa, lowest);
        let empty = level == lowest && F::is_empty(level, raw);
        if empty {
            self.table.store(entry, leaf);
        }
        empty
    }

    #[inline(never)]
    fn install_anywhere(
        self,
        leaves: Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, NoTableReady> {
        let place = self.descend_making_tables(leaves.range.start(), leaves.level, tables)?;
        if place.level != leaves.level {
            return Ok(self.under_larger_leaf(&leaves, place));
        }
        Ok(self.install_leaves(&leaves, place))
    }

    /// Follows tables towards `gpa` down to `lowest`, making them where an entry is empty.
    fn descend_making_tables(
        self,
        gpa: Gpa,
        lowest: Level,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Place, NoTableReady> {
        loop {
            let place = self.descend(gpa, lowest);
            if place.level <= lowest || !F::is_empty(place.level, place.raw) {
                return Ok(place);
            }
            self.link_table(place, tables)?;
        }
    }

    /// Turns the empty entry at `place` into a table. The holder of another stripe may do the same
    /// at the same moment, so this is a compare-exchange; whoever loses uses the winner's.
    #[cold]
    fn link_table(
        self,
        place: Place,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<(), NoTableReady> {
        let Place { entry, level, raw } = place;
        let below = level.down().ok_or(NoTableReady(level))?;
        let fresh = tables.take(below).ok_or(NoTableReady(below))?;
        let pointer = F::table(&self.table.features, level, fresh);
        if self.table.compare_exchange(entry, raw, pointer).is_err() {
            tables.put_back(below, fresh);
        }
        Ok(())
    }

    /// Installs `leaves` in a table. Where they hold whole runs this is done in pieces that lie in
    /// one run or outside all.
    #[inline]
    fn install_leaves(self, leaves: &Leaves, table: Place) -> Installed {
        let shape = *self.table.geometry.shape(leaves.level);
        let count = leaves.count;
        if leaves.runs.is_none() {
            return self.install_alone(leaves, table, 0..count);
        }
        let mut installed = Installed::default();
        let mut start = 0;
        while start < count && installed.conflict.is_none() {
            let end = leaves.end_of_piece(start, shape);
            installed.add(&self.install_piece(leaves, table, start..end));
            start = end;
        }
        installed
    }

    /// Installs the leaves with these indexes, which lie where one run may be.
    fn install_piece(self, leaves: &Leaves, table: Place, piece: Range<u64>) -> Installed {
        let level = leaves.level;
        let shape = *self.table.geometry.shape(level);
        let place = Place {
            entry: entry_address::<F>(table.entry, piece.start),
            ..table
        };
        let entries = piece.end - piece.start;
        if let Some(first) = leaves.run(&piece, shape, F::leaf_step(level))
            && self.install_run(place, entries, first)
        {
            return Installed {
                new: entries,
                ..Installed::default()
            };
        }
        self.install_alone(leaves, table, piece)
    }

    /// Installs the leaves with these indexes one by one.
    #[inline]
    fn install_alone(
        self,
        leaves: &Leaves,
        table: Place,
        Range { mut start, end }: Range<u64>,
    ) -> Installed {
        let level = leaves.level;
        let mut installed = Installed::default();
        loop {
            let first = start;
            start = self.install_in_empty(leaves, table, start..end);
            installed.new += start - first;
            if start == end {
                return installed;
            }
            let entry = entry_address::<F>(table.entry, start);
            let raw = self.table.load(entry);
            let (after, met) = self.meet(leaves, Place { entry, level, raw }, start..end);
            installed.add(&met);
            if installed.conflict.is_some() {
                return installed;
            }
            start = after;
        }
    }

    /// Installs the leaves with these indexes as far as nothing is there. Returns the index of the
    /// first entry that is not empty.
    #[inline]
    fn install_in_empty(
        self,
        leaves: &Leaves,
        table: Place,
        Range { mut start, end }: Range<u64>,
    ) -> u64 {
        let step = F::leaf_step(leaves.level);
        let mut wanted = leaves.leaf(start, step);
        while start < end {
            let entry = entry_address::<F>(table.entry, start);
            if !F::is_empty(leaves.level, self.table.load(entry)) {
                break;
            }
            self.table.store(entry, wanted);
            start += 1;
            wanted = wanted.wrapping_add(step);
        }
        start
    }

    /// Deals with the leaf at `place`, which is where the first of `indexes` is to be: what is one
    /// of a run is met as a whole. Returns the index to go on with, too.
    #[cold]
    fn meet(self, leaves: &Leaves, place: Place, indexes: Range<u64>) -> (u64, Installed) {
        let mut installed = Installed::default();
        let index = indexes.start;
        let wanted = leaves.leaf(index, F::leaf_step(place.level));
        if place.raw == wanted {
            installed.present = 1;
            return (index + 1, installed);
        }
        if is_in_run::<F>(place.level, place.raw) {
            let end = leaves.end_of_piece(index, *self.table.geometry.shape(place.level));
            let end = end.min(indexes.end);
            self.meet_run(leaves, place, &(index..end), &mut installed);
            return (end, installed);
        }
        match self.extend(place, wanted) {
            Extended::Changed => installed.extended = 1,
            Extended::Nothing => installed.present = 1,
            Extended::Conflict => {
                let at = leaves.gpa(index, &self.table.geometry);
                installed.conflict = self.table.geometry.block(place.level, at);
            }
        }
        (index + 1, installed)
    }

    /// P4: adds what `wanted` allows to the leaf at `place` if they agree in address and memory
    /// type.
    fn extend(self, place: Place, wanted: u64) -> Extended {
        let decode = |raw| self.table.decode(place.level, raw);
        let (
            Entry::Leaf {
                hpa,
                attributes: old,
            },
            Entry::Leaf {
                hpa: new_hpa,
                attributes,
            },
        ) = (decode(place.raw), decode(wanted))
        else {
            return Extended::Conflict;
        };
        if hpa != new_hpa || old.memory != attributes.memory {
            return Extended::Conflict;
        }
        let union = |old: Attributes| Attributes {
            permissions: old.permissions.union(attributes.permissions),
            accessed: old.accessed || attributes.accessed,
            dirty: old.dirty || attributes.dirty,
            ..old
        };
        if union(old) == old {
            return Extended::Nothing;
        }
        if self.change_leaf(place, 0, union) {
            Extended::Changed
        } else {
            Extended::Conflict
        }
    }

    /// P4 for a run in the way. It stays as it is but for what hardware notes in leaves: one that
    /// allows more could not be told to all of its entries in one step.
    fn meet_run(
        self,
        leaves: &Leaves,
        place: Place,
        piece: &Range<u64>,
        installed: &mut Installed,
    ) {
        let at = leaves.gpa(piece.start, &self.table.geometry);
        let wanted = leaves.leaf(piece.start, F::leaf_step(leaves.level));
        let count = piece.end - piece.start;
        let Some(run) = self.table.run_at(place, at) else {
            installed.conflict = Some(leaves.range);
            return;
        };
        let (
            Entry::Leaf {
                hpa: base,
                attributes: old,
            },
            Entry::Leaf { hpa, attributes },
        ) = (
            self.table.decode(place.level, place.raw),
            self.table.decode(place.level, wanted),
        )
        else {
            installed.conflict = Some(run.range);
            return;
        };
        let same = self.table.hpa_behind(at, place.level, base, old) == hpa
            && old.memory == attributes.memory;
        let allows = old.permissions.union(attributes.permissions) == old.permissions;
        if !(same && allows) {
            installed.conflict = Some(run.range);
            return;
        }
        let noted = self.table.with_notes(&run, old);
        let note = |of: Attributes| Attributes {
            accessed: of.accessed || attributes.accessed,
            dirty: of.dirty || attributes.dirty,
            ..of
        };
        if note(noted) == noted {
            installed.present += count;
        } else if self.change_run(&run, note) {
            installed.extended += count;
        } else {
            installed.conflict = Some(run.range);
        }
    }

    /// A leaf larger than wanted is in the way: fine if it maps the same memory and allows as
    /// much, a conflict otherwise.
    #[cold]
    fn under_larger_leaf(self, leaves: &Leaves, place: Place) -> Installed {
        let start = leaves.range.start();
        let wanted = self.table.decode(leaves.level, leaves.first);
        if let (
            Entry::Leaf {
                hpa: base,
                attributes: old,
            },
            Entry::Leaf { hpa, attributes },
        ) = (self.table.decode(place.level, place.raw), wanted)
        {
            let same = self.table.hpa_behind(start, place.level, base, old) == hpa
                && old.memory == attributes.memory;
            let allows = old.permissions.union(attributes.permissions) == old.permissions;
            let noted = (old.accessed || !attributes.accessed) && (old.dirty || !attributes.dirty);
            if same && allows && noted {
                return Installed {
                    present: leaves.count,
                    ..Installed::default()
                };
            }
        }
        Installed {
            conflict: self.table.run_at(place, start).map(|run| run.range),
            ..Installed::default()
        }
    }

    /// Installs a run of `entries` leaves from `place` on, the first of which is `first`. False,
    /// and nothing is done, unless there is room for all of it.
    fn install_run(self, place: Place, entries: u64, first: u64) -> bool {
        let table = self.table;
        let each = || (0..entries).map(|index| entry_address::<F>(place.entry, index));
        if !each().all(|entry| F::is_empty(place.level, table.load(entry))) {
            return false;
        }
        let mut leaf = first;
        for entry in each() {
            table.store(entry, leaf);
            leaf = leaf.wrapping_add(F::run_step(place.level));
        }
        true
    }
}
