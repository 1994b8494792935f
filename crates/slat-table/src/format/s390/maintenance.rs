//! TLB maintenance for s390: which instruction goes with the change of a valid entry.
//!
//! The hardware may keep a translation for as long as the entry that it came from is valid, and a
//! valid entry that any CPU may use must not be changed by a plain store (z/Architecture Principles
//! of Operation, SA22-7832, chapter 3, "Modification of Translation Tables"). `INVALIDATE PAGE
//! TABLE ENTRY` (IPTE) and `INVALIDATE DAT TABLE ENTRY` (IDTE) set the entry's invalid bit and have
//! every CPU forget what was formed through it, the guest's own translations included; when the
//! instruction is complete, so is that.
//!
//! So a [`TableMemory`](crate::platform::TableMemory) for s390 carries out a `swap` or a
//! `compare_exchange` of an entry that holds `old` like this: execute [`change`]`(entry, old)`, then
//! write the new value. Nobody comes in between: valid entries change only under their stripes, and
//! the hardware writes to none. What is left for a [`Tlb`](crate::platform::Tlb) is what goes without
//! a change of entries, when a whole tree is given up ([`flush`]), and to make new entries seen
//! ([`publish`]).
//!
//! `COMPARE AND SWAP AND PURGE` would do it in one step and is not used: it has every CPU forget
//! everything. Nor is `COMPARE AND REPLACE DAT TABLE ENTRY`: not every CPU has it, and nothing here
//! needs the entry to be valid throughout.

use super::{INDEX_BITS, INVALID, PAGE_INDEX_BITS, PAGE_INVALID, PAGE_TABLE_MARK, SHIFTS};
use super::{TYPE_SHIFT, table_type};
use crate::address::{GpaRange, Hpa};
use crate::geometry::Level;
use crate::platform::{Extent, TlbWork};

/// An instruction to execute in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever executes these must know every one"
)]
pub enum Instruction {
    /// `BCR 15,0`: entries written are visible to all walkers before what follows ("Serialization",
    /// chapter 5).
    Serialize,
    /// `IPTE` of one page-table entry, on all CPUs.
    Ipte {
        /// First operand: the page table's origin.
        origin: u64,
        /// Second operand: an address, of which the page index counts.
        address: u64,
    },
    /// `IDTE` of one segment- or region-table entry, on all CPUs, whichever address space it is
    /// used in (third operand 0).
    Idte {
        /// First operand: the table's origin and designation type, in the form of an ASCE.
        table: u64,
        /// Second operand: an address, of which the index into that table counts; no additional
        /// entries (bits 10:0 are 0), and the entry is invalidated (bit 11 is 0).
        address: u64,
    },
    /// `IDTE` that clears by ASCE, on all CPUs: the second operand is [`CLEAR_BY_ASCE`], the third the
    /// VM's [`S390Root::asce`](super::S390Root::asce). No entry is touched.
    IdteByAsce,
}

/// The second operand of [`Instruction::IdteByAsce`].
pub const CLEAR_BY_ASCE: u64 = 1 << 11;

/// The instruction to execute, as part of the exchange, before the entry at `entry` gets a value
/// other than `old`, which it holds; `None` if the hardware holds nothing of it. It leaves the
/// entry with its invalid bit set.
#[inline]
pub const fn change(entry: Hpa, old: u64) -> Option<Instruction> {
    if old & PAGE_TABLE_MARK != 0 {
        if old & PAGE_INVALID != 0 {
            return None;
        }
        let (origin, index) = place(entry, PAGE_INDEX_BITS);
        let address = index << SHIFTS[0];
        return Some(Instruction::Ipte { origin, address });
    }
    if old & INVALID != 0 {
        return None;
    }
    let level = Level::new((old >> TYPE_SHIFT & 0b11) as u8 + 1);
    let (origin, index) = place(entry, INDEX_BITS);
    Some(Instruction::Idte {
        table: origin | table_type(level),
        address: index << SHIFTS[level.index()],
    })
}

/// The table that an entry lies in, and its index there. Tables are aligned to their entries' size
/// at least.
const fn place(entry: Hpa, index_bits: u8) -> (u64, u64) {
    let bytes = 8 << index_bits;
    let offset = entry.raw() & (bytes - 1);
    (entry.raw() - offset, offset / 8)
}

/// Issues what makes every CPU forget what `work` names. Where only leaves have changed that is
/// nothing: whoever changed them had them forgotten before letting their stripes go.
#[inline]
pub fn flush(work: &TlbWork, mut issue: impl FnMut(Instruction)) -> Extent {
    if work.is_empty() || work.only_leaves() {
        return Extent::Nothing;
    }
    issue(Instruction::IdteByAsce);
    Extent::Everything
}

