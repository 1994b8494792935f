//! The machine, as `slat-table` wants it: table memory and TLBs.
//!
//! TLB work is carried out by the very list of instructions that bare metal executes
//! ([`Modelled`]), each handed to the machine as it comes.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use slat_report::Flushes;
use slat_table::address::{GpaRange, Hpa};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::platform::{Extent, Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

use crate::address;
use crate::event::{Instruction, Vm};
use crate::frames::Supply;
use crate::lock::ModelLocks;
use crate::machine::Machine;
use crate::modelled::{Cpus, Modelled};
use crate::schedule::{cpu, point};

/// The machine as one VM's platform.
pub struct MachinePlatform {
    machine: Arc<Machine>,
    vm: Vm,
    supply: Arc<Supply>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    ranges: AtomicU64,
    entries: AtomicU64,
    all: AtomicU64,
    local: AtomicU64,
}

impl MachinePlatform {
    /// `machine` for `vm`. Tables are refused as `supply` has it.
    pub fn new(machine: Arc<Machine>, vm: Vm, supply: Arc<Supply>) -> Self {
        Self {
            machine,
            vm,
            supply,
            counts: Counts::default(),
        }
    }

    /// TLB maintenance so far.
    pub fn flushes(&self) -> Flushes {
        Flushes {
            ranges: self.counts.ranges.load(Relaxed),
            entries: self.counts.entries.load(Relaxed),
            all: self.counts.all.load(Relaxed),
            local: self.counts.local.load(Relaxed),
        }
    }
}

/// The address as the machine has it.
pub(crate) const fn to_machine(hpa: Hpa) -> address::Hpa {
    address::Hpa(hpa.raw())
}

impl Cpus for MachinePlatform {
    fn here(&self, instruction: Instruction) {
        point();
        self.machine.execute(cpu(), self.vm, instruction);
    }

    fn everywhere(&self, instructions: &[Instruction]) {
        for instruction in instructions {
            self.here(*instruction);
        }
    }
}

impl TableMemory for MachinePlatform {
    fn allocate(&self, bytes: u32) -> Option<Hpa> {
        point();
        let bytes = u64::from(bytes);
        self.supply
            .table(bytes, || self.machine.allocate_table(cpu(), bytes))
    }

    fn free(&self, table: Hpa, bytes: u32) {
        point();
        self.machine
            .free_table(cpu(), to_machine(table), bytes.into());
        self.supply.table_back(bytes.into());
    }

    fn load(&self, entry: Hpa, order: Ordering) -> u64 {
        point();
        self.machine.load(cpu(), to_machine(entry), order)
    }

    fn store(&self, entry: Hpa, value: u64, order: Ordering) {
        point();
        self.machine.store(cpu(), to_machine(entry), value, order);
    }

    fn compare_exchange(&self, entry: Hpa, old: u64, new: u64) -> Result<(), u64> {
        point();
        self.machine
            .compare_exchange(cpu(), to_machine(entry), old, new)
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        point();
        self.machine.swap(cpu(), to_machine(entry), new)
    }
}

impl Tlb for MachinePlatform {
    fn flush(&self, work: &TlbWork) {
        match Arm64::flush(&Arm64Features::ALL, self.vm, work, self) {
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

    fn flush_local(&self, range: GpaRange) {
        self.counts.local.fetch_add(1, Relaxed);
        Arm64::flush_local(&Arm64Features::ALL, self.vm, range, self);
    }

    fn publish(&self) {
        Arm64::publish(&Arm64Features::ALL, self);
    }
}

impl Platform for MachinePlatform {
    type Locks = ModelLocks;
}

impl fmt::Debug for MachinePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachinePlatform")
            .field("vm", &self.vm)
            .field("flushes", &self.flushes())
            .finish_non_exhaustive()
    }
}
