//! Stripes of a table, held, and what may be done under them: descend, change leaves, and install
//! them (`install.rs`).

use core::fmt;

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::format::{Entry, Format};
use crate::geometry::Level;
pub use crate::install::{Installed, NoTableReady};
use crate::platform::Platform;
use crate::stripe::{Held, Room, Several, Snapshot, StripeSet};
use crate::table::{Leaves, PageTable};

/// Where a descent ended: an entry that is no table pointer, or one of the level asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) entry: Hpa,
    pub(crate) level: Level,
    pub(crate) raw: u64,
}

/// Some stripes of a table, held. Entries under them do not change but by the holder's hand and,
/// in their accessed and dirty bits, the hardware's.
///
/// `R` is for how many stripes there is room: [`One`](crate::stripe::One) where all that is held
/// for lies in one span ([`PageTable::hold_span`]).
pub struct Hold<'t, F: Format, P: Platform, R: Room = Several> {
    table: &'t PageTable<F, P>,
    /// Where all may be installed, by the stripes that are held.
    range: Option<GpaRange>,
    held: Held<'t, P::Locks, R>,
}

/// The tree under a [`Hold`], from which it is borrowed: who has this holds stripes. A hold is as
/// large as the guards that it has room for; this is a reference, so what is done under a hold need
/// not be compiled for each size of it, nor the hold be kept in memory for its sake.
pub(crate) struct Tree<'h, F: Format, P: Platform> {
    pub(crate) table: &'h PageTable<F, P>,
}

impl<F: Format, P: Platform> Clone for Tree<'_, F, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format, P: Platform> Copy for Tree<'_, F, P> {}

impl<'t, F: Format, P: Platform, R: Room> Hold<'t, F, P, R> {
    #[inline]
    pub(crate) fn new(
        table: &'t PageTable<F, P>,
        range: Option<GpaRange>,
        held: Held<'t, P::Locks, R>,
    ) -> Self {
        Self { table, range, held }
    }

    /// P3: whether no removal is in progress on the held stripes and none has ended since
    /// `snapshot` was taken of them.
    #[inline]
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.held.is_current(snapshot)
    }

    /// Whether `leaves` lie where this hold is held for: their range, or the span.
    #[inline]
    pub fn covers(&self, leaves: &Leaves) -> bool {
        self.range.is_some_and(|range| range.covers(&leaves.range))
    }

    #[inline]
    pub(crate) fn tree(&self) -> Tree<'_, F, P> {
        Tree { table: self.table }
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
    #[expect(
        clippy::inline_always,
        reason = "for one leaf, what callers know of it when compiled leaves little of this"
    )]
    #[inline(always)]
    pub fn install(
        &mut self,
        leaves: &Leaves,
        tables: &mut TableCache<'_, F, P>,
    ) -> Result<Installed, NoTableReady> {
        if !self.covers(leaves) || !tables.is_for(self.table) {
            return Err(NoTableReady(leaves.level));
        }
        self.tree().install(leaves, tables)
    }

    /// Follows tables towards `gpa`, no further than `lowest`.
    #[inline]
    pub(crate) fn descend(&self, gpa: Gpa, lowest: Level) -> Place {
        self.tree().descend(gpa, lowest)
    }
}

impl<F: Format, P: Platform> Tree<'_, F, P> {
    /// Follows tables towards `gpa`, no further than `lowest`.
    #[inline]
    pub(crate) fn descend(self, gpa: Gpa, lowest: Level) -> Place {
        let root = self.table.geometry.root();
        let mut place = self.place(root, self.table.root, self.table.geometry.index(root, gpa));
        // A loop over what is known when it is compiled, so that it becomes straight code with
        // constants; which of the levels there are is known only when it runs.
        for (level, index) in F::SHIFTS.windows(2).enumerate().rev() {
            let level = Level::from_index(level);
            if level >= root {
                continue;
            }
            if level < lowest || !F::is_table(level.up(), place.raw) {
                break;
            }
            let table = F::address(&self.table.features, level.up(), place.raw);
            let [shift, above] = [index[0], index[1]];
            let index = gpa.raw() >> shift & ((1 << (above - shift)) - 1);
            place = self.place(level, table, index);
        }
        place
    }

    /// What is at `index` in `table`, which is of `level`.
    #[inline]
    fn place(self, level: Level, table: Hpa, index: u64) -> Place {
        let entry = entry_address::<F>(table, index);
        let raw = self.table.load(entry);
        Place { entry, level, raw }
    }

    /// Changes what the leaf at `place` says, whatever the hardware notes in it meanwhile. The
    /// leaf maps what is `offset` bytes behind the address that it decodes to. False if the format
    /// cannot express what it is to say, or the entry is no leaf.
    pub(crate) fn change_leaf(
        self,
        place: Place,
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
}

impl<F: Format, P: Platform, R: Room> fmt::Debug for Hold<'_, F, P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("stripes", &self.held.set())
            .finish_non_exhaustive()
    }
}
