//! The tree: a root, the tables below it, and how to get hold of them.
//!
//! A [`PageTable`] is shared by all vCPUs of a VM. Adding translations goes through a [`Hold`]:
//! encode [`Leaves`] first, hold the stripes of their range, check that what the host said is
//! still true ([`Hold::is_current`], P3), [`install`](Hold::install), let go, and
//! [`settle`](PageTable::settle). Taking them away goes through a
//! [`Restriction`](crate::restriction::Restriction).

use core::fmt;

use crate::address::{Gpa, GpaRange, Hpa};
use crate::cache::OutOfTables;
use crate::entry::entry_address;
use crate::format::{Entry, Format, GeometryError, Rules};
use crate::geometry::{Geometry, Level};
use crate::hold::{Hold, Installed};
pub use crate::leaves::{Leaves, LeavesError};
use crate::platform::Platform;
use crate::stripe::{MAX_STRIPES, One, Snapshot, StripeSet, Stripes, span_around, span_shift};
use crate::sync::{Counter, Ordering};

/// How to shape a new table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Width of a guest physical address in bits.
    pub address_bits: u8,
    /// Number of stripes: a power of two, at most [`MAX_STRIPES`].
    pub stripes: usize,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            address_bits: 40,
            stripes: MAX_STRIPES,
        }
    }
}

