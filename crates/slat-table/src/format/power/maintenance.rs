//! TLB maintenance for POWER radix tables: which invalidations and barriers carry out a
//! [`TlbWork`], and in which order.
//!
//! The order is that of the Power ISA, version 3.1, Book III, "Translation Table Update
//! Synchronization Requirements". `ptesync` makes the changed entries visible to the table walkers
//! before anything is invalidated; `tlbie` reaches all CPUs; `eieio` and `tlbsync` order it before
//! the second `ptesync`, which waits until every CPU is done.
//!
//! A `tlbie` finds translations of one page size only, the one in its operand. So a range in which
//! leaves of several sizes have changed is gone through once for each size. One by guest real
//! address also reaches what a CPU has combined with the guest's own translation.

use super::{LARGEST_BLOCK, PageSize, Power};
use crate::address::{Gpa, GpaRange};
use crate::geometry::Level;
use crate::platform::{Extent, TlbWork};

/// Above this many entries, one invalidation of everything is cheaper than one for each.
const MOST_ENTRIES: u64 = 512;

/// An instruction to execute in hypervisor state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `ptesync`: entries written are visible to all walkers, and invalidations ordered by a
    /// `tlbsync` before are complete on all CPUs.
    Ptesync,
    /// `eieio`: orders `tlbie` before the `tlbsync` that follows.
    Eieio,
    /// `tlbsync`: the next `ptesync` waits for what all CPUs were told by `tlbie`.
    Tlbsync,
    /// `tlbie` with `PRS` 0 (partition-scoped) and `R` 1 (radix), on all CPUs.
    Tlbie(Tlbie),
    /// `tlbiel` with the same, on this CPU, completed by the next `ptesync`. It takes the partition
    /// from `LPIDR` and not from `RS`, so `LPIDR` must name the VM while it is executed.
    Tlbiel(Tlbie),
}

/// What a `tlbie` or `tlbiel` invalidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlbie {
    ric: Ric,
    rb: u64,
    rs: u64,
}

/// Radix invalidation control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "whoever executes it must know all")]
pub enum Ric {
    /// Translations.
    Translations = 0,
    /// Translations, pointers to tables, and the partition-table entry.
    Everything = 2,
}

impl Tlbie {
    /// Translations of one guest real address by a leaf of `level`.
    fn page<P: PageSize>(lpid: u16, level: Level, gpa: Gpa) -> Self {
        Self {
            ric: Ric::Translations,
            rb: gpa.raw() | page_size::<P>(level) << 5,
            rs: lpid.into(),
        }
    }

    /// All that a partition has.
    fn partition(lpid: u16) -> Self {
        const BY_LPID: u64 = 0b10;
        Self {
            ric: Ric::Everything,
            rb: BY_LPID << 10,
            rs: lpid.into(),
        }
    }

    /// The instruction's `RIC` field.
    pub const fn ric(self) -> Ric {
        self.ric
    }

    /// Register `RB`: guest real page in 63:12, `IS` in 11:10 (0 by address, 2 by partition), `AP`,
    /// the page's size, in 7:5.
    pub const fn rb(self) -> u64 {
        self.rb
    }

    /// Register `RS`: the partition's number.
    pub const fn rs(self) -> u64 {
        self.rs
    }
}

/// `AP`: how the size of a page is encoded.
const fn page_size<P: PageSize>(level: Level) -> u64 {
    match Power::<P>::shift(level) {
        12 => 0b000,
        16 => 0b101,
        21 => 0b001,
        _ => 0b010,
    }
}

/// Issues what makes every CPU forget what `work` names of the partition `lpid`. When the last
/// instruction has been executed, it is done.
#[inline]
pub fn flush<P: PageSize>(lpid: u16, work: &TlbWork, mut issue: impl FnMut(Instruction)) -> Extent {
    if work.is_empty() {
        return Extent::Nothing;
    }
    let number = entries::<P>(work).map(|entries| entries.count()).sum();
    issue(Instruction::Ptesync);
    let extent = if work.only_leaves() && number <= MOST_ENTRIES {
        for (level, gpa) in entries::<P>(work).flat_map(Entries::each) {
            issue(Instruction::Tlbie(Tlbie::page::<P>(lpid, level, gpa)));
        }
        Extent::Entries(number)
    } else {
        issue(Instruction::Tlbie(Tlbie::partition(lpid)));
        Extent::Everything
    };
    issue(Instruction::Eieio);
    issue(Instruction::Tlbsync);
    issue(Instruction::Ptesync);
    extent
}

