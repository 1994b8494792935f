//! `hgatp`: mode, VMID and root ("Hypervisor Guest Address Translation and Protection Register").

use super::Width;
use crate::address::Hpa;
use crate::architecture::LevelShape;
use crate::event::Vm;

pub(super) const PAGE_SHIFT: u8 = 12;

/// A paged mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Sv32x4,
    Sv39x4,
    Sv48x4,
    Sv57x4,
}

impl Mode {
    const fn index_bits(self) -> u8 {
        match self {
            Self::Sv32x4 => 10,
            _ => 9,
        }
    }

    const fn count(self) -> u8 {
        match self {
            Self::Sv32x4 => 2,
            Self::Sv39x4 => 3,
            Self::Sv48x4 => 4,
            Self::Sv57x4 => 5,
        }
    }

    /// The levels, pages first. The root is widened by two bits, to 16 KiB.
    pub(super) fn levels(self) -> Vec<LevelShape> {
        let root = self.count() - 1;
        (0..=root)
            .map(|level| LevelShape {
                shift: PAGE_SHIFT + self.index_bits() * level,
                index_bits: self.index_bits() + if level == root { 2 } else { 0 },
            })
            .collect()
    }

    /// Bits of a guest physical address: 34, 41, 50 or 59. More is a fault.
    pub(super) const fn address_bits(self) -> u8 {
        PAGE_SHIFT + self.index_bits() * self.count() + 2
    }

    pub(super) const fn entry_bytes(self) -> u64 {
        match self {
            Self::Sv32x4 => 4,
            _ => 8,
        }
    }
}

/// VMID: bits 28:22 of a 32-bit register, 57:44 of a 64-bit one.
pub(super) const fn vmid(width: Width, hgatp: u64) -> Vm {
    match width {
        Width::Rv32 => (hgatp >> 22 & 0x7f) as Vm,
        Width::Rv64 => (hgatp >> 44 & 0x3fff) as Vm,
    }
}

/// Mode and root, or what is wrong with them.
pub(super) fn read(width: Width, hgatp: u64) -> Result<(Mode, Hpa), String> {
    let (mode, reserved, page) = match width {
        Width::Rv32 => (hgatp >> 31, hgatp >> 29 & 0b11, hgatp & 0x3f_ffff),
        Width::Rv64 => (hgatp >> 60, hgatp >> 58 & 0b11, hgatp & 0xfff_ffff_ffff),
    };
    let mode = match (width, mode) {
        (_, 0) => return Err("hgatp.MODE is Bare: nothing is translated".to_owned()),
        (Width::Rv32, 1) => Mode::Sv32x4,
        (Width::Rv64, 8) => Mode::Sv39x4,
        (Width::Rv64, 9) => Mode::Sv48x4,
        (Width::Rv64, 10) => Mode::Sv57x4,
        (_, other) => return Err(format!("hgatp.MODE is {other:#x}, which is reserved")),
    };
    if reserved != 0 {
        return Err(format!(
            "hgatp is {hgatp:#x}: the bits above the VMID are zero"
        ));
    }
    if page & 0b11 != 0 {
        return Err(format!(
            "hgatp.PPN is {page:#x}: a root of 16 KiB is aligned to its size"
        ));
    }
    Ok((mode, Hpa(page << PAGE_SHIFT)))
}
