//! Granules: the page sizes of VMSAv8-64 with the shape of tree and descriptor that each implies.
//!
//! A [`Granule`] is data. A page of `2^PAGE_SHIFT` bytes is also a table, of 8-byte descriptors,
//! so every level translates `PAGE_SHIFT − 3` bits of an address (D8.2). What a descriptor holds
//! of an address above bit 47 stands elsewhere with each granule and is the other thing a
//! [`Granule`] says (D8.3): with 64 KiB bits 51:48 stand in 15:12 (`FEAT_LPA`); with 4 KiB and
//! 16 KiB bits 49:48 follow in place and 51:50 stand in 9:8, where shareability was
//! (`FEAT_LPA2`, switched on by `VTCR_EL2.DS`). Without the feature the descriptor is laid out
//! differently, so a granule with `FEAT_LPA2` is another type than the same one without.

use core::fmt::Debug;

use super::features::Arm64Features;
use crate::address::Hpa;
use crate::geometry::{Geometry, Level, LevelShape};

/// Fewest bits of a guest address that are offered.
pub(super) const ADDRESS_BITS_MIN: u8 = 32;

/// A root may be up to 16 tables side by side (D8.2.3): 4 more index bits.
const CONCATENATION_BITS: u8 = 4;

mod sealed {
    pub trait Sealed {}
}

/// A translation granule, and where its descriptors hold the upper bits of an address.
pub trait Granule: sealed::Sealed + Copy + Debug + Default + Eq + Send + Sync + 'static {
    /// [`Format::NAME`](crate::format::Format::NAME) of the format with this granule.
    const NAME: &'static str;

    /// log2 of the bytes of a page, and of a table.
    const PAGE_SHIFT: u8;

    /// Bits of an address that a descriptor can hold.
    const ADDRESS_BITS: u8;

    /// Address bits below this one stand in their own place in a descriptor ...
    const IN_PLACE_BITS: u8;

    /// ... and those from it on here.
    const UPPER_BITS_AT: u8;

    /// `VTCR_EL2.TG0` (D24.2).
    const TG0: u64;

    /// `VTCR_EL2.SL0` for a root at level 1: higher roots count on from there (D24.2).
    const SL0_OF_LEVEL_1: u64;

    /// `VTCR_EL2.DS`: descriptors are laid out as `FEAT_LPA2` has it.
    const DS: bool;

    /// The highest level with blocks, on a CPU with 48-bit addresses (D8.3).
    const LARGEST_BLOCK: Level;

    /// log2 of the leaves of a run, for the levels that have runs, pages first ("The Contiguous
    /// bit", D8.7).
    const RUN_BITS: &'static [u8];

    /// log2 of the descriptors of a table.
    const INDEX_BITS: u8 = Self::PAGE_SHIFT - 3;

    /// Bytes of a table.
    const TABLE_BYTES: u32 = 1 << Self::PAGE_SHIFT;

    /// The address bits that stand in place, alone.
    const IN_PLACE: u64 = (1 << Self::IN_PLACE_BITS) - (1 << Self::PAGE_SHIFT);

    /// The address bits that do not, counted from the lowest of them.
    const UPPER: u64 = (1 << (Self::ADDRESS_BITS - Self::IN_PLACE_BITS)) - 1;

    /// Every bit of a descriptor that is an address bit.
    const ADDRESS: u64 = Self::IN_PLACE | Self::UPPER << Self::UPPER_BITS_AT;

    /// Shareability is in the descriptor; with `DS` it is `VTCR_EL2.SH0` for all.
    const SHAREABILITY: u64 = if Self::DS { 0 } else { 0b11 << 8 };
}

/// Pages of 4 KiB; blocks of 2 MiB and 1 GiB; addresses of 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granule4K;

/// Pages of 4 KiB with `FEAT_LPA2`; blocks of 2 MiB, 1 GiB and 512 GiB; addresses of 52 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granule4KLpa2;

