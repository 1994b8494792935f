//! A platform of one's own: memory for tables and TLB work, under a page table used by itself.
//! Run it with `cargo run -p slat --example platform`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use slat::table::address::{Gpa, GpaRange, Hpa};
use slat::table::attributes::{Attributes, MemoryType, Permissions};
use slat::table::cache::TableCache;
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::geometry::Level;
use slat::table::lock::StdLocks;
use slat::table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat::table::restriction::PartialBlock;
use slat::table::sync::Ordering;
use slat::table::table::{PageTable, TableOptions};

/// The machine: the entries of all tables by address, and no CPU that could have a TLB.
struct Machine(Mutex<BTreeMap<Hpa, u64>>);
impl TableMemory for Machine {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        let mut entries = self.0.lock().unwrap();
        let end = entries.last_key_value().map_or(0, |(at, _)| at.raw() + 8);
        let table = end.next_multiple_of(bytes.into());
        entries.extend((0..u64::from(bytes) / 8).map(|index| (Hpa::new(table + index * 8), 0)));
        Some(Hpa::new(table))
    }
    fn free(&self, table: Hpa, bytes: u32) {
        let end = Hpa::new(table.raw() + u64::from(bytes));
        self.0
            .lock()
            .unwrap()
            .retain(|at, _| !(table..end).contains(at));
    }
    fn load(&self, at: Hpa, _: Ordering) -> u64 {
        self.0.lock().unwrap()[&at]
    }
    fn store(&self, at: Hpa, value: u64, _: Ordering) {
        self.swap(at, value);
    }
    fn compare_exchange(&self, at: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let mut entries = self.0.lock().unwrap();
        let found = entries.insert(at, new).filter(|found| *found != old);
        found.map_or(Ok(()), |found| {
            Err(entries.insert(at, found).map_or(0, |_| found))
        })
    }
    fn swap(&self, at: Hpa, new: u64) -> u64 {
        self.0.lock().unwrap().insert(at, new).unwrap_or(0)
    }
}
impl Tlb for Machine {
    fn flush(&self, work: &TlbWork) {
        println!("All CPUs forget {:?}.", work.ranges());
    }
    fn flush_local(&self, _: GpaRange) {}
    fn publish(&self) {}
}
impl Platform for Machine {
    type Locks = StdLocks;
}

fn main() {
    let features = Arm64Features {
        physical_bits: 40,
        force_write_back: true,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    };
    let machine = Machine(Mutex::default());
    let table = PageTable::<Arm64, _>::new(machine, features, TableOptions::default()).unwrap();
    println!("the root registers hold {:x?}", table.root(1).unwrap());

    let range = GpaRange::new(Gpa::new(0x4000_0000), 0x1000).unwrap();
    let attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let hpa = Hpa::new(0x8000_0000);
    let leaves = table.leaves(range, hpa, Level::PAGE, attributes).unwrap();
    let mut tables = TableCache::new(&table);
    tables.fill().unwrap();
    let installed = table.hold(&range).install(&leaves, &mut tables).unwrap();
    table.settle(&installed, range);
    println!("{:?}", table.translate(range.start()));

    let mut restriction = table.restrict(&range);
    drop(restriction.unmap(&range, PartialBlock::Drop));
    drop(restriction);
    assert_eq!(table.translate(range.start()), None);
}
