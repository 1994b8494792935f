//! Through which host virtual addresses a VMA shows which part of its object.

use core::ops::Range;

use slat_table::address::{Hva, HvaRange};
use slat_table::attributes::Access;

/// What the host may do through a VMA. Reading and executing are always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// No writes.
    ReadOnly,
    /// Writes too.
    ReadWrite,
}

impl Protection {
    /// Whether an access of this kind is allowed.
    pub const fn allows(self, access: Access) -> bool {
        !matches!((self, access), (Self::ReadOnly, Access::Write))
    }

    /// Whether writes are allowed.
    pub const fn is_writable(self) -> bool {
        self.allows(Access::Write)
    }
}

/// A range of addresses, what it shows of an object, and what may be done through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) range: HvaRange,
    /// Bytes from the start of the object to what is seen at the start of `range`.
    pub(crate) offset: u64,
    pub(crate) protection: Protection,
}

impl Window {
    /// The byte of the object that is seen at `hva`, which lies in the range.
    pub(crate) fn offset_of(&self, hva: Hva) -> u64 {
        hva.raw() - self.range.start().raw() + self.offset
    }

    /// The bytes of the object that are seen in `part`, which lies in the range.
    pub(crate) fn span(&self, part: HvaRange) -> Range<u64> {
        let start = self.offset_of(part.start());
        start..start + part.bytes()
    }

    /// Where the bytes of the object in `span` are seen, as far as they are.
    pub(crate) fn seen(&self, span: Range<u64>) -> Option<HvaRange> {
        let end = self.offset + self.range.bytes();
        let distance = |offset: u64| offset.clamp(self.offset, end) - self.offset;
        let at = |offset| self.range.start().checked_add(distance(offset));
        HvaRange::between(at(span.start)?, at(span.end)?)
    }

    /// The naturally aligned block of `bytes` bytes around `hva`, if all of it is in the range.
    pub(crate) fn block(&self, hva: Hva, bytes: u64) -> Option<HvaRange> {
        HvaRange::block_around(hva, bytes).filter(|block| self.range.covers(block))
    }

    /// The same window, with only `part` of its range.
    pub(crate) fn narrowed(&self, part: HvaRange) -> Self {
        Self {
            range: part,
            offset: self.offset_of(part.start()),
            ..*self
        }
    }

    /// Both windows as one, if `next` goes on where this one ends.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let goes_on = self.range.end() == next.range.start()
            && self.offset + self.range.bytes() == next.offset
            && self.protection == next.protection;
        goes_on.then(|| Self {
            range: self.range.hull(&next.range),
            ..*self
        })
    }
}
