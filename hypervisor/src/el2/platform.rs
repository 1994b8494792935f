//! What slat needs of this machine: memory for stage-2 tables, and TLB maintenance.

use alloc::sync::Arc;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use slat::table::address::{GpaRange, Hpa};
use slat::table::attributes::MemoryType;
use slat::table::format::arm64::Granule4K;
use slat::table::format::arm64::maintenance::{self, Instruction};
use slat::table::lock::SpinLocks;
use slat::table::platform::{Extent, Platform, TableMemory, Tlb, TlbWork};

use super::cache;
use super::frames::HostMemory;

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

impl Tlb for El2Platform {
    fn flush(&self, work: &TlbWork) {
        match maintenance::flush::<Granule4K>(work, execute) {
            Extent::Nothing => {}
            Extent::Entries(entries) => {
                count(&self.counts.ranges, 1);
                count(&self.counts.entries, entries);
            }
            Extent::Everything => count(&self.counts.all, 1),
        }
    }

    fn flush_local(&self, range: GpaRange) {
        count(&self.counts.local, 1);
        maintenance::flush_local::<Granule4K>(range, execute);
    }

    fn publish(&self) {
        maintenance::publish(execute);
    }

    fn prepare(&self, _: Hpa, _: u64, _: MemoryType, executable: bool) {
        // Data is as the guest must see it whenever a frame was written (`HostMemory`); what is
        // left are instructions that this CPU fetched from the frame in an earlier life.
        if executable {
            cache::invalidate_instructions();
        }
    }
}

/// Executes one instruction of a maintenance sequence.
#[inline]
fn execute(instruction: Instruction) {
    // A build that leaves out what isolation rests on, to show that the checks notice.
    if cfg!(feature = "omit-flush") && invalidates(instruction) {
        return;
    }
    macro_rules! run {
        ($text:literal $(, $operand:expr)?) => {
            // SAFETY: barriers and forgotten translations make the CPU wait, and walk the tables
            // again, and nothing else.
            unsafe { asm!($text $(, in(reg) $operand.value())?, options(nostack, preserves_flags)) }
        };
    }
    match instruction {
        Instruction::DsbIshst => run!("dsb ishst"),
        Instruction::DsbIsh => run!("dsb ish"),
        Instruction::DsbNshst => run!("dsb nshst"),
        Instruction::DsbNsh => run!("dsb nsh"),
        Instruction::Isb => run!("isb"),
        Instruction::Ipas2e1is(operand) => run!("tlbi ipas2e1is, {}", operand),
        Instruction::Ipas2e1(operand) => run!("tlbi ipas2e1, {}", operand),
        Instruction::Vmalle1is => run!("tlbi vmalle1is"),
        Instruction::Vmalle1 => run!("tlbi vmalle1"),
        Instruction::Vmalls12e1is => run!("tlbi vmalls12e1is"),
        Instruction::Vmalls12e1 => run!("tlbi vmalls12e1"),
    }
}

/// Whether an instruction forgets translations.
const fn invalidates(instruction: Instruction) -> bool {
    !matches!(
        instruction,
        Instruction::DsbIshst
            | Instruction::DsbIsh
            | Instruction::DsbNshst
            | Instruction::DsbNsh
            | Instruction::Isb
    )
}

fn atomic(entry: Hpa) -> &'static AtomicU64 {
    let entry = core::ptr::with_exposed_provenance_mut(entry.raw() as usize);
    // SAFETY: entries lie in tables that this platform allocated: RAM that EL2 maps at its own
    // address, aligned, and accessed in this way alone while it is a table.
    unsafe { AtomicU64::from_ptr(entry) }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
