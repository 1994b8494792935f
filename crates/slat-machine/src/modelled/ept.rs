//! Intel EPT.

use slat_table::address::GpaRange;
use slat_table::format::ept::maintenance::{self, Step};
use slat_table::format::ept::{Ept, EptFeatures, EptRoot};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::ept::{self, Instruction};
use crate::event::{self, Registers, Vm};
use crate::rig::plan;

impl Modelled for Ept {
    /// One bit turns on both flags.
    fn equipped(features: EptFeatures, has: &plan::Features) -> EptFeatures {
        EptFeatures {
            accessed_dirty: features.accessed_dirty && has.hardware_accessed && has.hardware_dirty,
            ..features
        }
    }

    fn registers(features: &EptFeatures, root: EptRoot, vm: Vm) -> Registers {
        Registers::Ept(ept::Registers {
            vm,
            eptp: root.eptp,
            capabilities: capabilities(*features),
            physical_bits: features.physical_bits,
            mode_based_execute: features.mode_based_execute,
        })
    }

    fn flush(_: &EptFeatures, _: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush(work, |step| execute(step, cpus))
    }

    fn flush_local(_: &EptFeatures, _: Vm, range: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local(range, |step| execute(step, cpus));
    }

    fn publish(_: &EptFeatures, cpus: &impl Cpus) {
        maintenance::publish(|step| execute(step, cpus));
    }
}

/// `IA32_VMX_EPT_VPID_CAP` of a CPU with these features: always with walks of 4 levels in write-back
/// memory, and with `INVEPT` of both types.
fn capabilities(features: EptFeatures) -> u64 {
    let always = 1 << 6 | 1 << 14 | 1 << 20 | 1 << 25 | 1 << 26;
    always
        | u64::from(features.execute_only)
        | u64::from(features.five_levels) << 7
        | u64::from(features.blocks_2m) << 16
        | u64::from(features.blocks_1g) << 17
        | u64::from(features.accessed_dirty) << 21
}

fn execute(step: Step, cpus: &impl Cpus) {
    match step {
        Step::Here(instruction) => cpus.here(executed(instruction)),
        Step::Everywhere(instruction) => cpus.everywhere(&[executed(instruction)]),
    }
}

/// The instruction as the machine knows it.
const fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::Ept(match instruction {
        Issued::Mfence => Instruction::Mfence,
        Issued::InveptSingleContext => Instruction::InveptSingleContext,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modelled::agreement;

    #[test]
    fn the_walker_reads_what_the_encoder_meant() {
        for bits in 0..16 {
            let bit = |number: u8| bits >> number & 1 != 0;
            let features = EptFeatures {
                execute_only: bit(0),
                mode_based_execute: bit(1),
                accessed_dirty: bit(2),
                ignore_pat: bit(3),
                ..EptFeatures::ALL
            };
            agreement::check::<Ept>(&features, 48);
        }
        agreement::check::<Ept>(&EptFeatures::ALL, 57);
        agreement::check::<Ept>(&EptFeatures::NONE, 40);
    }
}
