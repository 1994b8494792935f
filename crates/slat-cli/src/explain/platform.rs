//! The machine under a layout's tables: plain memory, and TLBs that only count.
//!
//! TLB work is carried out by the very lists of instructions that hardware would execute
//! ([`Modelled`]), which here reach nobody. What they say of their extent is counted.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use slat_machine::event::Instruction;
use slat_machine::modelled::{Cpus, Modelled};
use slat_report::Flushes;
use slat_table::address::{GpaRange, Hpa};
use slat_table::lock::StdLocks;
use slat_table::platform::{Extent, Platform, TableMemory, Tlb, TlbWork};
use slat_table::simulated::SimulatedPlatform;
use slat_table::sync::Ordering;

/// The VM's number, which nothing depends on.
const VM: u16 = 1;

/// Plain memory for tables, with hardware of the format `F` that counts.
pub(crate) struct Counting<F: Modelled> {
    memory: SimulatedPlatform<StdLocks>,
    features: F::Features,
    counts: Arc<Counts>,
    format: PhantomData<F>,
}

/// TLB maintenance, counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    ranges: AtomicU64,
    entries: AtomicU64,
    all: AtomicU64,
    local: AtomicU64,
}

impl Counts {
    /// What was counted since the last call.
    pub(crate) fn take(&self) -> Flushes {
        Flushes {
            ranges: self.ranges.swap(0, Relaxed),
            entries: self.entries.swap(0, Relaxed),
            all: self.all.swap(0, Relaxed),
            local: self.local.swap(0, Relaxed),
        }
    }
}

/// CPUs that do nothing, and note whether they were asked to.
#[derive(Default)]
struct Asked(AtomicU64);

impl Cpus for Asked {
    fn here(&self, _: Instruction) {
        self.0.fetch_add(1, Relaxed);
    }

    fn everywhere(&self, instructions: &[Instruction]) {
        self.0.fetch_add(instructions.len() as u64, Relaxed);
    }
}

impl<F: Modelled> Counting<F> {
    /// Room for `pages` pages of tables. The counts are shared with the caller.
    pub(crate) fn new(features: F::Features, pages: usize) -> (Self, Arc<Counts>) {
        let counts = Arc::<Counts>::default();
        let platform = Self {
            memory: SimulatedPlatform::with_pages(pages),
            features,
            counts: Arc::clone(&counts),
            format: PhantomData,
        };
        (platform, counts)
    }

    /// Where a change of a live entry itself has every CPU forget (s390), that is an entry
    /// invalidated.
    fn changed(&self, entry: Hpa, old: u64) {
        let asked = Asked::default();
        F::changed(&self.features, VM, entry, old, &asked);
        self.counts.entries.fetch_add(asked.0.into_inner(), Relaxed);
    }
}

impl<F: Modelled> TableMemory for Counting<F> {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        self.memory.allocate(bytes)
    }

    fn free(&self, table: Hpa, bytes: u32) {
        self.memory.free(table, bytes);
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        self.memory.load(entry, order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        self.memory.store(entry, value, order);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        self.memory.compare_exchange(entry, old, new)?;
        self.changed(entry, old);
        Ok(())
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        let old = self.memory.swap(entry, new);
        self.changed(entry, old);
        old
    }
}

impl<F: Modelled> Tlb for Counting<F> {
    fn flush(&self, work: &TlbWork) {
        match F::flush(&self.features, VM, work, &Asked::default()) {
            Extent::Nothing => {}
            Extent::Entries(entries) => {
                self.counts.ranges.fetch_add(1, Relaxed);
                self.counts.entries.fetch_add(entries, Relaxed);
            }
            Extent::Everything => {
                self.counts.all.fetch_add(1, Relaxed);
            }
        }
    }

    fn flush_local(&self, _: GpaRange) {
        self.counts.local.fetch_add(1, Relaxed);
    }

    fn publish(&self) {}
}

impl<F: Modelled> Platform for Counting<F> {
    type Locks = StdLocks;
}

impl<F: Modelled> fmt::Debug for Counting<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting")
            .field("memory", &self.memory)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
