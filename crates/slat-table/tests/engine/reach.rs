//! Table memory that the format cannot point to: refused, never pointed to by a part of its
//! address.

use std::sync::Mutex;

use slat_table::address::{GpaRange, Hpa};
use slat_table::format::Format;
use slat_table::format::armv7::{Armv7, Armv7Features};
use slat_table::format::npt::{Npt, NptFeatures};
use slat_table::lock::StdLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;
use slat_table::table::{NewTableError, PageTable, TableOptions};

/// A machine with one piece of table memory, which is never written.
struct Far {
    free: Mutex<Option<Hpa>>,
}

impl TableMemory for &'static Far {
    fn allocate(&self, _: u32) -> Option<Hpa> {
        self.free.lock().unwrap().take()
    }

    fn free(&self, table: Hpa, _: u32) {
        assert_eq!(self.free.lock().unwrap().replace(table), None);
    }

    fn load(&self, _: Hpa, _: Ordering) -> u64 {
        0
    }

    fn store(&self, entry: Hpa, _: u64, _: Ordering) {
        panic!("store to {entry}");
    }

    fn compare_exchange(&self, entry: Hpa, _: u64, _: u64) -> Result<(), u64> {
        panic!("exchange of {entry}");
    }

    fn swap(&self, entry: Hpa, _: u64) -> u64 {
        panic!("swap of {entry}");
    }
}

impl Tlb for &'static Far {
    fn flush(&self, _: &TlbWork) {}

    fn flush_local(&self, _: GpaRange) {}

    fn publish(&self) {}
}

impl Platform for &'static Far {
    type Locks = StdLocks;
}

fn refuses<F: Format>(features: F::Features, root: u64) {
    let root = Hpa::new(root);
    let far: &'static Far = Box::leak(Box::new(Far {
        free: Mutex::new(Some(root)),
    }));
    let table = PageTable::<F, _>::new(far, features, TableOptions::default());
    let refused = matches!(table, Err(NewTableError::OutOfTables(_)));
    assert!(refused, "{:?}", table.map(|table| table.root(1)));
    assert_eq!(*far.free.lock().unwrap(), Some(root), "it is given back");
}

#[test]
fn a_table_beyond_what_a_pointer_holds_is_refused() {
    refuses::<Armv7>(Armv7Features, 1 << 40 | 0x8000_0000);
}

#[test]
fn a_table_whose_address_has_the_encryption_bit_is_refused() {
    refuses::<Npt>(NptFeatures::ENCRYPTED, 1 << 47 | 0x8000_0000);
}
