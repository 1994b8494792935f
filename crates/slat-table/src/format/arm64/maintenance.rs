//! TLB maintenance for Arm stage 2: which barriers and invalidations carry out a [`TlbWork`], and
//! in which order.
//!
//! This is a list of instructions, not the instructions themselves: bare metal executes each as it
//! comes, a model of the machine interprets it. So the sequence that runs on hardware is the one
//! that was tested.
//!
//! The order is that of the Arm Architecture Reference Manual (DDI 0487), D8.14 and D8.16. The
//! changed entries become visible to the table walkers. What was cached by guest physical address
//! is invalidated, and that completes. Only then goes what was combined with the guest's own
//! translation, which an invalidation by guest physical address does not reach: before, it could
//! be made again from a stale second-stage entry.

use super::granule::{Granule, bytes};
use crate::address::{Gpa, GpaRange};
use crate::geometry::Level;
use crate::platform::{Extent, TlbWork};

/// Above this many entries, one invalidation of everything is cheaper than one for each.
const MOST_ENTRIES: u64 = 512;

/// An instruction to execute at EL2, with `VTTBR_EL2` naming the VM concerned, and with
/// `HCR_EL2.TGE` clear: where that and `E2H` are set, `VMALLE1` and its kin invalidate the host's
/// own translations instead (D24, `TLBI VMALLE1IS`).
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
    /// `TLBI IPAS2E1IS`: forget, on all CPUs, second-stage translations of one address.
    Ipas2e1is(Operand),
    /// `TLBI IPAS2E1`: the same on this CPU.
    Ipas2e1(Operand),
    /// `TLBI VMALLE1IS`: forget, on all CPUs, what was combined with the guest's own translation.
    Vmalle1is,
    /// `TLBI VMALLE1`: the same on this CPU.
    Vmalle1,
    /// `TLBI VMALLS12E1IS`: forget, on all CPUs, everything of the VM.
    Vmalls12e1is,
    /// `TLBI VMALLS12E1`: the same on this CPU.
    Vmalls12e1,
}

/// The register operand of an invalidation by guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand(u64);

impl Operand {
    /// Bits 51:12 of the address in 39:0, whatever the granule; no level hint (bits 47:44); the
    /// non-secure address space (bit 63 clear), D24.
    const fn of(gpa: Gpa) -> Self {
        Self(gpa.raw() >> 12 & 0xff_ffff_ffff)
    }

    /// The register's value.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// Issues what makes every CPU forget what `work` names. When the last instruction has been
/// executed, it is done.
///
/// A run of leaves that hardware may keep as one translation takes an invalidation for each of
/// its leaves all the same: the hardware need not have kept it as one.
#[inline]
pub fn flush<G: Granule>(work: &TlbWork, mut issue: impl FnMut(Instruction)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    let stride = bytes::<G>(work.smallest_leaf());
    let entries = work
        .ranges()
        .iter()
        .map(|range| touched(range, stride))
        .sum();
    issue(Instruction::DsbIshst);
    let extent = if work.only_leaves() && entries <= MOST_ENTRIES {
        for range in work.ranges() {
            for gpa in entries_of(range, stride) {
                issue(Instruction::Ipas2e1is(Operand::of(gpa)));
            }
        }
        issue(Instruction::DsbIsh);
        issue(Instruction::Vmalle1is);
        Extent::Entries(entries)
    } else {
        issue(Instruction::Vmalls12e1is);
        Extent::Everything
    };
    issue(Instruction::DsbIsh);
    issue(Instruction::Isb);
    extent
}

/// Issues what makes this CPU forget what it holds for `range`.
#[inline]
pub fn flush_local<G: Granule>(range: GpaRange, mut issue: impl FnMut(Instruction)) {
    let stride = bytes::<G>(Level::PAGE);
    issue(Instruction::DsbNshst);
    if touched(&range, stride) <= MOST_ENTRIES {
        for gpa in entries_of(&range, stride) {
            issue(Instruction::Ipas2e1(Operand::of(gpa)));
        }
        issue(Instruction::DsbNsh);
        issue(Instruction::Vmalle1);
    } else {
        issue(Instruction::Vmalls12e1);
    }
    issue(Instruction::DsbNsh);
    issue(Instruction::Isb);
}

/// Issues what makes entries written before visible to every table walker. Enough after entries
/// that were invalid became valid: Arm caches no invalid ones.
#[inline]
pub fn publish(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::DsbIshst);
    issue(Instruction::Isb);
}

/// How many entries `range` touches.
fn touched(range: &GpaRange, stride: u64) -> u64 {
    (range.end().raw() - 1) / stride - range.start().raw() / stride + 1
}

