//! TLB maintenance for nested paging: which instructions carry out a [`TlbWork`], and on which CPUs.
//!
//! This is a list of steps, not the instructions themselves: bare metal executes each as it comes, a
//! model of the machine interprets it.
//!
//! What a CPU has cached of a guest is tagged with the guest's ASID. No instruction finds it by guest
//! physical address; it goes as a whole, at `VMRUN`, if `TLB_CONTROL` in the VMCB says so (AMD64 APM
//! volume 2, 15.16). So every CPU that may hold something must leave the guest and come back by such
//! a `VMRUN`, told by an interrupt. A CPU on which no vCPU of the VM is in the guest owes the same at
//! its next `VMRUN` for it. To give the VM an ASID on that CPU that nobody has used since the last
//! flush of everything does as well.
//!
//! The fence before the interrupt is needed where it is sent by a write to a register of the x2APIC,
//! which does not wait for buffered stores (chapter 16): the other CPU would walk old entries again.

use super::NptFeatures;
use crate::address::GpaRange;
use crate::platform::{Extent, TlbWork};

/// An instruction to execute in the host, for the VM concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `MFENCE`: stores before it are visible to every CPU and its walker.
    Mfence,
    /// The next `VMRUN` for the VM on this CPU has `TLB_CONTROL` 3: forget everything of its ASID.
    FlushAsid,
    /// The next `VMRUN` for the VM on this CPU has `TLB_CONTROL` 1: forget everything of every
    /// ASID. For CPUs that cannot flush one alone.
    FlushAll,
}

/// An instruction and who executes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Step {
    /// This CPU.
    Here(Instruction),
    /// Every CPU, this one included; the next step comes when all of them have left the guest, if
    /// they were in it, and are bound to execute this before they enter it again, or another guest
    /// with its ASID.
    Everywhere(Instruction),
}

/// Issues what makes every CPU forget what `work` names, and more: there is no smaller
/// invalidation. When the last step is complete, it is done.
#[inline]
pub fn flush(features: &NptFeatures, work: &TlbWork, mut issue: impl FnMut(Step)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    issue(Step::Here(Instruction::Mfence));
    issue(Step::Everywhere(forget(*features)));
    Extent::Everything
}

/// Issues what makes this CPU forget what it holds for `range`, and everything else of the VM.
#[inline]
pub fn flush_local(features: &NptFeatures, _: GpaRange, mut issue: impl FnMut(Step)) {
    issue(Step::Here(Instruction::Mfence));
    issue(Step::Here(forget(*features)));
}

/// Issues what makes entries written before visible to every table walker. Enough after entries
/// that were empty became valid: those that are not present are not cached (5.5).
#[inline]
pub fn publish(mut issue: impl FnMut(Step)) {
    issue(Step::Here(Instruction::Mfence));
}

const fn forget(features: NptFeatures) -> Instruction {
    if features.flush_by_asid {
        Instruction::FlushAsid
    } else {
        Instruction::FlushAll
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::Instruction::{FlushAll, FlushAsid, Mfence};
    use super::Step::{Everywhere, Here};
    use super::*;
    use crate::address::Gpa;
    use crate::geometry::Level;

    fn range() -> GpaRange {
        GpaRange::new(Gpa::new(0x4000_0000), 0x1000).unwrap()
    }

    fn flushed(features: &NptFeatures, work: &TlbWork) -> (Vec<Step>, Extent) {
        let mut issued = Vec::new();
        let extent = flush(features, work, |step| issued.push(step));
        (issued, extent)
    }

    #[test]
    fn stores_are_drained_before_any_other_cpu_is_told() {
        for (features, forgets) in [(NptFeatures::ALL, FlushAsid), (NptFeatures::NONE, FlushAll)] {
            let expected = [Here(Mfence), Everywhere(forgets)];
            for work in [
                TlbWork::leaves(range(), Level::PAGE),
                TlbWork::everything_in(range()),
            ] {
                let (issued, extent) = flushed(&features, &work);
                assert_eq!(
                    (issued.as_slice(), extent),
                    (&expected[..], Extent::Everything)
                );
            }
        }
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        let nothing = flushed(&NptFeatures::ALL, &TlbWork::default());
        assert_eq!(nothing, (Vec::new(), Extent::Nothing));
    }

    #[test]
    fn what_is_local_interrupts_nobody() {
        let mut issued = Vec::new();
        flush_local(&NptFeatures::ALL, range(), |step| issued.push(step));
        assert_eq!(issued, [Here(Mfence), Here(FlushAsid)]);
        issued.clear();
        publish(|step| issued.push(step));
        assert_eq!(issued, [Here(Mfence)]);
    }
}
