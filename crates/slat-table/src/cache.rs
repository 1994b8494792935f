//! Tables made ready before any lock is taken.
//!
//! Under a stripe nothing allocates. Whoever may need new tables owns a [`TableCache`] and fills
//! it first; one table for each level below the root is enough for any single step.

use core::fmt;

use crate::address::Hpa;
use crate::format::Format;
use crate::geometry::{Level, MAX_LEVELS};
use crate::platform::Platform;
use crate::table::PageTable;

/// No memory for a table, or none that the format can point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a table of {bytes} bytes")]
pub struct OutOfTables {
    /// Size of the table asked for.
    pub bytes: u32,
}

/// Up to one empty table per level, owned by one vCPU or one operation. Dropping it gives them
/// back.
pub struct TableCache<'t, F: Format, P: Platform> {
    table: &'t PageTable<F, P>,
    ready: [Option<Hpa>; MAX_LEVELS],
    /// Nothing is missing in `ready`: most operations take nothing, and need not look through it.
    full: bool,
}

impl<'t, F: Format, P: Platform> TableCache<'t, F, P> {
    /// An empty cache for `table`.
    pub fn new(table: &'t PageTable<F, P>) -> Self {
        Self {
            table,
            ready: [None; MAX_LEVELS],
            full: false,
        }
    }

    /// Allocates what is missing: afterwards there is a table for each level below the root.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`]; what was allocated before stays in the cache.
    #[inline]
    pub fn fill(&mut self) -> Result<(), OutOfTables> {
        if self.full {
            return Ok(());
        }
        self.allocate_missing()
    }

    #[cold]
    fn allocate_missing(&mut self) -> Result<(), OutOfTables> {
        let mut filled = false;
        for level in self.table.geometry().levels_below_root() {
            let ready = &mut self.ready[level.index()];
            if ready.is_none() {
                *ready = Some(self.table.allocate_table(level)?);
                filled |= F::empty(level) != 0;
            }
        }
        if filled {
            // A walker must not find zeros in a table that is linked: they may map something.
            self.table.platform().publish();
        }
        self.full = true;
        Ok(())
    }

    /// Whether its tables are for `table`.
    #[inline]
    pub(crate) fn is_for(&self, table: &PageTable<F, P>) -> bool {
        core::ptr::eq(self.table, table)
    }

    /// Takes the table for `level`.
    pub(crate) fn take(&mut self, level: Level) -> Option<Hpa> {
        self.full = false;
        self.ready[level.index()].take()
    }

    /// Puts back an empty table that was not needed after all.
    pub(crate) fn put_back(&mut self, level: Level, table: Hpa) {
        self.ready[level.index()] = Some(table);
    }
}

impl<F: Format, P: Platform> Drop for TableCache<'_, F, P> {
    fn drop(&mut self) {
        for level in self.table.geometry().levels_below_root() {
            if let Some(table) = self.ready[level.index()].take() {
                self.table.free_table(level, table);
            }
        }
    }
}

impl<F: Format, P: Platform> fmt::Debug for TableCache<'_, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableCache")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}
