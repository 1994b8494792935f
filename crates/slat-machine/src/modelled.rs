//! The formats of `slat-table` whose hardware the model knows.
//!
//! [`Modelled`] is the one place where a format's types and an architecture's meet: what its root
//! pointer becomes in registers, and which instructions carry out its TLB work. The instructions
//! come from the format's own `maintenance` module, which real hardware would execute too.

#[cfg(test)]
mod agreement;
mod arm64;
mod armv7;
mod ept;
mod npt;
mod power;
mod riscv;
mod s390;

use slat_table::address::{GpaRange, Hpa};
use slat_table::format::Format;
use slat_table::platform::{Extent, TlbWork};

use crate::event::{Instruction, Registers, Vm};
use crate::rig::plan;

/// The CPUs, for whoever has TLB work to do.
pub trait Cpus {
    /// Has this CPU execute an instruction.
    fn here(&self, instruction: Instruction);

    /// Interrupts every CPU, this one included, has each execute these instructions, and waits for
    /// all of them.
    fn everywhere(&self, instructions: &[Instruction]);
}

/// A format whose hardware the model knows.
pub trait Modelled: Format {
    /// `features` without what the CPUs of a plan do not have. A feature that the format does not
    /// know changes nothing.
    fn equipped(features: Self::Features, has: &plan::Features) -> Self::Features {
        let _ = has;
        features
    }

    /// The registers that point a CPU to the tree of `vm` at `root`.
    fn registers(features: &Self::Features, root: Self::Root, vm: Vm) -> Registers;

    /// Has every CPU forget what `work` names, as [`Tlb::flush`](slat_table::platform::Tlb::flush)
    /// must.
    fn flush(features: &Self::Features, vm: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent;

    /// Has this CPU forget what it has of `range`, as
    /// [`Tlb::flush_local`](slat_table::platform::Tlb::flush_local) must.
    fn flush_local(features: &Self::Features, vm: Vm, range: GpaRange, cpus: &impl Cpus);

    /// Makes entries written before visible to every walker, as
    /// [`Tlb::publish`](slat_table::platform::Tlb::publish) must.
    fn publish(features: &Self::Features, cpus: &impl Cpus);

    /// The instruction by which a live entry is changed, where it must be one that also has every
    /// CPU forget what the entry said (s390): it is executed with the exchange, as one. `old` is
    /// what the entry at `entry` held.
    fn changed(features: &Self::Features, vm: Vm, entry: Hpa, old: u64, cpus: &impl Cpus) {
        let _ = (features, vm, entry, old, cpus);
    }
}