/// Pages of 16 KiB; blocks of 32 MiB; addresses of 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granule16K;

/// Pages of 16 KiB with `FEAT_LPA2`; blocks of 32 MiB and 64 GiB; addresses of 52 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granule16KLpa2;

/// Pages of 64 KiB; blocks of 512 MiB. On a CPU with 52-bit addresses (`FEAT_LPA`) also blocks of
/// 4 TiB and addresses of 52 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granule64K;

impl sealed::Sealed for Granule4K {}
impl sealed::Sealed for Granule4KLpa2 {}
impl sealed::Sealed for Granule16K {}
impl sealed::Sealed for Granule16KLpa2 {}
impl sealed::Sealed for Granule64K {}

impl Granule for Granule4K {
    const NAME: &'static str = "arm64 stage 2, 4K granule";
    const PAGE_SHIFT: u8 = 12;
    const ADDRESS_BITS: u8 = 48;
    const IN_PLACE_BITS: u8 = 48;
    const UPPER_BITS_AT: u8 = 0;
    const TG0: u64 = 0b00;
    const SL0_OF_LEVEL_1: u64 = 0b00;
    const DS: bool = false;
    const LARGEST_BLOCK: Level = Level::new(2);
    const RUN_BITS: &'static [u8] = &[4, 4, 4];
}

impl Granule for Granule4KLpa2 {
    const NAME: &'static str = "arm64 stage 2, 4K granule with LPA2";
    const ADDRESS_BITS: u8 = 52;
    const IN_PLACE_BITS: u8 = 50;
    const UPPER_BITS_AT: u8 = 8;
    const DS: bool = true;
    const LARGEST_BLOCK: Level = Level::new(3);

    const PAGE_SHIFT: u8 = Granule4K::PAGE_SHIFT;
    const TG0: u64 = Granule4K::TG0;
    const SL0_OF_LEVEL_1: u64 = Granule4K::SL0_OF_LEVEL_1;
    const RUN_BITS: &'static [u8] = Granule4K::RUN_BITS;
}

impl Granule for Granule16K {
    const NAME: &'static str = "arm64 stage 2, 16K granule";
    const PAGE_SHIFT: u8 = 14;
    const ADDRESS_BITS: u8 = 48;
    const IN_PLACE_BITS: u8 = 48;
    const UPPER_BITS_AT: u8 = 0;
    const TG0: u64 = 0b10;
    const SL0_OF_LEVEL_1: u64 = 0b01;
    const DS: bool = false;
    const LARGEST_BLOCK: Level = Level::new(1);
    const RUN_BITS: &'static [u8] = &[7, 5];
}

impl Granule for Granule16KLpa2 {
    const NAME: &'static str = "arm64 stage 2, 16K granule with LPA2";
    const ADDRESS_BITS: u8 = 52;
    const IN_PLACE_BITS: u8 = 50;
    const UPPER_BITS_AT: u8 = 8;
    const DS: bool = true;
    const LARGEST_BLOCK: Level = Level::new(2);

    const PAGE_SHIFT: u8 = Granule16K::PAGE_SHIFT;
    const TG0: u64 = Granule16K::TG0;
    const SL0_OF_LEVEL_1: u64 = Granule16K::SL0_OF_LEVEL_1;
    const RUN_BITS: &'static [u8] = Granule16K::RUN_BITS;
}

impl Granule for Granule64K {
    const NAME: &'static str = "arm64 stage 2, 64K granule";
    const PAGE_SHIFT: u8 = 16;
    const ADDRESS_BITS: u8 = 52;
    const IN_PLACE_BITS: u8 = 48;
    const UPPER_BITS_AT: u8 = 12;
    const TG0: u64 = 0b01;
    const SL0_OF_LEVEL_1: u64 = 0b01;
    const DS: bool = false;
    const LARGEST_BLOCK: Level = Level::new(1);
    const RUN_BITS: &'static [u8] = &[5, 5];
}