/// One address in each entry that `range` touches.
fn entries_of(range: &GpaRange, stride: u64) -> impl Iterator<Item = Gpa> + use<> {
    let first = range.start().raw() / stride;
    let last = (range.end().raw() - 1) / stride;
    (first..=last).map(move |entry| Gpa::new(entry * stride))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::Instruction::{
        DsbIsh, DsbIshst, DsbNsh, DsbNshst, Ipas2e1, Ipas2e1is, Isb, Vmalle1, Vmalle1is,
        Vmalls12e1, Vmalls12e1is,
    };
    use super::*;
    use crate::format::arm64::{Granule4K, Granule16K, Granule64K};

    fn range(start: u64, bytes: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), bytes).unwrap()
    }

    fn flushed_with<G: Granule>(work: &TlbWork) -> (Vec<Instruction>, Extent) {
        let mut issued = Vec::new();
        let extent = flush::<G>(work, |instruction| issued.push(instruction));
        (issued, extent)
    }

    fn flushed(work: &TlbWork) -> (Vec<Instruction>, Extent) {
        flushed_with::<Granule4K>(work)
    }

    #[test]
    fn pages_are_invalidated_one_by_one_and_then_what_was_combined() {
        let work = TlbWork::leaves(range(0x4000_1000, 0x2000), Level::PAGE);
        let (issued, extent) = flushed(&work);
        let expected = [
            DsbIshst,
            Ipas2e1is(Operand(0x4_0001)),
            Ipas2e1is(Operand(0x4_0002)),
            DsbIsh,
            Vmalle1is,
            DsbIsh,
            Isb,
        ];
        assert_eq!(issued, expected);
        assert_eq!(extent, Extent::Entries(2));
    }

    #[test]
    fn a_block_takes_one_invalidation() {
        let work = TlbWork::leaves(range(0x4000_0000, 4 << 20), Level::new(1));
        let (issued, extent) = flushed(&work);
        assert_eq!(issued[1], Ipas2e1is(Operand(0x4_0000)));
        assert_eq!(issued[2], Ipas2e1is(Operand(0x4_0200)));
        assert_eq!(extent, Extent::Entries(2));
    }

    #[test]
    fn a_part_of_a_block_names_the_block() {
        let work = TlbWork::leaves(range(0x4001_0000, 2 << 20), Level::new(1));
        let (issued, _) = flushed(&work);
        assert_eq!(issued[1], Ipas2e1is(Operand(0x4_0000)));
        assert_eq!(issued[2], Ipas2e1is(Operand(0x4_0200)));
    }

    #[test]
    fn tables_and_large_ranges_take_everything() {
        let everything = [DsbIshst, Vmalls12e1is, DsbIsh, Isb];
        let tables = TlbWork::everything_in(range(0x4000_0000, 0x1000));
        assert_eq!(flushed(&tables), (everything.to_vec(), Extent::Everything));
        let many = TlbWork::leaves(range(0x4000_0000, 513 << 12), Level::PAGE);
        assert_eq!(flushed(&many), (everything.to_vec(), Extent::Everything));
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        assert_eq!(flushed(&TlbWork::default()), (Vec::new(), Extent::Nothing));
    }

    #[test]
    fn a_local_flush_stays_on_this_cpu() {
        let local = |range| {
            let mut issued = Vec::new();
            flush_local::<Granule4K>(range, |instruction| issued.push(instruction));
            issued
        };
        let page = [
            DsbNshst,
            Ipas2e1(Operand(0x4_0000)),
            DsbNsh,
            Vmalle1,
            DsbNsh,
            Isb,
        ];
        assert_eq!(local(range(0x4000_0000, 0x1000)), page);
        let large = [DsbNshst, Vmalls12e1, DsbNsh, Isb];
        assert_eq!(local(range(0, 1 << 30)), large);
    }

    #[test]
    fn publishing_takes_a_barrier_and_a_synchronization() {
        let mut issued = Vec::new();
        publish(|instruction| issued.push(instruction));
        assert_eq!(issued, [DsbIshst, Isb]);
    }

    #[test]
    fn larger_pages_take_an_invalidation_each() {
        let work = TlbWork::leaves(range(0x4000_0000, 0x4_0000), Level::PAGE);
        let operands = |issued: Vec<Instruction>| {
            let operand = |instruction: &Instruction| match instruction {
                Ipas2e1is(operand) => Some(operand.value()),
                _ => None,
            };
            issued.iter().filter_map(operand).collect::<Vec<_>>()
        };
        let (issued, extent) = flushed_with::<Granule64K>(&work);
        assert_eq!(extent, Extent::Entries(4));
        assert_eq!(operands(issued), [0x4_0000, 0x4_0010, 0x4_0020, 0x4_0030]);
        let (issued, extent) = flushed_with::<Granule16K>(&work);
        assert_eq!(extent, Extent::Entries(16));
        assert_eq!(operands(issued)[15], 0x4_003c);
        let blocks = TlbWork::leaves(range(0x4000_0000, 64 << 20), Level::new(1));
        let (issued, _) = flushed_with::<Granule16K>(&blocks);
        assert_eq!(operands(issued), [0x4_0000, 0x4_2000]);
    }

    #[test]
    fn a_part_of_a_larger_page_names_the_page() {
        let part = range(0x4000_f000, 0x2000);
        let work = TlbWork::leaves(part, Level::PAGE);
        let (issued, extent) = flushed_with::<Granule64K>(&work);
        assert_eq!(issued[1], Ipas2e1is(Operand(0x4_0000)));
        assert_eq!(issued[2], Ipas2e1is(Operand(0x4_0010)));
        assert_eq!(extent, Extent::Entries(2));
        let mut local = Vec::new();
        flush_local::<Granule64K>(part, |instruction| local.push(instruction));
        assert_eq!(local[1], Ipas2e1(Operand(0x4_0000)));
        assert_eq!(local[2], Ipas2e1(Operand(0x4_0010)));
    }

    #[test]
    fn high_addresses_fit_the_operand() {
        let operand = |gpa| Operand::of(Gpa::new(gpa)).value();
        assert_eq!(operand(0xffff_ffff_f000), 0xf_ffff_ffff);
        assert_eq!(operand(0xf_ffff_ffff_f000), 0xff_ffff_ffff);
        assert_eq!(operand(0x8_0000_0000_0000), 1 << 39, "bit 51 is bit 39");
    }
}
