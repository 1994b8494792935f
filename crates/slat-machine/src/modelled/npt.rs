//! AMD nested paging.

use slat_table::address::GpaRange;
use slat_table::format::npt::maintenance::{self, Step};
use slat_table::format::npt::{Encryption, Npt, NptFeatures, NptRoot};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::event::{self, Registers, Vm};
use crate::npt::{self, Instruction};

impl Modelled for Npt {
    fn registers(features: &NptFeatures, root: NptRoot, vm: Vm) -> Registers {
        Registers::Npt(npt::Registers {
            vm,
            n_cr3: root.n_cr3,
            five_levels: features.five_levels,
            pat: features.pat,
            physical_bits: features.physical_bits,
            blocks_1g: features.blocks_1g,
            encryption: features.encryption.map(encryption),
        })
    }

    fn flush(features: &NptFeatures, _: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush(features, work, |step| execute(step, cpus))
    }

    fn flush_local(features: &NptFeatures, _: Vm, range: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local(features, range, |step| execute(step, cpus));
    }

    fn publish(_: &NptFeatures, cpus: &impl Cpus) {
        maintenance::publish(|step| execute(step, cpus));
    }
}

/// What CPUID `8000_001F` says in EBX.
fn encryption(encryption: Encryption) -> u32 {
    u32::from(encryption.address_reduction()) << 6 | u32::from(encryption.bit())
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
    event::Instruction::Npt(match instruction {
        Issued::Mfence => Instruction::Mfence,
        Issued::FlushAsid => Instruction::FlushAsid,
        Issued::FlushAll => Instruction::FlushAll,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modelled::agreement;

    #[test]
    fn the_walker_reads_what_the_encoder_meant() {
        let high = NptFeatures {
            encryption: Encryption::new(51, 6),
            ..NptFeatures::FIVE_LEVELS
        };
        for (features, address_bits) in [
            (NptFeatures::ALL, 48),
            (NptFeatures::FIVE_LEVELS, 57),
            (NptFeatures::ENCRYPTED, 48),
            (high, 52),
            (NptFeatures::NONE, 40),
        ] {
            agreement::check::<Npt>(&features, address_bits);
        }
    }
}
