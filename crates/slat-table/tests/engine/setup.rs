//! A table of any row of the catalogue, driven as an embedder does, and the sizes of its tree.
//!
//! Scenarios are generic over the format and take their sizes from a [`Bench`]. Where a format lacks
//! something (blocks, an execute bit, a page that was not used), they ask whether its encoder takes
//! it.

use std::sync::Arc;

use slat_table::address::{Gpa, GpaRange, Hpa};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::lock::StdLocks;
use slat_table::platform::TlbWork;
use slat_table::restriction::PartialBlock;
use slat_table::simulated::{Event, SimulatedPlatform};
use slat_table::table::{PageTable, TableOptions};

use crate::operations::host_bits;

pub(crate) type Machine = SimulatedPlatform<StdLocks>;
pub(crate) type Table<F> = PageTable<F, Machine>;

pub(crate) const PAGE: Level = Level::PAGE;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
pub(crate) const ROM: Attributes = Attributes::new(Permissions::READ, MemoryType::WriteBack);
pub(crate) const DEVICE: Attributes = Attributes::new(Permissions::READ_WRITE, MemoryType::Device);

pub(crate) fn gpa(raw: u64) -> Gpa {
    Gpa::new(raw)
}

pub(crate) fn hpa(raw: u64) -> Hpa {
    Hpa::new(raw)
}

pub(crate) fn range(start: u64, bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), bytes).expect("a range of pages")
}

/// A table of one row, its machine, and the sizes of its tree.
pub(crate) struct Bench<F: Format> {
    pub(crate) machine: Machine,
    /// Shared, so that something can be done to it in the middle of a flush.
    pub(crate) table: Arc<Table<F>>,
    /// First guest address that there is not.
    pub(crate) end: u64,
    /// Bytes of a page.
    pub(crate) page: u64,
    /// What a table of pages maps.
    pub(crate) span: u64,
    /// What a table of the next level maps; an eighth of all addresses where that is the root.
    pub(crate) upper: u64,
    /// Host memory that everything is aligned with.
    pub(crate) host: u64,
}

impl<F: Format> Bench<F> {
    pub(crate) fn new(features: F::Features, address_bits: u8) -> Self {
        Self::with_stripes(features, address_bits, 64)
    }

    pub(crate) fn with_stripes(features: F::Features, address_bits: u8, stripes: usize) -> Self {
        let machine = Machine::new();
        let options = TableOptions {
            address_bits,
            stripes,
        };
        let table = PageTable::new(machine.clone(), features, options).expect("room for a root");
        let geometry = *table.geometry();
        let end = 1 << address_bits;
        let next = Level::new(1);
        Self {
            machine,
            table: Arc::new(table),
            end,
            page: geometry.entry_bytes(PAGE),
            span: geometry.table_maps(PAGE),
            upper: if geometry.root() > next {
                geometry.table_maps(next)
            } else {
                end / 8
            },
            host: 1 << (host_bits::<F>(&features) - 1),
        }
    }

    /// Whether there is a level between the root and the tables of pages.
    pub(crate) fn has_upper_tables(&self) -> bool {
        self.table.geometry().root() > Level::new(1)
    }

    /// The levels of leaves above the pages, smallest first, with what a leaf maps, as far as there
    /// is room for a few.
    pub(crate) fn blocks(&self) -> Vec<(Level, u64)> {
        let geometry = self.table.geometry();
        let levels = geometry.leaf_levels_up().skip(1);
        let sizes = levels.map(|level| (level, geometry.entry_bytes(level)));
        sizes
            .filter(|(_, bytes)| 4 * bytes <= self.end.min(self.host))
            .collect()
    }

    /// The same, of those that cover several spans.
    pub(crate) fn wide_blocks(&self) -> Vec<(Level, u64)> {
        let mut blocks = self.blocks();
        blocks.retain(|(_, bytes)| *bytes > self.span);
        blocks
    }

    pub(crate) fn page(&self, start: u64) -> GpaRange {
        range(start, self.page)
    }

    /// The first pages.
    pub(crate) fn pages(&self, count: u64) -> GpaRange {
        range(0, count * self.page)
    }

    /// Whether a page can say this.
    pub(crate) fn expresses(&self, attributes: Attributes) -> bool {
        F::leaf(self.table.features(), PAGE, hpa(0), attributes).is_ok()
    }

