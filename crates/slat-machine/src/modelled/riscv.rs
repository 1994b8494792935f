//! RISC-V G-stage.

use slat_table::address::GpaRange;
use slat_table::format::riscv::maintenance::{self, GStage};
use slat_table::format::riscv::sv32x4::{Sv32x4, Sv32x4Features};
use slat_table::format::riscv::{RiscV, RiscVFeatures};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::event::{self, Registers, Vm};
use crate::rig::plan;
use crate::riscv::{self, Instruction, Width};

impl Modelled for RiscV {
    /// Svadu keeps both bits or neither.
    fn equipped(features: RiscVFeatures, has: &plan::Features) -> RiscVFeatures {
        RiscVFeatures {
            svadu: features.svadu && has.hardware_accessed && has.hardware_dirty,
            ..features
        }
    }

    fn registers(features: &RiscVFeatures, root: u64, _: Vm) -> Registers {
        Registers::RiscV(riscv::Registers {
            width: Width::Rv64,
            hgatp: root,
            memory_types: features.svpbmt,
            hardware_updates: features.svadu,
            svnapot: features.svnapot,
            svvptc: features.svvptc,
        })
    }

    fn flush(_: &RiscVFeatures, vm: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        flush::<Self>(vm, work, cpus)
    }

    fn flush_local(features: &RiscVFeatures, vm: Vm, range: GpaRange, cpus: &impl Cpus) {
        flush_local::<Self>(features, vm, range, cpus);
    }

    fn publish(_: &RiscVFeatures, cpus: &impl Cpus) {
        publish(cpus);
    }
}

impl Modelled for Sv32x4 {
    fn equipped(features: Sv32x4Features, has: &plan::Features) -> Sv32x4Features {
        Sv32x4Features {
            svadu: features.svadu && has.hardware_accessed && has.hardware_dirty,
            ..features
        }
    }

    fn registers(features: &Sv32x4Features, root: u64, _: Vm) -> Registers {
        Registers::RiscV(riscv::Registers {
            width: Width::Rv32,
            hgatp: root,
            memory_types: false,
            hardware_updates: features.svadu,
            svnapot: false,
            svvptc: features.svvptc,
        })
    }

    fn flush(_: &Sv32x4Features, vm: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        flush::<Self>(vm, work, cpus)
    }

    fn flush_local(features: &Sv32x4Features, vm: Vm, range: GpaRange, cpus: &impl Cpus) {
        flush_local::<Self>(features, vm, range, cpus);
    }

    fn publish(_: &Sv32x4Features, cpus: &impl Cpus) {
        publish(cpus);
    }
}

/// The writes first, then the interrupt, then the fences on every hart.
fn flush<F: GStage>(vm: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
    let mut fences = Vec::new();
    let extent = maintenance::flush::<F>(work, vm, |fence| fences.push(executed(fence)));
    if !fences.is_empty() {
        publish(cpus);
        cpus.everywhere(&fences);
    }
    extent
}

fn flush_local<F: GStage>(features: &F::Features, vm: Vm, range: GpaRange, cpus: &impl Cpus) {
    maintenance::flush_local::<F>(features, range, vm, |fence| cpus.here(executed(fence)));
}

fn publish(cpus: &impl Cpus) {
    maintenance::publish(|fence| cpus.here(executed(fence)));
}

/// The instruction as the machine knows it.
fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::RiscV(match instruction {
        Issued::Fence => Instruction::Fence,
        Issued::HfenceGvmaAddress { operand, vmid } => Instruction::HfenceGvmaAddress {
            operand: operand.value(),
            vmid: Some(vmid),
        },
        Issued::HfenceGvmaAll { vmid } => Instruction::HfenceGvma { vmid: Some(vmid) },
    })
}

#[cfg(test)]
mod tests;
