//! TLB maintenance for the RISC-V G-stage: which fences carry out a [`TlbWork`], and where.
//!
//! This is a list of instructions, not the instructions themselves: bare metal executes each as it
//! comes, a model of the machine interprets it. So the sequence that runs on hardware is the one
//! that was tested.
//!
//! `HFENCE.GVMA` ("Hypervisor Memory-Management Fence Instructions") works on the hart that
//! executes it alone, so every hart that may hold translations of the VM has to be interrupted.
//! The order is: [`publish`], so that what was written to entries comes before the interrupt; the
//! interrupt; [`flush`] on every hart, this one included; and an answer from each hart after it. A
//! hart that is outside the guest and will execute `flush` before it enters counts as one that
//! has: before it enters that VM or, if that is gone, the next one with its VMID. The SBI's remote
//! fences do all but the first step.
//!
//! With an address, the fence orders *leaf* entries for that address and nothing above them. It
//! covers what was combined with the guest's own translation too, unlike Arm's invalidation by
//! guest physical address. Each page of a run needs a fence of its own: an implementation may keep
//! a run as one translation or as sixteen ("Svnapot").

use super::RiscV;
use super::sv32x4::Sv32x4;
use crate::address::{Gpa, GpaRange};
use crate::format::Format;
use crate::geometry::Level;
use crate::platform::{Extent, TlbWork};

/// Above this many entries, one fence for everything is cheaper than one for each.
const MOST_ENTRIES: u64 = 64;

/// An instruction to execute in HS-mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `FENCE RW, RW`: what this hart wrote before is in memory before anything that it does after.
    Fence,
    /// `HFENCE.GVMA rs1, rs2`: this hart's walks see what was written before to the leaf entries of
    /// one guest physical address, and it forgets what it held of them.
    HfenceGvmaAddress {
        /// `rs1`.
        operand: Operand,
        /// `rs2`: the VM's VMID.
        vmid: u16,
    },
    /// `HFENCE.GVMA x0, rs2`: the same for all entries of all levels.
    HfenceGvmaAll {
        /// `rs2`: the VM's VMID.
        vmid: u16,
    },
}

/// The register that names a guest physical address to `HFENCE.GVMA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand(u64);

impl Operand {
    /// The address without its lowest two bits, so that 34 of them fit a 32-bit register.
    const fn of(gpa: Gpa) -> Self {
        Self(gpa.raw() >> 2)
    }

    /// The register's value.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A format of the G-stage.
pub trait GStage: Format {
    /// Bytes that a leaf of this level maps.
    fn leaf_bytes(level: Level) -> u64;
}

impl GStage for RiscV {
    #[inline]
    fn leaf_bytes(level: Level) -> u64 {
        super::leaf_bytes(level)
    }
}

impl GStage for Sv32x4 {
    #[inline]
    fn leaf_bytes(level: Level) -> u64 {
        super::sv32x4::leaf_bytes(level)
    }
}

/// Issues what every hart executes to forget what `work` names of the VM named `vmid`. When each
/// has executed the last instruction, it is done.
#[inline]
pub fn flush<F: GStage>(work: &TlbWork, vmid: u16, mut issue: impl FnMut(Instruction)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    let stride = F::leaf_bytes(work.smallest_leaf());
    let entries = work.ranges().iter().map(|range| count(range, stride)).sum();
    if !work.only_leaves() || entries > MOST_ENTRIES {
        issue(Instruction::HfenceGvmaAll { vmid });
        return Extent::Everything;
    }
    for range in work.ranges() {
        each_entry(range, stride, vmid, &mut issue);
    }
    Extent::Entries(entries)
}

/// Issues what makes this hart forget what it holds for `range`.
///
/// Where invalid entries may be cached, a pointer to a table may be what was added above `range`,
/// and no fence with an address covers that.
#[inline]
pub fn flush_local<F: GStage>(
    features: &F::Features,
    range: GpaRange,
    vmid: u16,
    mut issue: impl FnMut(Instruction),
) {
    if F::rules(features).caches_invalid || range.pages() > MOST_ENTRIES {
        issue(Instruction::HfenceGvmaAll { vmid });
    } else {
        each_entry(&range, F::leaf_bytes(Level::PAGE), vmid, &mut issue);
    }
}

/// Issues what brings entries written before to memory, where every walk that reads them anew
/// finds them. It obliges no hart to do so: a walk may use an older value until the next
/// `HFENCE.GVMA`, or, where Svvptc promises that of entries that became valid, for a short while.
/// That is a fault more and nothing worse.
#[inline]
pub fn publish(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::Fence);
}

fn each_entry(range: &GpaRange, stride: u64, vmid: u16, issue: &mut impl FnMut(Instruction)) {
    for gpa in entries_of(range, stride) {
        let operand = Operand::of(gpa);
        issue(Instruction::HfenceGvmaAddress { operand, vmid });
    }
}

