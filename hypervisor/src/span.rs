//! A run of physical addresses, host's or guest's: devices, memory banks and modules are all one.

use core::fmt;

/// Bytes in a page: the granule of every table in this program.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes that one level-2 entry maps with the 4 KiB granule.
pub const BLOCK_SIZE: u64 = 2 << 20;

/// A range of addresses that starts at `start` and has `size` bytes.
///
/// It never wraps: [`Span::new`] refuses a range whose end is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    start: u64,
    size: u64,
}

impl Span {
    /// The range of `size` bytes at `start`, or `None` if it runs past the last address.
    pub const fn new(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(_) => Some(Self { start, size }),
            None => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The number of bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The first address after it.
    pub const fn end(self) -> u64 {
        self.start + self.size
    }

    /// Whether `address` lies in it.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end()
    }

    /// Whether it shares a byte with `other`.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The smallest range of whole pages that holds it; the last page of the address space is
    /// left out, since its end is no address.
    pub const fn whole_pages(self) -> Self {
        let start = self.start & !(PAGE_SIZE - 1);
        let end = match self.end().checked_next_multiple_of(PAGE_SIZE) {
            Some(end) => end,
            None => !(PAGE_SIZE - 1),
        };
        Self {
            start,
            size: end - start,
        }
    }

    /// What is left of it, in order, when all of `holes` are taken out. `holes` need be neither
    /// sorted nor apart from each other.
    pub fn without(self, holes: &[Self]) -> impl Iterator<Item = Self> {
        let mut from = self.start;
        core::iter::from_fn(move || {
            while from < self.end() {
                if let Some(hole) = holes.iter().find(|hole| hole.contains(from)) {
                    from = hole.end();
                    continue;
                }
                let to = holes
                    .iter()
                    .filter(|hole| hole.size > 0 && hole.start > from)
                    .map(|hole| hole.start)
                    .fold(self.end(), u64::min);
                let piece = Self {
                    start: from,
                    size: to - from,
                };
                from = to;
                return Some(piece);
            }
            None
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span::new(start, end - start).expect("a test's range")
    }

    #[test]
    fn a_range_past_the_last_address_is_refused() {
        assert_eq!(Span::new(u64::MAX, 2), None);
        assert!(Span::new(u64::MAX, 0).is_some());
    }

    #[test]
    fn whole_pages_round_outwards() {
        assert_eq!(span(0x1234, 0x2001).whole_pages(), span(0x1000, 0x3000));
        assert_eq!(span(0x1000, 0x2000).whole_pages(), span(0x1000, 0x2000));
    }

    #[test]
    fn holes_are_taken_out_whatever_their_order() {
        let holes = [
            span(60, 70),
            span(10, 20),
            span(15, 30),
            span(30, 30),
            span(90, 200),
        ];
        let left: Vec<_> = span(0, 100).without(&holes).collect();
        assert_eq!(left, [span(0, 10), span(30, 60), span(70, 90)]);
    }

    #[test]
    fn a_hole_over_everything_leaves_nothing() {
        assert_eq!(span(10, 20).without(&[span(0, 100)]).count(), 0);
    }
}
