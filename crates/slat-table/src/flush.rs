//! TLB work as a value that owns what must outlive it.
//!
//! Taking translations away returns a [`Flush`]. Dropping it makes the hardware forget, and only
//! then frees the tables that were detached (P7): a table cannot be freed too early because
//! nobody else has it.

use alloc::vec::Vec;
use core::fmt;

use crate::address::{GpaRange, Hpa};
use crate::format::Format;
use crate::geometry::Level;
use crate::platform::{Platform, TlbWork};
use crate::table::PageTable;

/// How many detached tables a flush can hold before it must be carried out.
const DETACHED: usize = 64;

/// A table cut off from the tree together with everything below it.
#[derive(Clone, Copy)]
struct Detached {
    table: Hpa,
    level: Level,
}

/// What a removal owes: translations to be forgotten, and tables to be freed after that.
pub(crate) struct Owed<'t, F: Format, P: Platform> {
    table: &'t PageTable<F, P>,
    work: TlbWork,
    detached: Vec<Detached>,
}

impl<'t, F: Format, P: Platform> Owed<'t, F, P> {
    pub(crate) fn nothing(table: &'t PageTable<F, P>) -> Self {
        Self {
            table,
            work: TlbWork::default(),
            detached: Vec::new(),
        }
    }

    /// Moves it out and leaves nothing owed.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::nothing(self.table))
    }

    pub(crate) fn add(&mut self, work: &TlbWork) {
        self.work.merge(work);
    }

    /// Makes room for one detached table, to be called with no stripe held. Carries the flush
    /// out if that is what it takes. False if there is no memory: then nothing may be detached.
    pub(crate) fn make_room_for_table(&mut self) -> bool {
        if self.detached.len() >= DETACHED {
            self.carry_out();
        }
        self.detached.len() < self.detached.capacity()
            || self.detached.try_reserve_exact(DETACHED).is_ok()
            || self.carry_out_for_room()
    }

    fn carry_out_for_room(&mut self) -> bool {
        self.carry_out();
        self.detached.capacity() > 0
    }

    /// Owns `table`, a table of `level` cut off from the tree, which mapped `range`.
    /// [`make_room_for_table`](Self::make_room_for_table) must have said yes.
    pub(crate) fn detach(&mut self, table: Hpa, level: Level, range: GpaRange) {
        // A removed table may sit in walk caches, so no leaf-only hint (P6).
        self.work.merge(&TlbWork::everything_in(range));
        self.detached.push(Detached { table, level });
    }

    /// Makes the hardware forget, then frees the tables. No stripe may be held.
    pub(crate) fn carry_out(&mut self) {
        if !self.work.is_empty() {
            self.table.platform().flush(&self.work);
            self.table.count_flush();
            self.work = TlbWork::default();
        }
        for detached in self.detached.drain(..) {
            self.table.free_subtree(detached.level, detached.table);
        }
    }
}

/// Translations to be forgotten and tables to be freed after that. Carried out when dropped, or
/// with the next flush of the same removal if postponed.
///
/// `'r` is the removal under way: its stripes stay marked until the flush is complete. One that is
/// forgotten is carried out at the removal's end.
#[must_use = "a flush is carried out when it is dropped: drop it where that is meant to happen"]
pub struct Flush<'r, 't, F: Format, P: Platform>(&'r mut Owed<'t, F, P>);

impl<'r, 't, F: Format, P: Platform> Flush<'r, 't, F, P> {
    pub(crate) fn of(owed: &'r mut Owed<'t, F, P>) -> Self {
        Self(owed)
    }

    /// Whether nothing needs to be forgotten.
    pub fn is_empty(&self) -> bool {
        self.0.work.is_empty() && self.0.detached.is_empty()
    }

    /// What is to be forgotten.
    pub fn work(&self) -> &TlbWork {
        &self.0.work
    }

    /// Leaves it to be carried out together with the next flush of the same removal, or at its
    /// end.
    pub fn postpone(self) {
        core::mem::forget(self);
    }
}

impl<F: Format, P: Platform> Drop for Flush<'_, '_, F, P> {
    fn drop(&mut self) {
        self.0.carry_out();
    }
}

impl<F: Format, P: Platform> fmt::Debug for Flush<'_, '_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flush")
            .field("work", &self.0.work)
            .field("detached", &self.0.detached.len())
            .finish()
    }
}
