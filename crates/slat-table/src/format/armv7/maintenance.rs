//! TLB maintenance for Armv7 stage 2: which barriers and invalidations carry out a [`TlbWork`].
//!
//! This is a list of instructions, not the instructions themselves: bare metal executes each as it
//! comes, a model of the machine interprets it. So the sequence that runs on hardware is the one
//! that was tested.
//!
//! Armv7 cannot invalidate by guest physical address (DDI 0406, B3.10): whatever is to be
//! forgotten, everything of the VM is, second-stage translations and what was combined with the
//! guest's own alike. So the order matters less than it does later: the changed entries become
//! visible to the table walkers, then the one invalidation goes out and is waited for.

use crate::platform::{Extent, TlbWork};

/// An instruction to execute in Hyp mode, with `VTTBR` naming the VM concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `DSB ISHST`: entries written are visible to all walkers.
    DsbIshst,
    /// `DSB ISH`: so are they, and invalidations issued before are complete on all CPUs.
    DsbIsh,
    /// `DSB NSHST`: entries written are visible to this CPU's walker.
    DsbNshst,
    /// `DSB NSH`: so are they, and invalidations of this CPU issued before are complete.
    DsbNsh,
    /// `ISB`: this CPU fetches what follows under the new translations.
    Isb,
    /// `TLBIALLIS`: forget, on all CPUs, everything of the VM.
    Tlbiallis,
    /// `TLBIALL`: the same on this CPU.
    Tlbiall,
}

/// Issues what makes every CPU forget what `work` names. When the last instruction has been
/// executed, it is done.
#[inline]
pub fn flush(work: &TlbWork, mut issue: impl FnMut(Instruction)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    issue(Instruction::DsbIshst);
    issue(Instruction::Tlbiallis);
    issue(Instruction::DsbIsh);
    issue(Instruction::Isb);
    Extent::Everything
}

/// Issues what makes this CPU forget what it holds of the VM.
#[inline]
pub fn flush_local(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::DsbNshst);
    issue(Instruction::Tlbiall);
    issue(Instruction::DsbNsh);
    issue(Instruction::Isb);
}

/// Issues what makes entries written before visible to every table walker. Enough after entries
/// that were invalid became valid: Armv7 caches no invalid ones (B3.9).
#[inline]
pub fn publish(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::DsbIshst);
    issue(Instruction::Isb);
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::Instruction::{DsbIsh, DsbIshst, DsbNsh, DsbNshst, Isb, Tlbiall, Tlbiallis};
    use super::*;
    use crate::address::{Gpa, GpaRange};
    use crate::geometry::Level;

    fn flushed(work: &TlbWork) -> (Vec<Instruction>, Extent) {
        let mut issued = Vec::new();
        let extent = flush(work, |instruction| issued.push(instruction));
        (issued, extent)
    }

    #[test]
    fn one_page_takes_everything_and_so_do_tables() {
        let everything = [DsbIshst, Tlbiallis, DsbIsh, Isb].to_vec();
        let page = GpaRange::new(Gpa::new(0x4000_0000), 0x1000).unwrap();
        for work in [
            TlbWork::leaves(page, Level::PAGE),
            TlbWork::everything_in(page),
        ] {
            assert_eq!(flushed(&work), (everything.clone(), Extent::Everything));
        }
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        assert_eq!(flushed(&TlbWork::default()), (Vec::new(), Extent::Nothing));
    }

    #[test]
    fn a_local_flush_stays_on_this_cpu() {
        let mut issued = Vec::new();
        flush_local(|instruction| issued.push(instruction));
        assert_eq!(issued, [DsbNshst, Tlbiall, DsbNsh, Isb]);
    }

    #[test]
    fn new_entries_are_made_visible_everywhere() {
        let mut issued = Vec::new();
        publish(|instruction| issued.push(instruction));
        assert_eq!(issued, [DsbIshst, Isb]);
    }
}