/// Issues what makes this CPU forget what it holds for `range`.
#[inline]
pub fn flush_local<P: PageSize>(lpid: u16, range: GpaRange, mut issue: impl FnMut(Instruction)) {
    let work = TlbWork::everything_in(range);
    if entries::<P>(&work)
        .map(|entries| entries.count())
        .sum::<u64>()
        > MOST_ENTRIES
    {
        // What tlbiel has for a whole partition takes one instruction for each set of the TLB, and
        // how many there are depends on the processor.
        flush::<P>(lpid, &work, issue);
        return;
    }
    issue(Instruction::Ptesync);
    for (level, gpa) in entries::<P>(&work).flat_map(Entries::each) {
        issue(Instruction::Tlbiel(Tlbie::page::<P>(lpid, level, gpa)));
    }
    issue(Instruction::Ptesync);
}

/// Issues what makes entries written before visible to every table walker. Enough after entries
/// that were invalid became valid: no CPU keeps invalid ones.
#[inline]
pub fn publish(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::Ptesync);
}

/// Neighbouring entries of one level: the first and the last, numbered from guest address 0.
struct Entries {
    level: Level,
    shift: u8,
    first: u64,
    last: u64,
}

impl Entries {
    /// How many there are.
    const fn count(&self) -> u64 {
        self.last - self.first + 1
    }

    /// The level and first address of each.
    fn each(self) -> impl Iterator<Item = (Level, Gpa)> {
        let Self {
            level,
            shift,
            first,
            last,
        } = self;
        (first..=last).map(move |entry| (level, Gpa::new(entry << shift)))
    }
}

