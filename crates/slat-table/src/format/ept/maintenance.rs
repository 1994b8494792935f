//! TLB maintenance for EPT: which instructions carry out a [`TlbWork`], and on which CPUs.
//!
//! This is a list of steps, not the instructions themselves: bare metal executes each as it comes, a
//! model of the machine interprets it.
//!
//! An invalidation of EPT translations acts on one CPU and has no address: `INVEPT` with the type
//! "single-context" forgets what the CPU has cached of one EPT pointer, translations combined with
//! the guest's own included (Intel SDM volume 3, 29.4.3.1 and 29.4.3.4). So every CPU that may hold
//! something must execute it, told by an interrupt. A CPU on which no vCPU of the VM is in the guest
//! may do so later, but before it enters that VM again, or any other whose EPT pointer names the same
//! root: what is cached is tagged with the root's address, and the memory of one that was freed may
//! become another VM's.
//!
//! `INVEPT` is serializing (9.3): stores before it are drained, and nothing after it uses what it
//! invalidated. The interrupt is not, when it is sent by a write to a register of the x2APIC (11.12.3):
//! it could arrive before a store that is still buffered. Hence the fence before it.

use crate::address::GpaRange;
use crate::platform::{Extent, TlbWork};

/// An instruction to execute in VMX root operation, for the VM concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `MFENCE`: stores before it are visible to every CPU and its walker.
    Mfence,
    /// `INVEPT` of type 1 with the VM's EPT pointer: forget everything of the VM, on this CPU.
    InveptSingleContext,
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
    /// Every CPU, this one included; the next step comes when all of them have. A CPU that is not
    /// in the guest counts as having done so if it does before it enters the VM again, or one whose
    /// root is at the same address.
    Everywhere(Instruction),
}

/// Issues what makes every CPU forget what `work` names, and more: there is no smaller
/// invalidation. When the last step is complete, it is done.
#[inline]
pub fn flush(work: &TlbWork, mut issue: impl FnMut(Step)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    issue(Step::Here(Instruction::Mfence));
    issue(Step::Everywhere(Instruction::InveptSingleContext));
    Extent::Everything
}

/// Issues what makes this CPU forget what it holds for `range`, and everything else of the VM.
#[inline]
pub fn flush_local(_: GpaRange, mut issue: impl FnMut(Step)) {
    issue(Step::Here(Instruction::InveptSingleContext));
}

/// Issues what makes entries written before visible to every table walker. Enough after entries
/// that were empty became valid: EPT caches no empty ones (29.4.2).
#[inline]
pub fn publish(mut issue: impl FnMut(Step)) {
    issue(Step::Here(Instruction::Mfence));
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::Instruction::{InveptSingleContext, Mfence};
    use super::Step::{Everywhere, Here};
    use super::*;
    use crate::address::Gpa;
    use crate::geometry::Level;

    fn range() -> GpaRange {
        GpaRange::new(Gpa::new(0x4000_0000), 0x1000).unwrap()
    }

    fn flushed(work: &TlbWork) -> (Vec<Step>, Extent) {
        let mut issued = Vec::new();
        let extent = flush(work, |step| issued.push(step));
        (issued, extent)
    }

    #[test]
    fn stores_are_drained_before_any_other_cpu_is_told() {
        let expected = [Here(Mfence), Everywhere(InveptSingleContext)];
        for work in [
            TlbWork::leaves(range(), Level::PAGE),
            TlbWork::everything_in(range()),
        ] {
            assert_eq!(flushed(&work), (expected.to_vec(), Extent::Everything));
        }
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        assert_eq!(flushed(&TlbWork::default()), (Vec::new(), Extent::Nothing));
    }

    #[test]
    fn what_is_local_interrupts_nobody() {
        let mut issued = Vec::new();
        flush_local(range(), |step| issued.push(step));
        publish(|step| issued.push(step));
        assert_eq!(issued, [Here(InveptSingleContext), Here(Mfence)]);
    }
}