/// Issues what makes this CPU forget what it holds for `range`: nothing. Whoever changed a valid
/// entry has had it forgotten, and no CPU keeps invalid ones.
#[inline]
pub fn flush_local(_: GpaRange, _: impl FnMut(Instruction)) {}

/// Issues what makes entries written before visible to every table walker.
#[inline]
pub fn publish(mut issue: impl FnMut(Instruction)) {
    issue(Instruction::Serialize);
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::{S390, S390Features};
    use super::*;
    use crate::address::Gpa;
    use crate::attributes::{Attributes, MemoryType, Permissions};
    use crate::format::Format;

    const FEATURES: S390Features = S390Features::ALL;

    fn leaf(level: Level, accessed: bool) -> u64 {
        let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
        let attributes = Attributes { accessed, ..ram };
        S390::leaf(&FEATURES, level, Hpa::new(0), attributes).unwrap()
    }

    fn table(level: Level) -> u64 {
        S390::table(&FEATURES, level, Hpa::new(0x1_0000_4000))
    }

    #[test]
    fn a_valid_page_is_invalidated_by_its_place_in_its_table() {
        for (entry, origin, address) in [
            (0x5000, 0x5000, 0),
            (0x5008, 0x5000, 0x1000),
            (0x57f8, 0x5000, 0xff000),
        ] {
            let expected = Instruction::Ipte { origin, address };
            let issued = change(Hpa::new(entry), leaf(Level::PAGE, true));
            assert_eq!(issued, Some(expected), "{entry:#x}");
        }
    }

    #[test]
    fn valid_entries_of_larger_tables_are_invalidated_by_type_and_index() {
        let last = Hpa::new(0xc000 + 2047 * 8);
        for (old, kind, shift) in [
            (leaf(Level::new(1), true), 0x0, 20),
            (table(Level::new(1)), 0x0, 20),
            (leaf(Level::new(2), true), 0x4, 31),
            (table(Level::new(2)), 0x4, 31),
            (table(Level::new(3)), 0x8, 42),
            (table(Level::new(4)), 0xc, 53),
        ] {
            let expected = Instruction::Idte {
                table: 0xc000 | kind,
                address: 2047 << shift,
            };
            assert_eq!(change(last, old), Some(expected), "{old:#x}");
        }
    }

    #[test]
    fn what_the_hardware_took_for_invalid_needs_no_instruction() {
        for number in 0..5 {
            let level = Level::new(number);
            assert_eq!(change(Hpa::new(0x8000), S390::empty(level)), None);
        }
        for level in [Level::PAGE, Level::new(1), Level::new(2)] {
            assert_eq!(change(Hpa::new(0x8000), leaf(level, false)), None);
        }
    }

    #[test]
    fn an_address_holds_nothing_but_the_index() {
        // Bits 19:12 of IDTE's second operand must be 0, and 11:0 ask for other work.
        for number in 1..5 {
            let old = table(Level::new(number));
            let Some(Instruction::Idte { address, .. }) = change(Hpa::new(0xc008), old) else {
                panic!("{old:#x}");
            };
            assert_eq!(address & 0xf_ffff, 0);
        }
    }

    #[test]
    fn leaves_need_no_flush_after_their_change() {
        let range = GpaRange::new(Gpa::new(0), 0x1000).unwrap();
        let mut issued = 0;
        let leaves = TlbWork::leaves(range, Level::PAGE);
        let extents = [leaves, TlbWork::default()].map(|work| flush(&work, |_| issued += 1));
        flush_local(range, |_| issued += 1);
        assert_eq!((extents, issued), ([Extent::Nothing; 2], 0));
    }

    #[test]
    fn tables_that_go_take_everything_of_the_address_space() {
        let range = GpaRange::new(Gpa::new(0), 0x1000).unwrap();
        let mut issued = Vec::new();
        let work = TlbWork::everything_in(range);
        let extent = flush(&work, |instruction| issued.push(instruction));
        assert_eq!(issued, [Instruction::IdteByAsce]);
        assert_eq!(extent, Extent::Everything);
    }

    #[test]
    fn clearing_by_asce_is_bit_52_of_the_operand() {
        assert_eq!(CLEAR_BY_ASCE, 1_u64.rotate_right(52 + 1));
    }

    #[test]
    fn publishing_serializes() {
        let mut issued = Vec::new();
        publish(|instruction| issued.push(instruction));
        assert_eq!(issued, [Instruction::Serialize]);
    }
}
