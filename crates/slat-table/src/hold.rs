//! Stripes of a table, held, and what may be done under them: descend, and install leaves.

use core::fmt;
use core::ops::Range;

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::format::{Entry, Format};
use crate::geometry::Level;
use crate::platform::Platform;
use crate::stripe::{Held, Snapshot, StripeSet};
use crate::table::{Leaves, PageTable};

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
    /// there. Remove this range, then ask the
    /// host again.
    pub conflict: Option<GpaRange>,
}

/// Where a descent ended: an entry that is no table pointer, or one of the level asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) entry: Hpa,
    pub(crate) level: Level,
    pub(crate) raw: u64,
}

/// Some stripes of a table, held. Entries under them do not change but by the holder's hand and,
/// in their accessed and dirty bits, the hardware's.
pub struct Hold<'t, F: Format, P: Platform> {
    table: &'t PageTable<F, P>,
    held: Held<'t, P::Locks>,
}

/// A cache without the table that an installation needs; fill it and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no table ready for level {}", .0.index())]
pub struct NoTableReady(pub Level);

impl<'t, F: Format, P: Platform> Hold<'t, F, P> {
    #[inline]
    pub(crate) fn new(table: &'t PageTable<F, P>, held: Held<'t, P::Locks>) -> Self {
        Self { table, held }
    }