/// Why a table could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NewTableError {
    /// The address width does not suit the format or the hardware.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The number of stripes is no power of two or too large.
    #[error("{0} stripes: need a power of two, at most {MAX_STRIPES}")]
    Stripes(usize),
    /// The format's tables have no room for its entries.
    #[error("tables of {0} have no room for their entries")]
    Entries(&'static str),
    /// The format's tree is not the one that its [`Format::SHIFTS`] describe.
    #[error("levels of {0} map other sizes than the format says")]
    Shifts(&'static str),
    /// No memory for the stripes.
    #[error("no memory for {0} stripes")]
    NoMemory(usize),
    /// No memory for the root.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
}

/// A number that the hardware cannot tell from another VM's: both would use each other's
/// translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VM number {vmid:#x}: the hardware tells VMs apart by {bits} bits")]
pub struct VmidError {
    /// The number.
    pub vmid: u16,
    /// Bits that count.
    pub bits: u8,
}

/// Second-level page tables of one VM.
pub struct PageTable<F: Format, P: Platform> {
    platform: P,
    pub(crate) features: F::Features,
    rules: Rules,
    pub(crate) geometry: Geometry,
    pub(crate) root: Hpa,
    pub(crate) stripes: Stripes<F, P::Locks>,
    tables: Counter,
    table_bytes: Counter,
    flushes: Counter,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// An empty tree.
    ///
    /// # Errors
    ///
    /// [`NewTableError`]; nothing is allocated then.
    pub fn new(
        platform: P,
        features: F::Features,
        options: TableOptions,
    ) -> Result<Self, NewTableError> {
        let geometry = F::geometry(&features, options.address_bits)?;
        if !geometry.holds_entries_of(F::ENTRY_BYTES) {
            return Err(NewTableError::Entries(F::NAME));
        }
        if !geometry.has_shifts(F::SHIFTS) {
            return Err(NewTableError::Shifts(F::NAME));
        }
        let count = options.stripes;
        if !count.is_power_of_two() || count > MAX_STRIPES {
            return Err(NewTableError::Stripes(count));
        }
        let stripes = Stripes::new(count).map_err(|_| NewTableError::NoMemory(count))?;
        let mut table = Self {
            platform,
            rules: F::rules(&features),
            features,
            geometry,
            root: Hpa::new(0),
            stripes,
            tables: Counter::new(0),
            table_bytes: Counter::new(0),
            flushes: Counter::new(0),
        };
        // A failure here drops `table`, which frees nothing as it counts no tables.
        table.root = table.allocate_table(geometry.root())?;
        Ok(table)
    }

    /// What the root pointer must hold for the VM named `vmid`.
    ///
    /// # Errors
    ///
    /// [`VmidError`], if the hardware would take it for another VM's.
    pub fn root(&self, vmid: u16) -> Result<F::Root, VmidError> {
        let bits = F::vmid_bits(&self.features);
        if u32::from(vmid) >> bits != 0 {
            return Err(VmidError { vmid, bits });
        }
        Ok(F::root(&self.features, &self.geometry, self.root, vmid))
    }

    /// The tree's shape.
    #[inline]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What the hardware at hand has.
    #[inline]
    pub fn features(&self) -> &F::Features {
        &self.features
    }

    /// What the hardware at hand asks of us.
    #[inline]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The machine below.
    #[inline]
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Tables in use, the root and those waiting in caches included.
    pub fn tables(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Bytes of tables in use, the root and those waiting in caches included.
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes.load(Ordering::Relaxed)
    }

    /// Flushes carried out so far on all CPUs.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// P2: the invalidation sequences over `range`, to be taken before the host is asked what is
    /// behind it.
    #[inline]
    pub fn snapshot(&self, range: &GpaRange) -> Snapshot {
        self.stripes.snapshot(range)
    }

    /// The page around `gpa`. `None` if its end is no number.
    #[inline]
    pub fn page(&self, gpa: Gpa) -> Option<GpaRange> {
        GpaRange::aligned_block(gpa, F::shift(Level::PAGE))
    }

    /// Whether `range` touches one span only.
    #[inline]
    pub fn is_in_one_span(&self, range: &GpaRange) -> bool {
        let last = range.end().raw() - 1;
        (range.start().raw() ^ last) >> span_shift::<F>() == 0
    }

    /// Holds the stripes of all spans that `range` touches.
    #[inline]
    pub fn hold(&self, range: &GpaRange) -> Hold<'_, F, P> {
        let held = self.stripes.hold(self.stripes.covering(range));
        Hold::new(self, Some(*range), held)
    }

    /// Holds the stripe of the span around `gpa`: what [`hold`](Self::hold) does for a range in
    /// one span, at less cost.
    #[expect(
        clippy::inline_always,
        reason = "one lock is taken, and what is returned need not be in memory"
    )]
    #[inline(always)]
    pub fn hold_span(&self, gpa: Gpa) -> Hold<'_, F, P, One> {
        Hold::new(self, span_around::<F>(gpa), self.stripes.hold_one(gpa))
    }

    /// Holds `set`, under which nothing will be installed.
    pub(crate) fn hold_stripes(&self, set: StripeSet) -> Hold<'_, F, P> {
        Hold::new(self, None, self.stripes.hold(set))
    }

    /// Finishes an installation over `range` once its hold is let go: makes the entries visible
    /// to table walkers, and drops what this CPU may have cached of the old ones (P4: permission
    /// faults and spurious faults, and invalid entries where the hardware keeps those).
    #[inline]
    pub fn settle(&self, installed: &Installed, range: GpaRange) {
        self.platform.publish();
        let cached_invalid = self.rules.caches_invalid && installed.new != 0;
        if cached_invalid || installed.extended != 0 || installed.present != 0 {
            self.platform.flush_local(range);
        }
    }

    /// The part of `range` inside the guest's address width, with pages that it touches in part
    /// (where the format's are larger than 4 KiB) taken in whole.
    pub(crate) fn within_address_width(&self, range: &GpaRange) -> Option<GpaRange> {
        let part = range.intersection(&self.all_addresses()?)?;
        let first = self.geometry.block(Level::PAGE, part.start())?;
        let last = self
            .geometry
            .block(Level::PAGE, Gpa::new(part.end().raw() - 1))?;
        Some(first.hull(&last))
    }

    fn all_addresses(&self) -> Option<GpaRange> {
        GpaRange::between(Gpa::new(0), self.geometry.end())
    }

    pub(crate) fn allocate_table(&self, level: Level) -> Result<Hpa, OutOfTables> {
        let bytes = self.geometry.shape(level).table_bytes;
        let table = self.platform.allocate(bytes).ok_or(OutOfTables { bytes })?;
        // A pointer without room for all of the address would send walkers somewhere else.
        let pointer = F::table(&self.features, level.up(), table);
        if F::address(&self.features, level.up(), pointer) != table {
            self.platform.free(table, bytes);
            return Err(OutOfTables { bytes });
        }
        let empty = F::empty(level);
        if empty != 0 {
            self.fill(table, self.entries(level), empty);
        }
        self.tables.fetch_add(1, Ordering::Relaxed);
        self.table_bytes
            .fetch_add(u64::from(bytes), Ordering::Relaxed);
        Ok(table)
    }

    pub(crate) fn free_table(&self, level: Level, table: Hpa) {
        let bytes = self.geometry.shape(level).table_bytes;
        self.platform.free(table, bytes);
        self.tables.fetch_sub(1, Ordering::Relaxed);
        self.table_bytes
            .fetch_sub(u64::from(bytes), Ordering::Relaxed);
    }

    /// Frees a table that nobody can reach any more, and all below it.
    pub(crate) fn free_subtree(&self, level: Level, table: Hpa) {
        if let Some(below) = level.down() {
            for index in 0..self.entries(level) {
                let raw = self.load(entry_address::<F>(table, index));
                if F::is_table(level, raw) {
                    self.free_subtree(below, F::address(&self.features, level, raw));
                }
            }
        }
        self.free_table(level, table);
    }

    pub(crate) fn entries(&self, level: Level) -> u64 {
        1 << self.geometry.shape(level).index_bits
    }

    #[inline]
    pub(crate) fn decode(&self, level: Level, raw: u64) -> Entry {
        F::decode(&self.features, level, raw)
    }
}

impl<F: Format, P: Platform> Drop for PageTable<F, P> {
    fn drop(&mut self) {
        if self.root != Hpa::new(0) {
            if let Some(all) = self.all_addresses() {
                self.platform
                    .flush(&crate::platform::TlbWork::everything_in(all));
            }
            self.free_subtree(self.geometry.root(), self.root);
        }
    }
}

impl<F: Format, P: Platform> fmt::Debug for PageTable<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable")
            .field("format", &F::NAME)
            .field("features", &self.features)
            .field("geometry", &self.geometry)
            .field("root", &self.root)
            .field("tables", &self.tables())
            .finish_non_exhaustive()
    }
}
