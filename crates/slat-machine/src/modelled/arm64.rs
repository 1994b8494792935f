//! Arm VMSAv8-64 stage 2.

use slat_table::address::GpaRange;
use slat_table::format::arm64::{Arm64Features, Arm64Root, Granule, StageTwo, maintenance};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::arm64::{self, Instruction};
use crate::event::{self, Registers, Vm};
use crate::rig::plan;

impl<G: Granule> Modelled for StageTwo<G> {
    fn equipped(features: Arm64Features, has: &plan::Features) -> Arm64Features {
        Arm64Features {
            hardware_accessed: features.hardware_accessed && has.hardware_accessed,
            hardware_dirty: features.hardware_dirty && has.hardware_dirty,
            force_write_back: features.force_write_back && has.force_write_back,
            ..features
        }
    }

    fn registers(features: &Arm64Features, root: Arm64Root, _: Vm) -> Registers {
        Registers::Arm64(arm64::Registers {
            vttbr: root.vttbr,
            vtcr: root.vtcr,
            force_write_back: features.force_write_back,
        })
    }

    fn flush(_: &Arm64Features, _: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush::<G>(work, |instruction| cpus.here(executed(instruction)))
    }

    fn flush_local(_: &Arm64Features, _: Vm, range: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local::<G>(range, |instruction| cpus.here(executed(instruction)));
    }

    fn publish(_: &Arm64Features, cpus: &impl Cpus) {
        maintenance::publish(|instruction| cpus.here(executed(instruction)));
    }
}

/// The instruction as the machine knows it.
fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::Arm64(match instruction {
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
    })
}

#[cfg(test)]
mod tests {
    use slat_table::format::arm64::{
        Arm64, Arm64Granule16K, Arm64Granule16KLpa2, Arm64Granule64K, Arm64Lpa2,
    };

    use super::*;
    use crate::modelled::agreement;

    /// Features of CPUs, with addresses of so many bits.
    fn cpus(physical_bits: u8) -> impl Iterator<Item = Arm64Features> {
        let no_dirty = Arm64Features {
            hardware_dirty: false,
            ..Arm64Features::ALL
        };
        [Arm64Features::ALL, Arm64Features::NONE, no_dirty]
            .into_iter()
            .map(move |features| Arm64Features {
                physical_bits,
                ..features
            })
    }

    #[test]
    fn the_walker_reads_what_the_encoder_meant() {
        for features in cpus(48) {
            agreement::check::<Arm64>(&features, 48);
            agreement::check::<Arm64Lpa2>(&features, 48);
            agreement::check::<Arm64Granule16K>(&features, 47);
            agreement::check::<Arm64Granule64K>(&features, 48);
        }
        for features in cpus(52) {
            agreement::check::<Arm64>(&features, 40);
            agreement::check::<Arm64Lpa2>(&features, 52);
            agreement::check::<Arm64Granule16KLpa2>(&features, 52);
            agreement::check::<Arm64Granule64K>(&features, 52);
        }
    }

    #[test]
    fn the_walker_finds_trees_of_every_width() {
        for bits in 32..=48 {
            agreement::check::<Arm64>(&Arm64Features::ALL, bits);
            agreement::check::<Arm64Granule16K>(&Arm64Features::ALL, bits);
            agreement::check::<Arm64Granule64K>(&Arm64Features::ALL, bits);
        }
        for bits in 32..=52 {
            agreement::check::<Arm64Lpa2>(&Arm64Features::WIDE, bits);
            agreement::check::<Arm64Granule16KLpa2>(&Arm64Features::WIDE, bits);
            agreement::check::<Arm64Granule64K>(&Arm64Features::WIDE, bits);
        }
    }
}
