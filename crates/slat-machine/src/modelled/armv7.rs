//! Armv7 LPAE stage 2.

use slat_table::address::GpaRange;
use slat_table::format::armv7::{Armv7, Armv7Features, Armv7Root, maintenance};
use slat_table::platform::{Extent, TlbWork};

use super::{Cpus, Modelled};
use crate::armv7::{self, Instruction};
use crate::event::{self, Registers, Vm};

impl Modelled for Armv7 {
    fn registers(_: &Armv7Features, root: Armv7Root, _: Vm) -> Registers {
        Registers::Armv7(armv7::Registers {
            vttbr: root.vttbr,
            vtcr: root.vtcr.into(),
        })
    }

    fn flush(_: &Armv7Features, _: Vm, work: &TlbWork, cpus: &impl Cpus) -> Extent {
        maintenance::flush(work, |instruction| cpus.here(executed(instruction)))
    }

    fn flush_local(_: &Armv7Features, _: Vm, _: GpaRange, cpus: &impl Cpus) {
        maintenance::flush_local(|instruction| cpus.here(executed(instruction)));
    }

    fn publish(_: &Armv7Features, cpus: &impl Cpus) {
        maintenance::publish(|instruction| cpus.here(executed(instruction)));
    }
}

/// The instruction as the machine knows it.
const fn executed(instruction: maintenance::Instruction) -> event::Instruction {
    use maintenance::Instruction as Issued;
    event::Instruction::Armv7(match instruction {
        Issued::DsbIshst => Instruction::DsbIshst,
        Issued::DsbIsh => Instruction::DsbIsh,
        Issued::DsbNshst => Instruction::DsbNshst,
        Issued::DsbNsh => Instruction::DsbNsh,
        Issued::Isb => Instruction::Isb,
        Issued::Tlbiallis => Instruction::Tlbiallis,
        Issued::Tlbiall => Instruction::Tlbiall,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modelled::agreement;

    #[test]
    fn the_walker_reads_what_the_encoder_meant() {
        for bits in 32..=40 {
            agreement::check::<Armv7>(&Armv7Features::ALL, bits);
        }
    }
}