    /// The first of these that a page can say.
    pub(crate) fn first_of(&self, attributes: &[Attributes]) -> Option<Attributes> {
        let mut all = attributes.iter().copied();
        all.find(|attributes| self.expresses(*attributes))
    }

    /// Memory that cannot be written; executable where that cannot be forbidden.
    pub(crate) fn rom(&self) -> Attributes {
        let permissions = Permissions {
            execute: Execute::Always,
            ..Permissions::READ
        };
        let executable = Attributes { permissions, ..ROM };
        self.first_of(&[ROM, executable]).expect("a read-only page")
    }

    /// Whether a leaf can say that it was not used.
    pub(crate) fn ages(&self) -> bool {
        self.expresses(Attributes {
            accessed: false,
            ..RAM
        })
    }

    /// Installs as a fault does (P1 to P4), from a table cache of its own.
    pub(crate) fn install(
        &self,
        range: GpaRange,
        to: u64,
        level: Level,
        attributes: Attributes,
    ) -> Installed {
        let table = &*self.table;
        let mut cache = TableCache::new(table);
        cache.fill().expect("memory for tables");
        let leaves = table
            .leaves(range, hpa(to), level, attributes)
            .expect("leaves of the format");
        let snapshot = table.snapshot(&range);
        let mut hold = table.hold(&range);
        assert!(hold.is_current(&snapshot));
        let installed = hold.install(&leaves, &mut cache).expect("a full cache");
        drop(hold);
        table.settle(&installed, range);
        installed
    }

    /// Installs what must be new.
    pub(crate) fn map(&self, range: GpaRange, to: u64, level: Level, attributes: Attributes) {
        let installed = self.install(range, to, level, attributes);
        let new = range.bytes() / self.table.geometry().entry_bytes(level);
        assert_eq!(
            installed,
            Installed {
                new,
                ..Installed::default()
            }
        );
    }

    /// What the table says about an address: host address and level.
    pub(crate) fn look(&self, address: u64) -> Option<(u64, Level)> {
        self.table
            .translate(gpa(address))
            .map(|found| (found.hpa.raw(), found.level))
    }

    /// What the leaf at an address says.
    pub(crate) fn said(&self, address: u64) -> Attributes {
        let found = self.table.translate(gpa(address));
        found.expect("a leaf").attributes
    }

    /// Removes a range; blocks that it covers in part go whole.
    pub(crate) fn unmap(&self, range: &GpaRange) {
        unmap(&self.table, range);
    }

    /// Removes a range and nothing else.
    pub(crate) fn unmap_exactly(&self, range: &GpaRange) {
        let mut cache = TableCache::new(&self.table);
        drop(
            self.table
                .restrict(range)
                .unmap(range, PartialBlock::Split(&mut cache)),
        );
    }

    /// Splits what is in `part` into pages.
    pub(crate) fn split(&self, part: &GpaRange) {
        let mut cache = TableCache::new(&self.table);
        drop(self.table.restrict(part).split(part, PAGE, &mut cache));
    }

    /// Takes note of events from here on.
    pub(crate) fn record(&self) {
        self.machine.record();
        self.machine.take_events();
    }

    /// The flushes of all CPUs since events were last taken.
    pub(crate) fn flushes(&self) -> Vec<TlbWork> {
        let events = self.machine.take_events().into_iter();
        let flush = |event| match event {
            Event::Flushed(work) => Some(work),
            _ => None,
        };
        events.filter_map(flush).collect()
    }
}

/// Removes a range; blocks that it covers in part go whole.
pub(crate) fn unmap<F: Format>(table: &Table<F>, range: &GpaRange) {
    drop(table.restrict(range).unmap(range, PartialBlock::Drop));
}

/// Makes each of these functions a test for every row of the catalogue, and for the odd format.
///
/// They are generic over the format and take its features and the guest address bits of the row.
macro_rules! for_every_format {
    ($($check:ident,)*) => {$(
        mod $check {
            use super::$check as check;
            slat_table::every_format!(crate::setup::tests_of_rows);
        }
    )*};
}

/// One test for each row, which calls `check`.
macro_rules! tests_of_rows {
    ($($row:ident $name:literal $($format:ident)::+ $($features:ident)::+ $bits:literal;)*) => {
        $(
            #[test]
            fn $row() {
                check::<$($format)::+>($($features)::+, $bits);
            }
        )*

        #[test]
        fn odd() {
            check::<crate::odd::Odd>((), 40);
        }
    };
}

pub(crate) use {for_every_format, tests_of_rows};
