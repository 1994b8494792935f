//! Stripes of a table, held, and what may be done under them: descend, change leaves, and install
//! them (`install.rs`).

use core::fmt;

use crate::address::{Gpa, Hpa};
use crate::attributes::Attributes;
use crate::cache::TableCache;
use crate::entry::entry_address;
use crate::format::{Entry, Format};
use crate::geometry::Level;
pub use crate::install::{Installed, NoTableReady};
use crate::platform::Platform;
use crate::stripe::{Held, MAX_STRIPES, Snapshot, StripeSet};
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
/// `N` is how many stripes there is room for: 1 is enough for what lies in one span
/// ([`PageTable::hold_span`]).
pub struct Hold<'t, F: Format, P: Platform, const N: usize = MAX_STRIPES> {
    table: &'t PageTable<F, P>,
    held: Held<'t, P::Locks, N>,
}

/// The tree under a [`Hold`], from which it is borrowed: who has this holds stripes. A hold is as
/// large as the guards that it has room for; this is a reference, so what is done under a hold need
/// not be compiled for each size of it, nor the hold be kept in memory for its sake.
pub(crate) struct Tree<'h, F: Format, P: Platform> {
    pub(crate) table: &'h PageTable<F, P>,
}

impl<'t, F: Format, P: Platform, const N: usize> Hold<'t, F, P, N> {
    #[inline]
    pub(crate) fn new(table: &'t PageTable<F, P>, held: Held<'t, P::Locks, N>) -> Self {
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
    #[inline]
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
}

impl<F: Format, P: Platform, const N: usize> fmt::Debug for Hold<'_, F, P, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("stripes", &self.held.set())
            .finish_non_exhaustive()
    }
}
