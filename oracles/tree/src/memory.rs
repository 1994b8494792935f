//! Physical memory for tables, at the addresses at which the walker sees it: payloads run without
//! a translation of their own.

use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering as CoreOrdering};

use slat_table::address::{GpaRange, Hpa};
use slat_table::attributes::MemoryType;
use slat_table::platform::{TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

use crate::Machine;

/// Memory that is handed out table by table and never twice.
#[derive(Debug)]
pub struct PhysicalMemory {
    next: AtomicU64,
    end: u64,
}

impl PhysicalMemory {
    /// The memory in `range`.
    ///
    /// # Safety
    ///
    /// It is memory, mapped where it is, and nobody else's for as long as the value lives.
    pub const unsafe fn new(range: Range<u64>) -> Self {
        Self {
            next: AtomicU64::new(range.start),
            end: range.end,
        }
    }

    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        let bytes = u64::from(bytes);
        let next = self.next.load(CoreOrdering::Relaxed);
        let table = next.checked_next_multiple_of(bytes)?;
        let behind = table.checked_add(bytes)?;
        if behind > self.end {
            return None;
        }
        // There is one CPU, and it does one thing at a time.
        self.next.store(behind, CoreOrdering::Relaxed);
        for entry in (table..behind).step_by(8) {
            entry_at(Hpa::new(entry)).store(0, CoreOrdering::Relaxed);
        }
        Some(Hpa::new(table))
    }
}

/// The entry at an address that the engine has from [`PhysicalMemory::allocate`].
fn entry_at<'m>(entry: Hpa) -> &'m AtomicU64 {
    let address = usize::try_from(entry.raw()).expect("tables lie where pointers reach");
    // SAFETY: the entry lies in a table, which lies in the memory that `PhysicalMemory::new` was
    // promised, and is never taken back. Only the engine and the table walker touch it, atomically.
    unsafe { AtomicU64::from_ptr(ptr::with_exposed_provenance_mut(address)) }
}

impl<T: Tlb + 'static> TableMemory for Machine<T> {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        self.memory.allocate(bytes)
    }

    /// A freed table stays as it was and is not used again, so that a walk that still reaches it
    /// meets what was there.
    fn free(&self, _: Hpa, _: u32) {}

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        entry_at(entry).load(order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        entry_at(entry).store(value, order);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        entry_at(entry)
            .compare_exchange(old, new, CoreOrdering::AcqRel, CoreOrdering::Acquire)
            .map(drop)
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        entry_at(entry).swap(new, CoreOrdering::AcqRel)
    }
}

impl<T: Tlb + 'static> Tlb for Machine<T> {
    fn flush(&self, work: &TlbWork) {
        self.tlb.flush(work);
    }

    fn flush_local(&self, range: GpaRange) {
        self.tlb.flush_local(range);
    }

    fn publish(&self) {
        self.tlb.publish();
    }

    fn prepare(&self, hpa: Hpa, bytes: u64, memory: MemoryType, executable: bool) {
        self.tlb.prepare(hpa, bytes, memory, executable);
    }
}
