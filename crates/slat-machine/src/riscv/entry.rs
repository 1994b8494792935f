//! What an entry means: the checks of "Virtual Address Translation Process" in its order, with the
//! additions of Svpbmt and Svnapot.
//!
//! The manual has an access fault on everything that is reserved, so a hart that follows it
//! translates nothing through such an entry; the next version of the manual may give it a meaning.

use super::hgatp::Mode;
use super::{Registers, Width};
use crate::address::Hpa;
use crate::architecture::{Descriptor, Leaf};

const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
const PAGE_NUMBER_SHIFT: u32 = 10;
const NAPOT: u64 = 1 << 63;
/// The input-output type of Svpbmt; 1 is non-cacheable, 0 leaves it to the memory's attributes.
const IO: u8 = 2;

/// How the entries of a tree are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    /// Bits of a page number: 22 or 44.
    page_number_bits: u32,
    memory_types: bool,
    svnapot: bool,
    hardware_updates: bool,
}

impl Entries {
    /// Those of a hart with these registers; what it cannot have is an error.
    pub(super) fn new(registers: &Registers, mode: Mode) -> Result<Self, String> {
        if registers.width == Width::Rv32 && (registers.memory_types || registers.svnapot) {
            return Err(format!(
                "{mode:?} has no room for memory types (Svpbmt) or runs (Svnapot)"
            ));
        }
        Ok(Self {
            page_number_bits: if mode == Mode::Sv32x4 { 22 } else { 44 },
            memory_types: registers.memory_types,
            svnapot: registers.svnapot,
            hardware_updates: registers.hardware_updates,
        })
    }

    /// Reads an entry that maps `1 << shift` bytes. A leaf that is one of a run has the address of
    /// the run's first page, since all its entries are the same.
    pub(super) fn decode(self, level: usize, shift: u8, raw: u64) -> Descriptor {
        if raw & VALID == 0 {
            return Descriptor::Invalid;
        }
        if raw & (READ | WRITE) == WRITE {
            return Descriptor::Reserved("W without R");
        }
        if let Some(reserved) = self.reserved(raw) {
            return Descriptor::Reserved(reserved);
        }
        if raw & (READ | EXECUTE) == 0 {
            return self.pointer(level, raw);
        }
        self.leaf(level, shift, raw)
    }

    /// Bits above the page number that nothing defines, or nothing on this hart. In four bytes
    /// there are none.
    fn reserved(self, raw: u64) -> Option<&'static str> {
        if raw >> 54 & 0x7f != 0 {
            return Some("one of bits 60:54 is set");
        }
        match (memory_type(raw), self.memory_types) {
            (0, _) | (1 | 2, true) => {}
            (_, true) => return Some("memory type 3"),
            (_, false) => return Some("a memory type without Svpbmt"),
        }
        (raw & NAPOT != 0 && !self.svnapot).then_some("N without Svnapot")
    }

    fn pointer(self, level: usize, raw: u64) -> Descriptor {
        if level == 0 {
            return Descriptor::Reserved("a pointer to a table among pages");
        }
        if raw & (DIRTY | ACCESSED | USER) != 0 {
            return Descriptor::Reserved("a pointer to a table with D, A or U");
        }
        if raw & NAPOT != 0 || memory_type(raw) != 0 {
            return Descriptor::Reserved("a pointer to a table with N or a memory type");
        }
        Descriptor::Table(Hpa(self.page_number(raw) << 12))
    }

    fn leaf(self, level: usize, shift: u8, raw: u64) -> Descriptor {
        let run_bits = match self.run_bits(level, raw) {
            Ok(bits) => bits,
            Err(reserved) => return Descriptor::Reserved(reserved),
        };
        let page = self.page_number(raw) >> run_bits << run_bits;
        if page & ((1 << (shift - 12)) - 1) != 0 {
            return Descriptor::Reserved("a superpage that is not aligned to its size");
        }
        // Not reserved, but of no use: every access of a guest counts as one of user mode.
        let user = raw & USER != 0;
        let memory = memory_type(raw);
        let (writable, dirty) = (user && raw & WRITE != 0, raw & DIRTY != 0);
        Descriptor::Leaf(Leaf {
            hpa: Hpa(page << 12),
            read: user && raw & READ != 0,
            // A store to a page whose D is clear faults, unless the hardware sets D.
            write: writable && dirty,
            becomes_dirty: writable && !dirty && self.hardware_updates,
            // Where the hardware does not set it, D only goes with W.
            dirty: dirty && self.hardware_updates,
            execute: user && raw & EXECUTE != 0,
            accessed: raw & ACCESSED != 0,
            memory,
            device: memory == IO,
            run_bits,
        })
    }

    /// log2 of the entries of the run that the leaf is one of. The lowest bit set of the page
    /// number gives the size; there is one size.
    fn run_bits(self, level: usize, raw: u64) -> Result<u8, &'static str> {
        if raw & NAPOT == 0 {
            return Ok(0);
        }
        if level != 0 {
            return Err("a superpage with N");
        }
        if self.page_number(raw).trailing_zeros() != 3 {
            return Err("a run of another size than 64 KiB");
        }
        Ok(4)
    }

    fn page_number(self, raw: u64) -> u64 {
        raw >> PAGE_NUMBER_SHIFT & ((1 << self.page_number_bits) - 1)
    }

    /// A pointer to a table has no A.
    pub(super) fn with_accessed(self, raw: u64) -> Option<u64> {
        let leaf = raw & (READ | EXECUTE) != 0;
        (self.hardware_updates && leaf).then_some(raw | ACCESSED)
    }

    /// D is only set by a store that is allowed; A was set before.
    pub(super) fn with_dirty(self, raw: u64) -> Option<u64> {
        (self.hardware_updates && raw & WRITE != 0).then_some(raw | DIRTY)
    }

    /// A leaf that allows everything.
    pub(super) fn leaf_to(target: Hpa) -> u64 {
        const ANYTHING_GOES: u64 = DIRTY | ACCESSED | USER | EXECUTE | WRITE | READ | VALID;
        target.0 >> 12 << PAGE_NUMBER_SHIFT | ANYTHING_GOES
    }
}

/// `PBMT`, bits 62:61 (Svpbmt).
fn memory_type(raw: u64) -> u8 {
    (raw >> 61 & 0b11) as u8
}