/// The leaves that `work` may be about, of every size.
fn entries<P: PageSize>(work: &TlbWork) -> impl Iterator<Item = Entries> {
    let (smallest, largest) = (work.smallest_leaf(), work.largest_leaf());
    let levels = core::iter::successors(Some(Level::PAGE), |level| Some(level.up()))
        .take_while(|level| *level <= LARGEST_BLOCK)
        .filter(move |level| (smallest..=largest).contains(level));
    levels.flat_map(|level| {
        let shift = Power::<P>::shift(level);
        work.ranges().iter().map(move |range| Entries {
            level,
            shift,
            first: range.start().raw() >> shift,
            last: (range.end().raw() - 1) >> shift,
        })
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::{Page4K, Page64K};
    use super::Instruction::{Eieio, Ptesync, Tlbsync};
    use super::*;

    const LPID: u16 = 0x123;
    const MIB2: Level = Level::new(1);
    const GIB1: Level = Level::new(2);

    fn range(start: u64, bytes: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), bytes).unwrap()
    }

    fn flushed<P: PageSize>(work: &TlbWork) -> (Vec<Instruction>, Extent) {
        let mut issued = Vec::new();
        let extent = flush::<P>(LPID, work, |instruction| issued.push(instruction));
        (issued, extent)
    }

    fn local(range: GpaRange) -> Vec<Instruction> {
        let mut issued = Vec::new();
        flush_local::<Page4K>(LPID, range, |instruction| issued.push(instruction));
        issued
    }

    fn page(rb: u64) -> Tlbie {
        Tlbie {
            ric: Ric::Translations,
            rb,
            rs: 0x123,
        }
    }

    const PARTITION: Instruction = Instruction::Tlbie(Tlbie {
        ric: Ric::Everything,
        rb: 0x800,
        rs: 0x123,
    });

    /// `tlbie`s with these `RB`s, between barriers.
    fn by_address(rbs: &[u64]) -> Vec<Instruction> {
        let tlbies = rbs.iter().map(|&rb| Instruction::Tlbie(page(rb)));
        let after = [Eieio, Tlbsync, Ptesync];
        core::iter::once(Ptesync)
            .chain(tlbies)
            .chain(after)
            .collect()
    }

    #[test]
    fn each_page_takes_one_invalidation_that_names_its_size() {
        let pages = TlbWork::leaves(range(0x4000_0000, 0x2_0000), Level::PAGE);
        let (issued, extent) = flushed::<Page64K>(&pages);
        assert_eq!(issued, by_address(&[0x4000_00a0, 0x4001_00a0]));
        assert_eq!(extent, Extent::Entries(2));
        let pages = TlbWork::leaves(range(0x4000_1000, 0x2000), Level::PAGE);
        let (issued, _) = flushed::<Page4K>(&pages);
        assert_eq!(issued, by_address(&[0x4000_1000, 0x4000_2000]));
    }

    #[test]
    fn a_block_takes_one_invalidation() {
        for (level, bytes, size) in [(MIB2, 1 << 21, 0x20), (GIB1, 1 << 30, 0x40)] {
            let block = TlbWork::leaves(range(0x4000_0000, bytes), level);
            let expected = by_address(&[0x4000_0000 | size]);
            assert_eq!(flushed::<Page4K>(&block).0, expected);
            assert_eq!(flushed::<Page64K>(&block).0, expected);
        }
    }

    #[test]
    fn a_part_of_a_block_names_the_block() {
        let work = TlbWork::leaves(range(0x4001_0000, 2 << 20), MIB2);
        let (issued, _) = flushed::<Page4K>(&work);
        assert_eq!(issued, by_address(&[0x4000_0020, 0x4020_0020]));
    }

    #[test]
    fn leaves_of_several_sizes_are_named_in_each_size() {
        let mut work = TlbWork::leaves(range(0x4000_0000, 2 << 20), MIB2);
        work.merge(&TlbWork::leaves(range(0x8000_0000, 0x1000), Level::PAGE));
        let (issued, extent) = flushed::<Page64K>(&work);
        let pages = (0..32).map(|page| 0x4000_00a0 + (page << 16));
        let others = [0x8000_00a0, 0x4000_0020, 0x8000_0020];
        let expected: Vec<u64> = pages.chain(others).collect();
        assert_eq!(issued, by_address(&expected));
        assert_eq!(extent, Extent::Entries(35));
    }

    #[test]
    fn tables_and_large_ranges_take_everything() {
        let everything = [Ptesync, PARTITION, Eieio, Tlbsync, Ptesync].to_vec();
        let tables = TlbWork::everything_in(range(0x4000_0000, 0x1000));
        let expected = (everything, Extent::Everything);
        assert_eq!(flushed::<Page4K>(&tables), expected);
        let many = TlbWork::leaves(range(0x4000_0000, 513 << 12), Level::PAGE);
        assert_eq!(flushed::<Page4K>(&many), expected);
    }

    #[test]
    fn nothing_to_forget_issues_nothing() {
        let nothing = flushed::<Page4K>(&TlbWork::default());
        assert_eq!(nothing, (Vec::new(), Extent::Nothing));
    }

    #[test]
    fn a_local_flush_stays_on_this_cpu_while_it_is_small() {
        let tlbiel = |rb| Instruction::Tlbiel(page(rb));
        let small = local(range(0x4020_1000, 0x1000));
        let expected = [
            Ptesync,
            tlbiel(0x4020_1000),
            tlbiel(0x4020_0020),
            tlbiel(0x4000_0040),
            Ptesync,
        ];
        assert_eq!(small, expected);
        let large = [Ptesync, PARTITION, Eieio, Tlbsync, Ptesync];
        assert_eq!(local(range(0, 1 << 30)), large);
        assert_eq!(local(range(0, 1 << 52)), large);
    }

    #[test]
    fn a_local_flush_goes_entry_by_entry_up_to_the_most() {
        // Beside the pages, the block of each larger size around them.
        let pages = MOST_ENTRIES - 2;
        let most = local(range(0, pages << 12));
        assert_eq!(most.len() as u64, MOST_ENTRIES + 2, "between two barriers");
        let more = local(range(0, (pages + 1) << 12));
        assert!(more.contains(&PARTITION));
    }

    #[test]
    fn publishing_takes_one_barrier() {
        let mut issued = Vec::new();
        publish(|instruction| issued.push(instruction));
        assert_eq!(issued, [Ptesync]);
    }

    #[test]
    fn operands_are_readable() {
        let by_page = Tlbie::page::<Page4K>(LPID, Level::PAGE, Gpa::new(0xf_ffff_ffff_f000));
        assert_eq!(by_page.rb(), 0xf_ffff_ffff_f000);
        assert_eq!((by_page.rs(), by_page.ric()), (0x123, Ric::Translations));
    }
}
