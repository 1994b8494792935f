//! Another vCPU that comes first at the worst moment, which threads would meet once in a while.

use std::sync::{Arc, Mutex};

use slat_table::address::{GpaRange, Hpa, PAGE_SIZE};
use slat_table::cache::TableCache;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::lock::StdLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;
use slat_table::table::{PageTable, TableOptions};

use crate::setup::{Machine, PAGE, RAM, gpa, hpa, range};

/// Where host memory starts.
const HOST: u64 = 1 << 38;
const MIB: u64 = 1 << 20;

type Rival = Box<dyn FnOnce() + Send>;

/// A machine on which a rival acts just before the next compare-exchange.
#[derive(Clone)]
struct Contested {
    machine: Machine,
    rival: Arc<Mutex<Option<Rival>>>,
}

impl TableMemory for Contested {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        self.machine.allocate(bytes)
    }

    fn free(&self, table: Hpa, bytes: u32) {
        self.machine.free(table, bytes);
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.machine.load(entry, order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        self.machine.store(entry, value, order);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let rival = self.rival.lock().unwrap().take();
        if let Some(act) = rival {
            act();
        }
        self.machine.compare_exchange(entry, old, new)
    }

    fn swap(&self, entry: Hpa, value: u64) -> u64 {
        self.machine.swap(entry, value)
    }
}

impl Tlb for Contested {
    fn flush(&self, work: &TlbWork) {
        self.machine.flush(work);
    }

    fn flush_local(&self, range: GpaRange) {
        self.machine.flush_local(range);
    }

    fn publish(&self) {
        self.machine.publish();
    }
}

impl Platform for Contested {
    type Locks = StdLocks;
}

fn map(table: &PageTable<Arm64, Contested>, at: u64) {
    let mut cache = TableCache::new(table);
    cache.fill().expect("memory for tables");
    let leaves = table
        .leaves(range(at, PAGE_SIZE), hpa(HOST + at), PAGE, RAM)
        .unwrap();
    let installed = table
        .hold(&range(at, PAGE_SIZE))
        .install(&leaves, &mut cache)
        .unwrap();
    assert_eq!(installed.new, 1);
}

#[test]
fn a_table_that_another_vcpu_linked_first_is_used_and_ones_own_is_kept_for_later() {
    let rival = Arc::default();
    let contested = Contested {
        machine: Machine::new(),
        rival: Arc::clone(&rival),
    };
    let machine = contested.machine.clone();
    let options = TableOptions {
        address_bits: 40,
        stripes: 64,
    };
    let table = PageTable::new(contested, Arm64Features::ALL, options).expect("room for a root");
    let table: Arc<PageTable<Arm64, Contested>> = Arc::new(table);
    let of_rival = Arc::clone(&table);
    let act: Rival = Box::new(move || map(&of_rival, 2 * MIB));
    *rival.lock().unwrap() = Some(act);
    map(&table, 0);
    for at in [0, 2 * MIB] {
        let found = table.translate(gpa(at)).map(|found| found.hpa);
        assert_eq!(found, Some(hpa(HOST + at)));
    }
    // The root, one table above the pages' and two of pages; no more now that the caches are gone.
    assert_eq!(machine.live_tables(), 4);
    assert_eq!(table.tables(), 4);
    drop(table);
    assert_eq!(machine.live_tables(), 0);
}
