//! A memory layout: what a host process has mapped, and which slots of guest memory it makes of it.
//!
//! This is the input of `slat explain`, read from a TOML file by [`parse`] or taken from a running
//! process. Numbers are in bytes. Addresses and sizes are multiples of the page of the format that
//! the guest's tables have.
//!
//! ```
//! let layout = slat_cli::layout::parse(
//!     r#"
//!     [[mapping]]
//!     name = "BAR"
//!     kind = "pfnmap"
//!     hva = 0x7f00_0000_0000
//!     size = "1G"
//!     hpa = 0x80_0000_0000
//!
//!     [[slot]]
//!     id = 1
//!     gpa = 0x80_0000_0000
//!     size = "1G"
//!     hva = 0x7f00_0000_0000
//!     "#,
//! )?;
//! assert_eq!(layout.slots[0].name, "slot 1");
//! # Ok::<(), slat_cli::problem::Problems>(())
//! ```

mod file;

use core::fmt;
use core::ops::Range;

pub use file::parse;
pub(crate) use file::{Places, parse_with_places};

use crate::format::Row;

/// End of the host virtual addresses.
pub const HOST_END: u64 = u64::MAX - 0xfff;

/// Mappings and slots.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain values for a caller to fill in"
)]
pub struct Layout {
    /// The format of the guest's tables.
    pub format: &'static Row,
    /// Width of a guest physical address in bits.
    pub address_bits: u8,
    /// What the host process has mapped. They do not overlap.
    pub mappings: Vec<Mapping>,
    /// The guest's slots. They do not overlap.
    pub slots: Vec<Slot>,
}

/// A mapping of the host process (a VMA).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain values for a caller to fill in"
)]
pub struct Mapping {
    /// For people.
    pub name: String,
    /// First host virtual address, a multiple of the format's page.
    pub hva: u64,
    /// Size in bytes, a multiple of the format's page.
    pub bytes: u64,
    /// What is behind it.
    pub kind: Kind,
    /// Whether the host may write through it.
    pub writable: bool,
    /// The largest pages in which the host maps it.
    pub pages: Pages,
    /// How much of it is there already.
    pub resident: Resident,
}

/// What is behind a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "what the explanation tells apart")]
pub enum Kind {
    /// Anonymous memory.
    Ram,
    /// Pages of a file.
    File,
    /// Memory that the host maps but does not manage: a device's, as a rule.
    Pfnmap {
        /// Host physical address behind the first byte.
        hpa: u64,
    },
    /// Nothing that may be accessed (`PROT_NONE`).
    NoAccess,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "ram",
            Self::File => "file",
            Self::Pfnmap { .. } => "pfnmap",
            Self::NoAccess => "no access",
        })
    }
}

/// The largest pages in which a host maps something. What sizes these are,
/// [`Sizes`](crate::format::Sizes) says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the kinds of pages that hosts have"
)]
pub enum Pages {
    /// What the host does by itself: transparent huge pages for anonymous memory, pages for files,
    /// and for PFNMAP the largest that addresses allow.
    #[default]
    Auto,
    /// Pages: 4 KiB, or what a page of the format has.
    Small,
    /// Huge pages: 2 MiB where pages have 4 KiB, as a rule.
    Huge,
    /// Gigantic pages: 1 GiB where pages have 4 KiB, as a rule.
    Gigantic,
}

/// How much of a mapping is there already, before any guest touches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the three ways to know it")]
pub enum Resident {
    /// Nothing: pages come when they are touched.
    Nothing,
    /// Everything, in pages as large as they can be.
    All,
    /// Some bytes in huge pages and some in pages; where, is not known.
    Some {
        /// Bytes in huge pages.
        huge: u64,
        /// Bytes in pages.
        small: u64,
    },
}

/// A slot of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain values for a caller to fill in"
)]
pub struct Slot {
    /// For people.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// First guest physical address, a multiple of the format's page.
    pub gpa: u64,
    /// Size in bytes, a multiple of the format's page.
    pub bytes: u64,
    /// Host virtual address behind the first byte, a multiple of the format's page.
    pub hva: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// Mapped on fault only, even where it could be mapped at creation.
    pub on_fault: bool,
}

impl Mapping {
    /// Its host virtual addresses.
    pub fn range(&self) -> Range<u64> {
        self.hva..self.hva + self.bytes
    }
}

impl Slot {
    /// The host virtual addresses behind it.
    pub fn hva_range(&self) -> Range<u64> {
        self.hva..self.hva + self.bytes
    }

    /// Its guest physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.bytes
    }
}

impl Layout {
    /// Whether mappings and slots are made of pages, where they can be, and do not overlap: what
    /// [`parse`] checks with more words, for layouts that were changed.
    pub fn is_sound(&self) -> bool {
        let page = self.format.sizes().small();
        let apart = |mut ranges: Vec<Range<u64>>| {
            ranges.sort_by_key(|range| range.start);
            ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
        };
        let inside = |start: u64, bytes: u64, end: u64| {
            let pages = start.is_multiple_of(page) && bytes.is_multiple_of(page) && bytes != 0;
            pages && start.checked_add(bytes).is_some_and(|sum| sum <= end)
        };
        if self.format.geometry(self.address_bits).is_err() {
            return false;
        }
        let guest_end = 1 << self.address_bits;
        self.mappings
            .iter()
            .all(|m| inside(m.hva, m.bytes, HOST_END))
            && self.mappings.iter().all(|m| match m.kind {
                Kind::Pfnmap { hpa } => inside(hpa, m.bytes, self.format.host_end()),
                Kind::Ram | Kind::File | Kind::NoAccess => true,
            })
            && self.slots.iter().all(|s| inside(s.hva, s.bytes, HOST_END))
            && self.slots.iter().all(|s| inside(s.gpa, s.bytes, guest_end))
            && apart(self.mappings.iter().map(Mapping::range).collect())
            && apart(self.slots.iter().map(Slot::range).collect())
    }
}
