//! The registers that point to a tree: `VTCR_EL2` says how it is shaped, `VTTBR_EL2` where it is.

use super::features::Arm64Features;
use super::granule::{Granule, address_bits};
use crate::address::Hpa;
use crate::geometry::Geometry;

/// The registers that point to a stage-2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm64Root {
    /// `VTTBR_EL2`: root address and VMID.
    pub vttbr: u64,
    /// `VTCR_EL2`: geometry and walk attributes.
    pub vtcr: u64,
}

/// What the registers hold for the root table at `table` and the VM named `vmid` (D24.2).
pub(super) fn root<G: Granule>(
    features: Arm64Features,
    geometry: &Geometry,
    table: Hpa,
    vmid: u16,
) -> Arm64Root {
    let vmid = if features.vmid16 { vmid } else { vmid & 0xff };
    Arm64Root {
        vttbr: u64::from(vmid) << 48 | base_address(table),
        vtcr: vtcr::<G>(features, geometry),
    }
}

/// `VTTBR_EL2.BADDR`: bits 47:6 of the root in their place; 51:48, which only a CPU with 52-bit
/// addresses has, in 5:2. The root is aligned to its table, so that its own bits 5:2 are clear.
const fn base_address(table: Hpa) -> u64 {
    table.raw() & 0xffff_ffff_ffc0 | (table.raw() >> 48 & 0xf) << 2
}

fn vtcr<G: Granule>(features: Arm64Features, geometry: &Geometry) -> u64 {
    const RES1: u64 = 1 << 31;
    const INNER_SHAREABLE: u64 = 0b11;
    const WRITE_BACK_WRITE_ALLOCATE: u64 = 0b01;
    let t0sz = 64 - u64::from(geometry.address_bits());
    let sl0 = geometry.root().index() as u64 - 1 + G::SL0_OF_LEVEL_1;
    RES1 | t0sz
        | sl0 << 6
        | WRITE_BACK_WRITE_ALLOCATE << 8
        | WRITE_BACK_WRITE_ALLOCATE << 10
        | INNER_SHAREABLE << 12
        | G::TG0 << 14
        | physical_size(address_bits::<G>(features)) << 16
        | u64::from(features.vmid16) << 19
        | u64::from(features.hardware_accessed) << 21
        | u64::from(features.keeps_dirty()) << 22
        | u64::from(G::DS) << 32
}

/// `VTCR_EL2.PS` for so many physical address bits.
const fn physical_size(bits: u8) -> u64 {
    match bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        48..=51 => 5,
        _ => 6,
    }
}
