//! Table memory that the format cannot point to, and numbers of VMs that it cannot hold: refused,
//! never cut.

use std::sync::Mutex;

use slat_table::address::{GpaRange, Hpa};
use slat_table::format::Format;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::armv7::{Armv7, Armv7Features};
use slat_table::format::ept::{Ept, EptFeatures};
use slat_table::format::npt::{Npt, NptFeatures};
use slat_table::format::power::{Power4K, PowerFeatures};
use slat_table::format::riscv::sv32x4::{Sv32x4, Sv32x4Features};
use slat_table::format::riscv::{RiscV, RiscVFeatures};
use slat_table::lock::StdLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::simulated::SimulatedPlatform;
use slat_table::sync::Ordering;
use slat_table::table::{NewTableError, PageTable, TableOptions, VmidError};

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

#[test]
fn a_vm_number_that_the_hardware_would_cut_is_refused() {
    fn widest<F: Format>(features: F::Features) -> u32 {
        let table = PageTable::<F, _>::new(
            SimulatedPlatform::<StdLocks>::new(),
            features,
            // As many as every format has.
            TableOptions {
                address_bits: 34,
                ..TableOptions::default()
            },
        )
        .unwrap();
        let most = u16::MAX >> (16 - F::vmid_bits(&features));
        assert!(table.root(most).is_ok());
        if let Some(vmid) = most.checked_add(1) {
            let bits = F::vmid_bits(&features);
            assert_eq!(table.root(vmid), Err(VmidError { vmid, bits }));
        }
        most.into()
    }
    assert_eq!(widest::<Arm64>(Arm64Features::ALL), 0xffff);
    assert_eq!(widest::<Arm64>(Arm64Features::NONE), 0xff);
    assert_eq!(widest::<Armv7>(Armv7Features), 0xff);
    assert_eq!(widest::<RiscV>(RiscVFeatures::ALL), 0x3fff);
    assert_eq!(widest::<Sv32x4>(Sv32x4Features::ALL), 0x7f);
    assert_eq!(widest::<Power4K>(PowerFeatures::ALL), 0xfff);
    assert_eq!(widest::<Ept>(EptFeatures::ALL), 0xffff);
}
