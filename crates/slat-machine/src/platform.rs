//! The machine, as `slat-table` wants it: table memory and TLBs.
//!
//! TLB work is carried out by the very list of instructions that bare metal executes
//! ([`maintenance`]), each handed to the machine as it comes.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use slat_report::Flushes;
use slat_table::address::{GpaRange, Hpa};
use slat_table::format::arm64::maintenance::{self, Extent};
use slat_table::platform::{Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

use crate::address;
use crate::arm64::Instruction;
use crate::event::{self, Vm};
use crate::frames::Supply;
use crate::lock::ModelLocks;
use crate::machine::Machine;
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

    fn issue(&self, instruction: maintenance::Instruction) {
        point();
        let instruction = event::Instruction::Arm64(executed(instruction));
        self.machine.execute(cpu(), self.vm, instruction);
    }
}

/// The instruction as the machine knows it.
fn executed(instruction: maintenance::Instruction) -> Instruction {
    use maintenance::Instruction as Issued;
    match instruction {
        Issued::DsbIshst => Instruction::DsbIshst,
        Issued::DsbIsh => Instruction::DsbIsh,
        Issued::DsbNshst => Instruction::DsbNshst,
        Issued::DsbNsh => Instruction::DsbNsh,
        Issued::Isb => Instruction::Isb,
        Issued::Ipas2e1is(operand) => Instruction::Ipas2e1is {
            operand: operand.value(),
        },
        Issued::Ipas2e1(operand) => Instruction::Ipas2e1 {
            operand: operand.value(),
        },
        Issued::Vmalle1is => Instruction::Vmalle1is,
        Issued::Vmalle1 => Instruction::Vmalle1,
        Issued::Vmalls12e1is => Instruction::Vmalls12e1is,
        Issued::Vmalls12e1 => Instruction::Vmalls12e1,
    }
}

/// The address as the machine has it.
pub(crate) const fn to_machine(hpa: Hpa) -> address::Hpa {
    address::Hpa(hpa.raw())
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
        match maintenance::flush(work, |instruction| self.issue(instruction)) {
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
        maintenance::flush_local(range, |instruction| self.issue(instruction));
    }

    fn publish(&self) {
        maintenance::publish(|instruction| self.issue(instruction));
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