/// First and last of the entries that `range` touches.
fn touched(range: &GpaRange, stride: u64) -> (u64, u64) {
    let first = range.start().raw() / stride;
    let last = (range.end().raw() - 1) / stride;
    (first, last)
}

fn count(range: &GpaRange, stride: u64) -> u64 {
    let (first, last) = touched(range, stride);
    last - first + 1
}

/// One address in each entry that `range` touches.
fn entries_of(range: &GpaRange, stride: u64) -> impl Iterator<Item = Gpa> + use<> {
    let (first, last) = touched(range, stride);
    (first..=last).map(move |entry| Gpa::new(entry * stride))
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::super::RiscVFeatures;
    use super::Instruction::{Fence, HfenceGvmaAddress, HfenceGvmaAll};
    use super::*;

    const MIB2: Level = Level::new(1);

    fn range(start: u64, bytes: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), bytes).unwrap()
    }

    fn at(gpa: u64) -> Instruction {
        let operand = Operand(gpa >> 2);
        HfenceGvmaAddress { operand, vmid: 7 }
    }

    const ALL: Instruction = HfenceGvmaAll { vmid: 7 };

    fn flushed<F: GStage>(work: &TlbWork) -> (Vec<Instruction>, Extent) {
        let mut issued = Vec::new();
        let extent = flush::<F>(work, 7, |instruction| issued.push(instruction));
        (issued, extent)
    }

    #[test]
    fn pages_are_fenced_one_by_one() {
        let work = TlbWork::leaves(range(0x4000_1000, 0x2000), Level::PAGE);
        let expected = vec![at(0x4000_1000), at(0x4000_2000)];
        assert_eq!(flushed::<RiscV>(&work), (expected, Extent::Entries(2)));
    }

    #[test]
    fn every_page_of_a_run_is_fenced() {
        let work = TlbWork::leaves(range(0x4001_0000, 0x1_0000), Level::PAGE);
        let (issued, extent) = flushed::<RiscV>(&work);
        let pages: Vec<_> = (0..16)
            .map(|page| at(0x4001_0000 + page * 0x1000))
            .collect();
        assert_eq!((issued, extent), (pages, Extent::Entries(16)));
    }

    #[test]
    fn a_block_takes_one_fence_at_its_start_even_for_a_part_of_it() {
        let work = TlbWork::leaves(range(0x4001_0000, 2 << 20), MIB2);
        let expected = vec![at(0x4000_0000), at(0x4020_0000)];
        assert_eq!(flushed::<RiscV>(&work), (expected, Extent::Entries(2)));
        let expected = vec![at(0x4000_0000)];
        assert_eq!(flushed::<Sv32x4>(&work), (expected, Extent::Entries(1)));
    }

    #[test]
    fn tables_and_many_entries_take_everything() {
        let everything = (vec![ALL], Extent::Everything);
        let tables = TlbWork::everything_in(range(0x4000_0000, 0x1000));
        assert_eq!(flushed::<RiscV>(&tables), everything);
        let many = TlbWork::leaves(range(0x4000_0000, 65 << 12), Level::PAGE);
        assert_eq!(flushed::<RiscV>(&many), everything);
        let most = TlbWork::leaves(range(0x4000_0000, 64 << 12), Level::PAGE);
        assert_eq!(flushed::<RiscV>(&most).1, Extent::Entries(64));
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        let nothing = (vec![], Extent::Nothing);
        assert_eq!(flushed::<RiscV>(&TlbWork::default()), nothing);
    }

    #[test]
    fn where_invalid_entries_are_cached_a_local_flush_names_no_address() {
        let local = |features: RiscVFeatures, range| {
            let mut issued = Vec::new();
            flush_local::<RiscV>(&features, range, 7, |instruction| issued.push(instruction));
            issued
        };
        let page = range(0x4000_3000, 0x1000);
        assert_eq!(local(RiscVFeatures::NONE, page), [ALL]);
        assert_eq!(local(RiscVFeatures::ALL, page), [at(0x4000_3000)]);
        let block = range(0x4000_0000, 2 << 20);
        assert_eq!(local(RiscVFeatures::ALL, block), [ALL]);
        let most = range(0x4000_0000, MOST_ENTRIES << 12);
        assert_eq!(local(RiscVFeatures::ALL, most).len() as u64, MOST_ENTRIES);
    }

    #[test]
    fn entries_are_brought_to_memory_by_a_fence() {
        let mut issued = Vec::new();
        publish(|instruction| issued.push(instruction));
        assert_eq!(issued, [Fence]);
    }

    #[test]
    fn the_highest_address_fits_the_operand() {
        let last = Gpa::new((1 << 59) - 0x1000);
        assert_eq!(Operand::of(last).value(), (1 << 57) - 0x400);
        let narrow = Gpa::new((1 << 34) - 0x1000);
        assert!(u32::try_from(Operand::of(narrow).value()).is_ok());
    }
}
