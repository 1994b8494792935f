//! Trees that the payload keeps by itself, with `slat-table` and its TLB maintenance running on
//! the emulated machine: what is mapped and taken away there, and which part of the maintenance is
//! left out on purpose.

use crate::script::{Malformed, Reader};

/// A piece of TLB maintenance to leave out, so that it shows what it is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Omission {
    /// Nothing is left out.
    None,
    /// All invalidations that a removal asks for.
    Removal,
    /// Those by guest physical address (Arm: `TLBI IPAS2E1IS`; RISC-V: `HFENCE.GVMA` with an
    /// address).
    ByAddress,
    /// Those of what was combined with the guest's own translation (Arm: `TLBI VMALLE1IS`).
    Combined,
    /// Those of everything, which follow the removal of a table (Arm: `TLBI VMALLS12E1IS`;
    /// RISC-V: `HFENCE.GVMA` without an address).
    Everything,
    /// Those by guest physical address but the first of each removal.
    AllButTheFirst,
}

const OMISSIONS: [Omission; 6] = [
    Omission::None,
    Omission::Removal,
    Omission::ByAddress,
    Omission::Combined,
    Omission::Everything,
    Omission::AllButTheFirst,
];

/// An empty tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TreeOptions {
    /// Which format, by a number that payload and driver agree on.
    pub format: u64,
    /// Bits of a guest physical address.
    pub address_bits: u64,
    /// Where the guest sees its code: the payload maps that page.
    pub code_gpa: u64,
    /// Where that page is.
    pub code_hpa: u64,
    /// What is left out.
    pub omission: Omission,
}

impl TreeOptions {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            format: reader.word()?,
            address_bits: reader.word()?,
            code_gpa: reader.word()?,
            code_hpa: reader.word()?,
            omission: reader.name(&OMISSIONS, "omission")?,
        })
    }

    #[cfg(any(feature = "std", test))]
    pub(crate) fn words(&self) -> [u64; 5] {
        let omission = self.omission as u64;
        [
            self.format,
            self.address_bits,
            self.code_gpa,
            self.code_hpa,
            omission,
        ]
    }
}

/// Neighbouring leaves of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// First guest physical address.
    pub gpa: u64,
    /// Bytes, whole leaves.
    pub bytes: u64,
    /// First host physical address.
    pub hpa: u64,
    /// Level of the leaves, counted from the pages.
    pub level: u64,
    /// Whether the guest may store there; it may always load and execute.
    pub writable: bool,
}

impl Mapping {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            gpa: reader.word()?,
            bytes: reader.word()?,
            hpa: reader.word()?,
            level: reader.word()?,
            writable: reader.name(&[false, true], "permission")?,
        })
    }

    #[cfg(any(feature = "std", test))]
    pub(crate) fn words(&self) -> [u64; 5] {
        let writable = u64::from(self.writable);
        [self.gpa, self.bytes, self.hpa, self.level, writable]
    }
}

/// A range taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Removal {
    /// First guest physical address.
    pub gpa: u64,
    /// Bytes, whole pages.
    pub bytes: u64,
    /// Whether a block that the range covers in part is split; otherwise it goes whole.
    pub split: bool,
}

impl Removal {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            gpa: reader.word()?,
            bytes: reader.word()?,
            split: reader.name(&[false, true], "way to treat a block")?,
        })
    }

    #[cfg(any(feature = "std", test))]
    pub(crate) fn words(&self) -> [u64; 3] {
        [self.gpa, self.bytes, u64::from(self.split)]
    }
}
