//! Small helpers to drive a table as an embedder does.

use slat_table::address::{Gpa, GpaRange, Hpa, PAGE_SIZE};
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::lock::StdLocks;
use slat_table::platform::TlbWork;
use slat_table::restriction::PartialBlock;
use slat_table::simulated::{Event, SimulatedPlatform};
use slat_table::table::{PageTable, TableOptions};

pub(crate) type Machine = SimulatedPlatform<StdLocks>;
pub(crate) type Table = PageTable<Arm64, Machine>;

pub(crate) const PAGE: Level = Level::PAGE;
pub(crate) const MIB2: Level = Level::new(1);
pub(crate) const GIB1: Level = Level::new(2);
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// Where host memory starts.
pub(crate) const HOST: u64 = 0x40_0000_0000;

pub(crate) const FEATURES: Arm64Features = Arm64Features {
    physical_bits: 48,
    force_write_back: true,
    execute_never_extended: true,
    hardware_accessed: false,
    hardware_dirty: false,
    vmid16: false,
    coherent_instruction_cache: true,
};

pub(crate) const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
pub(crate) const ROM: Attributes = Attributes::new(Permissions::READ, MemoryType::WriteBack);
pub(crate) const DEVICE: Attributes = Attributes::new(Permissions::READ_WRITE, MemoryType::Device);

pub(crate) fn new_table(machine: &Machine, address_bits: u8, stripes: usize) -> Table {
    let options = TableOptions {
        address_bits,
        stripes,
    };
    PageTable::new(machine.clone(), FEATURES, options).expect("room for a root")
}

pub(crate) fn gpa(raw: u64) -> Gpa {
    Gpa::new(raw)
}

pub(crate) fn hpa(raw: u64) -> Hpa {
    Hpa::new(raw)
}

pub(crate) fn range(start: u64, bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), bytes).expect("a range of pages")
}

pub(crate) fn page(start: u64) -> GpaRange {
    range(start, PAGE_SIZE)
}

/// Installs as a fault does (P1 to P4), from a table cache of its own.
pub(crate) fn install(
    table: &Table,
    range: GpaRange,
    to: u64,
    level: Level,
    attributes: Attributes,
) -> Installed {
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
pub(crate) fn map(table: &Table, range: GpaRange, to: u64, level: Level, attributes: Attributes) {
    let installed = install(table, range, to, level, attributes);
    let entries = range.bytes() / table.geometry().entry_bytes(level);
    assert_eq!(
        installed,
        Installed {
            new: entries,
            ..Installed::default()
        }
    );
}

/// What the table says about an address: host address and level.
pub(crate) fn look(table: &Table, address: u64) -> Option<(u64, Level)> {
    table
        .translate(gpa(address))
        .map(|found| (found.hpa.raw(), found.level))
}

/// A machine and a table of 40 bits with 64 stripes.
pub(crate) fn small_table() -> (Machine, Table) {
    let machine = Machine::new();
    let table = new_table(&machine, 40, 64);
    (machine, table)
}

/// Removes a range; blocks that it covers in part go whole.
pub(crate) fn unmap(table: &Table, range: &GpaRange) {
    drop(table.restrict(range).unmap(range, PartialBlock::Drop));
}

/// Removes a range and nothing else.
pub(crate) fn unmap_exactly(table: &Table, range: &GpaRange) {
    let mut cache = TableCache::new(table);
    drop(
        table
            .restrict(range)
            .unmap(range, PartialBlock::Split(&mut cache)),
    );
}

/// The flushes of all CPUs since events were last taken.
pub(crate) fn flushes(machine: &Machine) -> Vec<TlbWork> {
    let flush = |event| match event {
        Event::Flushed(work) => Some(work),
        _ => None,
    };
    machine
        .take_events()
        .into_iter()
        .filter_map(flush)
        .collect()
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
