//! What happened: counters of a VM's memory and of a vCPU's faults.

use core::fmt;

use slat_table::geometry::MAX_LEVELS;
use slat_table::sync::{Counter, Ordering};

/// Shared counters, written on slow paths only.
pub(crate) struct Counters {
    pub(crate) invalidations: Counter,
    pub(crate) invalidations_hit: Counter,
    pub(crate) agings: Counter,
    pub(crate) transactions: Counter,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            invalidations: Counter::new(0),
            invalidations_hit: Counter::new(0),
            agings: Counter::new(0),
            transactions: Counter::new(0),
        }
    }
}

pub(crate) fn count(counter: &Counter) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counters of a VM's memory since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Invalidations the host asked for.
    pub invalidations: u64,
    /// Those that met a slot.
    pub invalidations_hit: u64,
    /// Calls that asked whether pages were used.
    pub agings: u64,
    /// Transactions committed.
    pub transactions: u64,
    /// Flushes carried out on all CPUs.
    pub flushes: u64,
    /// Tables in use, those waiting in caches included.
    pub tables: u64,
    /// Bytes of those tables.
    pub table_bytes: u64,
}

/// Counters of one vCPU's faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultStats {
    /// Faults that mapped RAM.
    pub ram: u64,
    /// Faults that mapped PFNMAP memory: devices.
    pub pfnmap: u64,
    /// Faults that found the page mapped and made it allow more, or young again.
    pub extended: u64,
    /// Faults that found nothing left to do.
    pub spurious: u64,
    /// Faults to be tried again because the host was changing something.
    pub retried: u64,
    /// Faults in no slot.
    pub mmio: u64,
    /// Writes to read-only slots.
    pub read_only: u64,
    /// Faults that the host refused.
    pub denied: u64,
    /// New leaves by level, pages first.
    pub leaves: [u64; MAX_LEVELS],
}

impl FaultStats {
    /// All faults.
    pub fn total(&self) -> u64 {
        self.ram
            + self.pfnmap
            + self.extended
            + self.spurious
            + self.retried
            + self.mmio
            + self.read_only
            + self.denied
    }
}

impl fmt::Display for FaultStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults: {} RAM, {} device, {} extended, {} spurious, {} retried, {} in no slot, \
             {} to read-only, {} denied",
            self.total(),
            self.ram,
            self.pfnmap,
            self.extended,
            self.spurious,
            self.retried,
            self.mmio,
            self.read_only,
            self.denied
        )
    }
}