/// log2 of the bytes that a descriptor of `level` maps.
#[inline]
const fn shift<G: Granule>(level: Level) -> usize {
    G::PAGE_SHIFT as usize + G::INDEX_BITS as usize * level.index()
}

/// Bytes that a descriptor of `level` maps. Wraps for levels that no tree has.
#[inline]
pub(super) const fn bytes<G: Granule>(level: Level) -> u64 {
    1 << (shift::<G>(level) & 63)
}

/// Bytes that a run of leaves of `level` maps; where there are no runs, one leaf.
#[inline]
pub(super) fn run_bytes<G: Granule>(level: Level) -> u64 {
    1 << ((shift::<G>(level) + usize::from(run_bits::<G>(level))) & 63)
}

/// log2 of the leaves of a run of `level`; 0 where there are no runs.
#[inline]
pub(super) fn run_bits<G: Granule>(level: Level) -> u8 {
    G::RUN_BITS.get(level.index()).copied().unwrap_or(0)
}

/// Bits of an address that descriptors can hold and the CPU has.
#[inline]
pub(super) const fn address_bits<G: Granule>(features: Arm64Features) -> u8 {
    if features.physical_bits < G::ADDRESS_BITS {
        features.physical_bits
    } else {
        G::ADDRESS_BITS
    }
}

/// The highest level with blocks. With 64 KiB pages `FEAT_LPA` adds one (D8.3); a CPU has it if,
/// and only if, its addresses have 52 bits (D24.2, `ID_AA64MMFR0_EL1.PARange`).
#[inline]
pub(super) fn largest_block<G: Granule>(features: Arm64Features) -> Level {
    let wide = !G::DS && address_bits::<G>(features) >= 52;
    if wide {
        G::LARGEST_BLOCK.up()
    } else {
        G::LARGEST_BLOCK
    }
}

/// The address as a descriptor holds it.
#[inline]
pub(super) const fn pack<G: Granule>(hpa: Hpa) -> u64 {
    let upper = hpa.raw() >> G::IN_PLACE_BITS & G::UPPER;
    hpa.raw() & G::IN_PLACE | upper << G::UPPER_BITS_AT
}

/// The address that a descriptor holds.
#[inline]
pub(super) const fn unpack<G: Granule>(raw: u64) -> Hpa {
    let upper = raw >> G::UPPER_BITS_AT & G::UPPER;
    Hpa::new(raw & G::IN_PLACE | upper << G::IN_PLACE_BITS)
}

/// The tree for so many guest address bits; `None` if they are too many.
pub(super) fn geometry<G: Granule>(features: Arm64Features, bits: u8) -> Option<Geometry> {
    let largest_block = largest_block::<G>(features);
    let shape = |number: u8, index_bits: u8| {
        let level = Level::new(number);
        let leaf = level <= largest_block;
        let run_bits = run_bits::<G>(level);
        LevelShape {
            shift: G::PAGE_SHIFT + G::INDEX_BITS * number,
            index_bits,
            table_bytes: G::TABLE_BYTES << index_bits.saturating_sub(G::INDEX_BITS),
            leaf,
            // A run lies within its table, and that within the guest's addresses (D8.7).
            run_bits: if leaf && run_bits <= index_bits {
                run_bits
            } else {
                0
            },
        }
    };
    // Concatenation is used as far as it goes: one level of walk less. But two levels at least: a
    // tree of nothing but pages would be allocated whole at the start.
    let below = |root: u8| G::PAGE_SHIFT + G::INDEX_BITS * root;
    let widest = G::INDEX_BITS + CONCATENATION_BITS;
    let root = (1..4).find(|&root| below(root) + widest >= bits)?;
    let full = |number| shape(number, G::INDEX_BITS);
    let mut shapes = [full(0), full(1), full(2), full(3)];
    shapes[usize::from(root)] = shape(root, bits.checked_sub(below(root))?);
    Geometry::new(&shapes[..=usize::from(root)], bits)
}
