//! A platform that costs next to nothing: tables in this process's own memory, as bare metal has
//! them, and no TLB. What is counted is then the engine.

use core::alloc::Layout;
use core::sync::atomic::{AtomicU64, AtomicUsize};
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error};

use slat_table::address::{GpaRange, Hpa};
use slat_table::lock::SpinLocks;
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

/// Room for all tables of one operation.
const BYTES: usize = 64 << 20;
/// No table is larger, so each can be aligned to its size.
const ALIGNMENT: usize = 64 << 10;

/// Memory for tables, zeroed beforehand, handed out from its start. A table's host physical address
/// is its address in this process.
pub(crate) struct Heap {
    start: *mut u8,
    used: AtomicUsize,
}

// SAFETY: the memory is accessed by atomic operations only.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

const fn layout() -> Layout {
    match Layout::from_size_align(BYTES, ALIGNMENT) {
        Ok(layout) => layout,
        Err(_) => panic!("the alignment is a power of two"),
    }
}

impl Heap {
    pub(crate) fn new() -> Self {
        // SAFETY: it has a size.
        let start = unsafe { alloc_zeroed(layout()) };
        if start.is_null() {
            handle_alloc_error(layout());
        }
        // An entry is found by its address alone.
        let _ = start.expose_provenance();
        Self {
            start,
            used: AtomicUsize::new(0),
        }
    }

    #[inline]
    #[expect(
        clippy::unused_self,
        clippy::cast_possible_truncation,
        reason = "the entry is part of it, and at an address of this process"
    )]
    fn word(&self, entry: Hpa) -> &AtomicU64 {
        let entry = core::ptr::with_exposed_provenance(entry.raw() as usize);
        // SAFETY: the engine asks for entries of tables only that it has from `allocate`, and
        // these are accessed in no other way.
        unsafe { &*entry }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: it is from `alloc_zeroed` with this layout, and whoever used it is gone.
        unsafe { dealloc(self.start, layout()) };
    }
}

impl TableMemory for Heap {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        let bytes = bytes as usize;
        let used = self.used.load(Ordering::Relaxed).next_multiple_of(bytes);
        if used + bytes > BYTES {
            return None;
        }
        self.used.store(used + bytes, Ordering::Relaxed);
        Some(Hpa::new((self.start.addr() + used) as u64))
    }

    fn free(&self, _: Hpa, _: u32) {}

    #[inline]
    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.word(entry).load(order)
    }

    #[inline]
    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        self.word(entry).store(value, order);
    }

    fn fill(&self, table: Hpa, entries: u64, value: u64) {
        let first: *mut u64 = core::ptr::from_ref(self.word(table)).cast_mut().cast();
        let entries = usize::try_from(entries).unwrap_or(0);
        // SAFETY: the engine names entries of a table that it has from `allocate`, and that nobody
        // else has yet.
        unsafe { core::slice::from_raw_parts_mut(first, entries) }.fill(value);
    }

    #[inline]
    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        let word = self.word(entry);
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    #[inline]
    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        self.word(entry).swap(new, Ordering::AcqRel)
    }
}

impl Tlb for Heap {
    #[inline]
    fn flush(&self, _: &TlbWork) {}

    #[inline]
    fn flush_local(&self, _: GpaRange) {}

    #[inline]
    fn publish(&self) {}
}

impl Platform for Heap {
    type Locks = SpinLocks;
}