    /// P3: whether no removal is in progress on the held stripes and none has ended since
    /// `snapshot` was taken of them.
    #[inline]
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.held.is_current(snapshot)
    }

    /// Whether the held stripes are all that an installation of `leaves` needs.
    #[inline]
    pub fn covers(&self, leaves: &Leaves) -> bool {
        self.held
            .set()
            .covers(self.table.stripes.covering(&leaves.range))
    }

    pub(crate) fn table(&self) -> &PageTable<F, P> {
        self.table
    }

    pub(crate) fn stripes(&self) -> StripeSet {
        self.held.set()
    }

    pub(crate) fn others_active(&self) -> bool {
        self.held.others_active()
    }

    pub(crate) fn sequences(&self) -> Snapshot {
        self.held.snapshot()
    }

    /// Installs `leaves`, with tables from `tables` where they are missing. Stops at the first
    /// entry that is in the way ([`Installed::conflict`]); never overwrites one (P4).
    ///
    /// The caller has checked [`is_current`](Self::is_current) in this hold.
    ///
    /// # Errors
    ///
    /// [`NoTableReady`] if `tables` was not filled or is another table's, or if the hold does not
    /// cover the leaves;
    /// no leaf is installed then.
    #[inline]
    pub fn install(
        &mut self,
        leaves: &Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, NoTableReady> {
        if !self.covers(leaves) || !tables.is_for(self.table) {
            return Err(NoTableReady(leaves.level));
        }
        let place = self.descend_making_tables(leaves.range.start(), leaves.level, tables)?;
        if place.level != leaves.level {
            return Ok(self.under_larger_leaf(leaves, &place));
        }
        Ok(self.install_leaves(leaves, &place))
    }

    /// Installs `leaves` in a table, in pieces that lie in one run or outside all: what is one of
    /// a run is met as a whole.
    #[inline]
    fn install_leaves(&self, leaves: &Leaves, table: &Place) -> Installed {
        let shape = self.table.geometry.shape(leaves.level);
        let count = leaves.range.bytes() >> shape.shift;
        let mut installed = Installed::default();
        if shape.run_bits == 0 {
            self.install_alone(leaves, table, 0..count, &mut installed);
            return installed;
        }
        let run = 1u64 << shape.run_bits;
        // Entries from the start of the run that the first leaf lies in.
        let ahead = (leaves.range.start().raw() >> shape.shift) & (run - 1);
        let mut start = 0;
        while start < count && installed.conflict.is_none() {
            let end = count.min((start + ahead) / run * run + run - ahead);
            self.install_piece(leaves, table, start..end, run, &mut installed);
            start = end;
        }
        installed
    }

    /// Installs the leaves with these indexes, which lie where one run of `run` entries may be.
    #[inline]
    fn install_piece(
        &self,
        leaves: &Leaves,
        table: &Place,
        piece: Range<u64>,
        run: u64,
        installed: &mut Installed,
    ) {
        let level = leaves.level;
        let entry = entry_address::<F>(table.entry, piece.start);
        let raw = self.table.load(entry);
        let place = Place { entry, level, raw };
        if F::is_empty(level, place.raw) {
            if let Some(first) = leaves.run(&piece, run, F::leaf_step(level))
                && self.install_run(&place, run, first)
            {
                installed.new += run;
                return;
            }
        } else if self.table.is_in_run(level, place.raw) {
            return self.meet_run(leaves, &place, &piece, installed);
        }
        self.install_alone(leaves, table, piece, installed);
    }

    /// Installs the leaves with these indexes one by one.
    #[inline]
    fn install_alone(
        &self,
        leaves: &Leaves,
        table: &Place,
        indexes: Range<u64>,
        installed: &mut Installed,
    ) {
        let level = leaves.level;
        let step = F::leaf_step(level);
        let mut wanted = leaves.leaf(indexes.start, step);
        for index in indexes {
            let entry = entry_address::<F>(table.entry, index);
            let raw = self.table.load(entry);
            if F::is_empty(level, raw) {
                self.table.store(entry, wanted);
                installed.new += 1;
            } else if raw == wanted {
                installed.present += 1;
            } else {
                let place = Place { entry, level, raw };
                match self.extend(&place, wanted) {
                    Extended::Changed => installed.extended += 1,
                    Extended::Nothing => installed.present += 1,
                    Extended::Conflict => {
                        let at = leaves.gpa(index, &self.table.geometry);
                        installed.conflict = self.table.geometry.block(level, at);
                        return;
                    }
                }
            }
            wanted = wanted.wrapping_add(step);
        }
    }

    /// P4: adds what `wanted` allows to the leaf at `place` if they agree in address and memory
    /// type.
    fn extend(&self, place: &Place, wanted: u64) -> Extended {
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
        &self,
        leaves: &Leaves,
        place: &Place,
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
    fn under_larger_leaf(&self, leaves: &Leaves, place: &Place) -> Installed {
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
                let present = leaves.range.bytes() >> self.table.geometry.shape(leaves.level).shift;
                return Installed {
                    present,
                    ..Installed::default()
                };
            }
        }
        Installed {
            conflict: self.table.run_at(place, start).map(|run| run.range),
            ..Installed::default()
        }
    }

    /// Changes what the leaf at `place` says, whatever the hardware notes in it meanwhile. The
    /// leaf maps what is `offset` bytes behind the address that it decodes to. False if the format
    /// cannot express what it is to say, or the entry is no leaf.
    pub(crate) fn change_leaf(
        &self,
        place: &Place,
        offset: u64,
        change: impl Fn(Attributes) -> Attributes,
    ) -> bool {
        let mut raw = place.raw;
        loop {
            let Entry::Leaf { hpa, attributes } = self.table.decode(place.level, raw) else {
                return false;
            };
            let hpa = Hpa::new(hpa.raw() | offset);
            let Ok(new) = F::leaf(&self.table.features, place.level, hpa, change(attributes))
            else {
                return false;
            };
            if new == raw {
                return true;
            }
            // P9: the hardware may set bits of a live entry at any moment.
            match self.table.compare_exchange(place.entry, raw, new) {
                Ok(()) => return true,
                Err(found) => raw = found,
            }
        }
    }

    /// Follows tables towards `gpa`, no further than `lowest`.
    #[inline]
    pub(crate) fn descend(&self, gpa: Gpa, lowest: Level) -> Place {
        let mut level = self.table.geometry.root();
        let mut table = self.table.root;
        loop {
            let entry = entry_address::<F>(table, self.table.geometry.index(level, gpa));
            let raw = self.table.load(entry);
            match level.down() {
                Some(below) if level > lowest && F::is_table(level, raw) => {
                    table = F::address(&self.table.features, level, raw);
                    level = below;
                }
                _ => return Place { entry, level, raw },
            }
        }
    }

    /// Follows tables towards `gpa` down to `lowest`, making them where an entry is empty.
    #[inline]
    fn descend_making_tables(
        &mut self,
        gpa: Gpa,
        lowest: Level,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Place, NoTableReady> {
        let mut level = self.table.geometry.root();
        let mut table = self.table.root;
        while let Some(below) = level.down() {
            if level <= lowest {
                break;
            }
            let entry = entry_address::<F>(table, self.table.geometry.index(level, gpa));
            let mut raw = self.table.load(entry);
            if F::is_empty(level, raw) {
                raw = self.link_table(entry, level, below, raw, tables)?;
            }
            if !F::is_table(level, raw) {
                return Ok(Place { entry, level, raw });
            }
            table = F::address(&self.table.features, level, raw);
            level = below;
        }
        let entry = entry_address::<F>(table, self.table.geometry.index(level, gpa));
        Ok(Place {
            entry,
            level,
            raw: 0,
        })
    }

    /// Turns the empty `entry` of `level` into a table. The holder of another stripe may do the
    /// same at the same moment, so this is a compare-exchange; whoever loses uses the winner's.
    #[cold]
    fn link_table(
        &self,
        entry: Hpa,
        level: Level,
        below: Level,
        empty: u64,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<u64, NoTableReady> {
        let fresh = tables.take(below).ok_or(NoTableReady(below))?;
        let raw = F::table(&self.table.features, level, fresh);
        match self.table.compare_exchange(entry, empty, raw) {
            Ok(()) => Ok(raw),
            Err(winner) => {
                tables.put_back(below, fresh);
                Ok(winner)
            }
        }
    }
}

enum Extended {
    Changed,
    Nothing,
    Conflict,
}

impl<F: Format, P: Platform> fmt::Debug for Hold<'_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("stripes", &self.held.set())
            .finish_non_exhaustive()
    }
}
