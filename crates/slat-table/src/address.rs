//! Addresses that cannot be mixed up, and ranges that cannot be wrong.
//!
//! Three address spaces meet in a hypervisor: what the guest calls physical ([`Gpa`]; Arm says
//! IPA), what the host process or host kernel maps ([`Hva`]), and what the memory bus sees
//! ([`Hpa`]). Each has its own type. A [`PageRange`] is a non-empty range of whole 4 KiB pages
//! whose end can be represented, so code that holds one need not check again.

use core::fmt;
use core::marker::PhantomData;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The smallest page of every format, in bytes. Ranges are multiples of it.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

mod sealed {
    pub trait Sealed {}
}

/// An address of one of the three address spaces.
pub trait Address: sealed::Sealed + Copy + Ord + fmt::Debug + fmt::Display {
    /// The address `raw`.
    fn new(raw: u64) -> Self;

    /// The address as a number of bytes from zero.
    fn raw(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address `raw`.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The address as a number of bytes from zero.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` if that wraps.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Whether the address is a multiple of `size`, a power of two in bytes.
            #[inline]
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The largest multiple of `size` (a power of two in bytes) that is not above.
            #[inline]
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }
        }

        impl sealed::Sealed for $name {}

        impl Address for $name {
            #[inline]
            fn new(raw: u64) -> Self {
                Self(raw)
            }

            #[inline]
            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest physical address in bytes (Arm: intermediate physical address).
    ///
    /// Holding one proves nothing: it may lie in no slot and beyond the guest's address width.
    Gpa
}
address! {
    /// A host virtual address in bytes: what a VMM passes as the backing of a region.
    ///
    /// Holding one proves nothing: there may be no VMA behind it.
    Hva
}
address! {
    /// A host physical address in bytes: what a leaf entry or a table pointer holds.
    Hpa
}

/// Why a [`PageRange`] could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range has no pages.
    #[error("a range of 0 bytes at {start:#x} has no pages")]
    Empty {
        /// First byte of the range.
        start: u64,
    },
    /// The start is not a multiple of the page size.
    #[error("the start {start:#x} is not a multiple of the 4 KiB page")]
    StartUnaligned {
        /// First byte of the range.
        start: u64,
    },
    /// The size is not a multiple of the page size.
    #[error("the size {bytes:#x} is not a multiple of the 4 KiB page")]
    SizeUnaligned {
        /// Size in bytes.
        bytes: u64,
    },
    /// `start + bytes` does not fit in 64 bits.
    #[error("{bytes:#x} bytes from {start:#x} wrap around the address space")]
    Wraps {
        /// First byte of the range.
        start: u64,
        /// Size in bytes.
        bytes: u64,
    },
}

/// A non-empty range of whole 4 KiB pages that does not wrap; its end can be represented.
pub struct PageRange<A> {
    start: u64,
    bytes: u64,
    space: PhantomData<A>,
}

/// A range of guest physical addresses.
pub type GpaRange = PageRange<Gpa>;

/// A range of host virtual addresses.
pub type HvaRange = PageRange<Hva>;

/// A range of host physical addresses.
pub type HpaRange = PageRange<Hpa>;

impl<A: Address> PageRange<A> {
    /// The range of `bytes` bytes from `start`.
    ///
    /// # Errors
    ///
    /// [`RangeError`] says which of the four conditions does not hold.
    pub fn new(start: A, bytes: u64) -> Result<Self, RangeError> {
        let start = start.raw();
        if bytes == 0 {
            return Err(RangeError::Empty { start });
        }
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::StartUnaligned { start });
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::SizeUnaligned { bytes });
        }
        if start.checked_add(bytes).is_none() {
            return Err(RangeError::Wraps { start, bytes });
        }
        Ok(Self::trusted(start, bytes))
    }

    /// The naturally aligned block of `size` bytes (a power of two, at least a page) around
    /// `address`. `None` if its end cannot be represented or `size` is not such a power.
    #[inline]
    pub fn block_around(address: A, size: u64) -> Option<Self> {
        if !size.is_power_of_two() || size < PAGE_SIZE {
            return None;
        }
        let start = address.raw() & !(size - 1);
        start.checked_add(size)?;
        Some(Self::trusted(start, size))
    }

    /// The same for a block of `1 << shift` bytes, where that is known to be a page or more.
    #[inline]
    pub(crate) fn aligned_block(address: A, shift: u8) -> Option<Self> {
        debug_assert!(u32::from(shift) >= PAGE_SHIFT, "a part of a page");
        let size = 1 << (shift & 63);
        let start = address.raw() & !(size - 1);
        start.checked_add(size)?;
        Some(Self::trusted(start, size))
    }

    /// The range from `start` up to `end`, or `None` if that is no [`PageRange`].
    #[inline]
    pub fn between(start: A, end: A) -> Option<Self> {
        Self::new(start, end.raw().checked_sub(start.raw())?).ok()
    }

    #[inline]
    const fn trusted(start: u64, bytes: u64) -> Self {
        Self {
            start,
            bytes,
            space: PhantomData,
        }
    }

    /// First address.
    #[inline]
    pub fn start(&self) -> A {
        A::new(self.start)
    }

    /// First address after the range.
    #[inline]
    pub fn end(&self) -> A {
        A::new(self.start + self.bytes)
    }

    /// Size in bytes: a positive multiple of [`PAGE_SIZE`].
    #[inline]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of 4 KiB pages.
    #[inline]
    pub const fn pages(&self) -> u64 {
        self.bytes >> PAGE_SHIFT
    }

    /// Whether `address` lies inside.
    #[inline]
    pub fn contains(&self, address: A) -> bool {
        address.raw().wrapping_sub(self.start) < self.bytes
    }

    /// Whether all of `other` lies inside.
    #[inline]
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && other.start + other.bytes <= self.start + self.bytes
    }

    /// Whether the two share a page.
    #[inline]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.start + other.bytes && other.start < self.start + self.bytes
    }

    /// The pages that both have.
    #[inline]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = (self.start + self.bytes).min(other.start + other.bytes);
        (start < end).then(|| Self::trusted(start, end - start))
    }

    /// The smallest range that covers both.
    #[inline]
    pub fn hull(&self, other: &Self) -> Self {
        let start = self.start.min(other.start);
        let end = (self.start + self.bytes).max(other.start + other.bytes);
        Self::trusted(start, end - start)
    }

    /// The part from `address` on, or `None` if nothing of the range is there. `address` must
    /// be a multiple of the page size to be a start; it is rounded down if it is not.
    #[inline]
    pub fn from(&self, address: A) -> Option<Self> {
        let start = (address.raw() & !(PAGE_SIZE - 1)).max(self.start);
        let end = self.start + self.bytes;
        (start < end).then(|| Self::trusted(start, end - start))
    }

    /// This range's pages in another address space, where `anchor` here is `image` there.
    ///
    /// `None` if `anchor` is not at or below the start, or the result would wrap or be unaligned.
    #[inline]
    pub fn translate<B: Address>(&self, anchor: A, image: B) -> Option<PageRange<B>> {
        let offset = self.start.checked_sub(anchor.raw())?;
        PageRange::new(B::new(image.raw().checked_add(offset)?), self.bytes).ok()
    }
}

impl<A: Address> PageRange<A> {
    /// What lies in `image` where `part` lies in this range.
    ///
    /// `None` if `part` does not lie in this range, or `image` is smaller than this range.
    #[inline]
    pub fn image_of<B: Address>(&self, part: &Self, image: &PageRange<B>) -> Option<PageRange<B>> {
        // Both ranges and the part begin and end with whole pages, so its image does too.
        (self.covers(part) && self.bytes <= image.bytes)
            .then(|| PageRange::trusted(image.start + (part.start - self.start), part.bytes))
    }
}

impl<A> Clone for PageRange<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for PageRange<A> {}

impl<A> PartialEq for PageRange<A> {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.bytes == other.bytes
    }
}

impl<A> Eq for PageRange<A> {}

impl<A> fmt::Debug for PageRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.start + self.bytes)
    }
}

impl<A> fmt::Display for PageRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_that_is_wrong_cannot_be_built() {
        assert_eq!(
            GpaRange::new(Gpa::new(0), 0),
            Err(RangeError::Empty { start: 0 })
        );
        assert_eq!(
            GpaRange::new(Gpa::new(0x10), 0x1000),
            Err(RangeError::StartUnaligned { start: 0x10 })
        );
        assert_eq!(
            GpaRange::new(Gpa::new(0), 0x1001),
            Err(RangeError::SizeUnaligned { bytes: 0x1001 })
        );
        let start = 0u64.wrapping_sub(0x1000);
        assert_eq!(
            GpaRange::new(Gpa::new(start), 0x1000),
            Err(RangeError::Wraps {
                start,
                bytes: 0x1000
            })
        );
    }

    #[test]
    fn the_image_of_a_part_lies_where_the_part_does() {
        let range =
            |page: u64, pages: u64| GpaRange::new(Gpa::new(page << 12), pages << 12).unwrap();
        let image =
            |page: u64, pages: u64| HvaRange::new(Hva::new(page << 12), pages << 12).unwrap();
        let whole = range(8, 4);
        assert_eq!(
            whole.image_of(&range(9, 2), &image(100, 4)),
            Some(image(101, 2))
        );
        assert_eq!(whole.image_of(&whole, &image(100, 4)), Some(image(100, 4)));
        for outside in [range(7, 2), range(11, 2), range(0, 1)] {
            assert_eq!(whole.image_of(&outside, &image(100, 4)), None);
        }
        assert_eq!(
            whole.image_of(&range(8, 1), &image(100, 3)),
            None,
            "too small"
        );
    }

    proptest! {
        #[test]
        fn intersection_is_what_both_contain(a in 0u64..64, an in 1u64..64, b in 0u64..64, bn in 1u64..64, probe in 0u64..128) {
            let left = GpaRange::new(Gpa::new(a << 12), an << 12).unwrap();
            let right = GpaRange::new(Gpa::new(b << 12), bn << 12).unwrap();
            let gpa = Gpa::new(probe << 12);
            let both = left.contains(gpa) && right.contains(gpa);
            prop_assert_eq!(left.intersection(&right).is_some_and(|r| r.contains(gpa)), both);
            prop_assert_eq!(left.overlaps(&right), left.intersection(&right).is_some());
            prop_assert!(left.hull(&right).covers(&left) && left.hull(&right).covers(&right));
        }
    }

    fn gpas(start: u64, bytes: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), bytes).unwrap()
    }

    #[test]
    fn a_block_is_aligned_and_holds_the_address() {
        let around = |address, size| GpaRange::block_around(Gpa::new(address), size);
        assert_eq!(around(0x5432, 0x1000), Some(gpas(0x5000, 0x1000)));
        assert_eq!(around(0x5000, 0x4000), Some(gpas(0x4000, 0x4000)));
        for size in [0, 0x800, 0x3000] {
            assert_eq!(around(0x5000, size), None, "{size:#x} is no block's size");
        }
        assert_eq!(around(u64::MAX, 0x1000), None, "its end is no number");
        let aligned = GpaRange::aligned_block(Gpa::new(0x5432), 14);
        assert_eq!(aligned, Some(gpas(0x4000, 0x4000)));
        assert_eq!(GpaRange::aligned_block(Gpa::new(u64::MAX), 12), None);
    }

    #[test]
    fn a_range_begins_at_its_start_and_ends_before_its_end() {
        let range = gpas(0x3000, 0x2000);
        assert_eq!((range.bytes(), range.pages()), (0x2000, 2));
        assert_eq!(range.end(), Gpa::new(0x5000));
        assert_eq!(
            alloc::format!("{range} {range:?}"),
            "0x3000..0x5000 0x3000..0x5000"
        );
        let inside = |address| range.contains(Gpa::new(address));
        assert!(inside(0x3000) && inside(0x4fff));
        assert!(!inside(0x2fff) && !inside(0x5000));
        let between = |start, end| GpaRange::between(Gpa::new(start), Gpa::new(end));
        assert_eq!(between(0x3000, 0x5000), Some(range));
        assert_eq!(between(0x3000, 0x3000), None);
        assert_eq!(between(0x5000, 0x3000), None);
    }

    #[test]
    fn neighbours_share_nothing_and_have_a_hull() {
        let (one, next) = (gpas(0x3000, 0x2000), gpas(0x5000, 0x1000));
        assert!(!one.overlaps(&next) && !next.overlaps(&one));
        assert_eq!(one.intersection(&next), None);
        assert_eq!(one.hull(&next), gpas(0x3000, 0x3000));
        assert_eq!(next.hull(&one), gpas(0x3000, 0x3000));
        let across = gpas(0x4000, 0x3000);
        assert!(one.overlaps(&across) && across.overlaps(&one));
        assert_eq!(one.intersection(&across), Some(gpas(0x4000, 0x1000)));
        assert_eq!(across.intersection(&one), Some(gpas(0x4000, 0x1000)));
        let far = gpas(0x8000, 0x1000);
        assert!(!one.overlaps(&far) && !far.overlaps(&one));
        assert_eq!(one.intersection(&far), None);
        assert!(one != next && one != gpas(0x3000, 0x1000) && one != gpas(0x2000, 0x2000));
    }

    #[test]
    fn the_rest_of_a_range_begins_at_a_page() {
        let range = gpas(0x3000, 0x3000);
        let from = |address| range.from(Gpa::new(address));
        assert_eq!(from(0), Some(range));
        assert_eq!(from(0x4000), Some(gpas(0x4000, 0x2000)));
        assert_eq!(from(0x4fff), Some(gpas(0x4000, 0x2000)));
        assert_eq!(from(0x5000), Some(gpas(0x5000, 0x1000)));
        assert_eq!(from(0x6000), None);
    }

    #[test]
    fn a_range_keeps_its_distance_from_the_anchor_in_another_space() {
        let moved =
            |anchor, image| gpas(0x5000, 0x2000).translate(Gpa::new(anchor), Hva::new(image));
        let expected = HvaRange::new(Hva::new(0x9_2000), 0x2000).unwrap();
        assert_eq!(moved(0x3000, 0x9_0000), Some(expected));
        assert_eq!(
            moved(0x6000, 0x9_0000),
            None,
            "the anchor is behind the start"
        );
        assert_eq!(moved(0x3000, 0x9_0001), None, "not at a page");
    }
}
