//! What slat needs of this machine: memory for stage-2 tables, and TLB maintenance.

use alloc::sync::Arc;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use slat::table::address::{GpaRange, Hpa};
use slat::table::attributes::MemoryType;
use slat::table::geometry::Level;
use slat::table::lock::SpinLocks;
use slat::table::platform::{Platform, TableMemory, Tlb, TlbWork};

use super::cache;
use super::frames::HostMemory;

/// Above this many entries one invalidation of everything is cheaper than one for each.
const MOST_ENTRIES: u64 = 512;

/// The machine as slat sees it.
#[derive(Clone)]
pub(super) struct El2Platform {
    memory: Arc<HostMemory>,
    counts: Arc<Counts>,
}

/// TLB maintenance so far.
#[derive(Debug, Default)]
struct Counts {
    ranges: AtomicU64,
    entries: AtomicU64,
    all: AtomicU64,
    local: AtomicU64,
}

impl El2Platform {
    /// Tables come from `memory`.
    pub(super) fn new(memory: Arc<HostMemory>) -> Self {
        Self {
            memory,
            counts: Arc::default(),
        }
    }

    /// TLB maintenance so far, for the report.
    pub(super) fn flushes(&self) -> slat_report::Flushes {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        slat_report::Flushes {
            ranges: read(&self.counts.ranges),
            entries: read(&self.counts.entries),
            all: read(&self.counts.all),
            local: read(&self.counts.local),
        }
    }
}

impl Platform for El2Platform {
    type Locks = SpinLocks;
}

impl TableMemory for El2Platform {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        // The walker is coherent with the data cache (VTCR_EL2 says write-back), so zeros that
        // reached the point of coherency do no harm and cost one pass over a page.
        let table = self.memory.take(u64::from(bytes))?;
        self.memory.clear(table, u64::from(bytes));
        Some(table)
    }

    fn free(&self, table: Hpa, bytes: u32) {
        self.memory.give_back(table, u64::from(bytes));
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        atomic(entry).load(order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        atomic(entry).store(value, order);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        atomic(entry)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        atomic(entry).swap(new, Ordering::AcqRel)
    }
}

/// The sequences are those of the Arm Architecture Reference Manual (DDI 0487), section D8.16: the
/// entry is written and seen by the walkers; what was cached by guest-physical address goes; and
/// when that is complete, what was combined with the guest's own translation goes as well, which
/// an invalidation by guest-physical address does not reach.
impl Tlb for El2Platform {
    fn flush(&self, work: &TlbWork) {
        if work.is_empty() {
            return;
        }
        let entries = entries(work);
        if work.only_leaves() && entries <= MOST_ENTRIES {
            count(&self.counts.ranges, 1);
            count(&self.counts.entries, entries);
            invalidate_ranges(work);
        } else {
            count(&self.counts.all, 1);
            invalidate_all();
        }
    }

    fn flush_local(&self, range: GpaRange) {
        count(&self.counts.local, 1);
        invalidate_local(range);
    }

    fn publish(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
    }

    fn prepare(&self, _: Hpa, _: u64, _: MemoryType, executable: bool) {
        // Data is as the guest must see it whenever a frame was written (`HostMemory`); what is
        // left are instructions that this CPU fetched from the frame in an earlier life.
        if executable {
            cache::invalidate_instructions();
        }
    }
}

fn entries(work: &TlbWork) -> u64 {
    let bytes: u64 = work.ranges().iter().map(GpaRange::bytes).sum();
    bytes / stride(work.smallest_leaf())
}

/// Bytes that one entry of `level` maps.
fn stride(level: Level) -> u64 {
    1 << (12 + 9 * level.index())
}

#[cfg(not(feature = "omit-flush"))]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these instructions"
)]
fn invalidate_ranges(work: &TlbWork) {
    let stride = stride(work.smallest_leaf());
    // SAFETY: forgetting translations makes the CPU walk the tables again and nothing else.
    unsafe {
        asm!("dsb ishst", options(nostack, preserves_flags));
        for range in work.ranges() {
            let start = range.start().raw() & !(stride - 1);
            for gpa in (start..range.end().raw()).step_by(stride as usize) {
                asm!("tlbi ipas2e1is, {}", in(reg) operand(gpa), options(nostack, preserves_flags));
            }
        }
        asm!(
            "dsb ish",
            "tlbi vmalle1is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(not(feature = "omit-flush"))]
fn invalidate_all() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi vmalls12e1is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(not(feature = "omit-flush"))]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these instructions"
)]
fn invalidate_local(range: GpaRange) {
    // SAFETY: as above.
    unsafe {
        asm!("dsb nshst", options(nostack, preserves_flags));
        if range.pages() <= MOST_ENTRIES {
            for page in 0..range.pages() {
                let gpa = range.start().raw() + page * slat::table::address::PAGE_SIZE;
                asm!("tlbi ipas2e1, {}", in(reg) operand(gpa), options(nostack, preserves_flags));
            }
            asm!("dsb nsh", "tlbi vmalle1", options(nostack, preserves_flags));
        } else {
            asm!("tlbi vmalls12e1", options(nostack, preserves_flags));
        }
        asm!("dsb nsh", "isb", options(nostack, preserves_flags));
    }
}

/// The operand of an invalidation by guest-physical address: the page number in bits 35:0, no
/// level hint (bits 47:44), the non-secure address space (bit 63).
#[cfg(not(feature = "omit-flush"))]
fn operand(gpa: u64) -> u64 {
    gpa >> 12 & 0xf_ffff_ffff
}

// A build that leaves out what isolation rests on, to show that the checks notice.

#[cfg(feature = "omit-flush")]
fn invalidate_ranges(_: &TlbWork) {}

#[cfg(feature = "omit-flush")]
fn invalidate_all() {}

#[cfg(feature = "omit-flush")]
fn invalidate_local(_: GpaRange) {}

fn atomic(entry: Hpa) -> &'static AtomicU64 {
    let entry = core::ptr::with_exposed_provenance_mut(entry.raw() as usize);
    // SAFETY: entries lie in tables that this platform allocated: RAM that EL2 maps at its own
    // address, aligned, and accessed in this way alone while it is a table.
    unsafe { AtomicU64::from_ptr(entry) }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
