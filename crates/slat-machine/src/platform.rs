//! The machine, as `slat-table` wants it: table memory and TLBs.
//!
//! TLB work is carried out by the very list of instructions that bare metal executes
//! ([`Modelled`]), each handed to the machine as it comes. Where every CPU has to act for itself,
//! the others are interrupted: each executes the instructions at that moment of its own program,
//! having seen what the interrupting CPU had done before, and the interrupting CPU waits until all
//! have.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use slat_report::Flushes;
use slat_table::address::{GpaRange, Hpa};
use slat_table::platform::{Extent, Platform, TableMemory, Tlb, TlbWork};
use slat_table::sync::Ordering;

use crate::address;
use crate::event::{Cpu, Event, Instruction, Vm};
use crate::frames::Supply;
use crate::lock::ModelLocks;
use crate::machine::Machine;
use crate::modelled::{Cpus, Modelled};
use crate::schedule::{cpu, point};

/// The machine as one VM's platform.
pub struct MachinePlatform<F: Modelled> {
    machine: Arc<Machine>,
    vm: Vm,
    features: F::Features,
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

impl<F: Modelled> MachinePlatform<F> {
    /// `machine`, whose CPUs have `features`, for `vm`. Tables are refused as `supply` has it.
    pub fn new(machine: Arc<Machine>, vm: Vm, features: F::Features, supply: Arc<Supply>) -> Self {
        Self {
            machine,
            vm,
            features,
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

    /// What follows the exchange of a live entry without anything in between.
    fn changed(&self, entry: Hpa, old: u64) {
        let cpus = WithTheExchange(self);
        F::changed(&self.features, self.vm, entry, old, &cpus);
    }
}

/// The address as the machine has it.
pub(crate) const fn to_machine(hpa: Hpa) -> address::Hpa {
    address::Hpa(hpa.raw())
}

/// The lock that stands for the order between a CPU that interrupts another and that one.
const fn interrupt(from: Cpu, to: Cpu) -> u64 {
    1 << 32 | (from as u64) << 8 | to as u64
}

impl<F: Modelled> Cpus for MachinePlatform<F> {
    fn here(&self, instruction: Instruction) {
        point();
        self.machine.execute(cpu(), self.vm, instruction);
    }

    fn everywhere(&self, instructions: &[Instruction]) {
        let machine = &self.machine;
        let this = cpu();
        let others = || (0..machine.cpus()).filter(|other| *other != this);
        for other in others() {
            let lock = interrupt(this, other);
            machine.note(this, Event::Unlocked { lock });
        }
        for instruction in instructions {
            self.here(*instruction);
        }
        for other in others() {
            point();
            let lock = interrupt(this, other);
            machine.note(other, Event::Locked { lock });
            for instruction in instructions {
                machine.execute(other, self.vm, *instruction);
            }
            machine.note(other, Event::Unlocked { lock });
        }
        for other in others() {
            let lock = interrupt(this, other);
            machine.note(this, Event::Locked { lock });
        }
    }
}

/// The CPUs for an instruction that is one with the exchange before it: no other CPU has a turn
/// in between.
struct WithTheExchange<'p, F: Modelled>(&'p MachinePlatform<F>);

impl<F: Modelled> Cpus for WithTheExchange<'_, F> {
    fn here(&self, instruction: Instruction) {
        self.0.machine.execute(cpu(), self.0.vm, instruction);
    }

    fn everywhere(&self, instructions: &[Instruction]) {
        self.0.everywhere(instructions);
    }
}

impl<F: Modelled> TableMemory for MachinePlatform<F> {
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
            .compare_exchange(cpu(), to_machine(entry), old, new)?;
        self.changed(entry, old);
        Ok(())
    }

    fn swap(&self, entry: Hpa, new: u64) -> u64 {
        point();
        let old = self.machine.swap(cpu(), to_machine(entry), new);
        self.changed(entry, old);
        old
    }
}

impl<F: Modelled> Tlb for MachinePlatform<F> {
    fn flush(&self, work: &TlbWork) {
        match F::flush(&self.features, self.vm, work, self) {
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
        F::flush_local(&self.features, self.vm, range, self);
    }

    fn publish(&self) {
        F::publish(&self.features, self);
    }
}

impl<F: Modelled> Platform for MachinePlatform<F> {
    type Locks = ModelLocks;
}

impl<F: Modelled> fmt::Debug for MachinePlatform<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachinePlatform")
            .field("vm", &self.vm)
            .field("flushes", &self.flushes())
            .finish_non_exhaustive()
    }
}
