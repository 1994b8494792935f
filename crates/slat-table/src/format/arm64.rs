//! Arm VMSAv8-64 stage 2: every granule, guest and host addresses of 32 to 52 bits.
//!
//! [`StageTwo`] is the format, for one [`Granule`]; the names to use are [`Arm64`] (4 KiB pages),
//! [`Arm64Lpa2`], [`Arm64Granule16K`], [`Arm64Granule16KLpa2`] and [`Arm64Granule64K`].
//!
//! | granule | leaves | runs of them | root |
//! |---|---|---|---|
//! | 4 KiB | 4K, 2M, 1G; 512G with `FEAT_LPA2` | 64K, 32M, 16G | 1 to 16 tables |
//! | 16 KiB | 16K, 32M; 64G with `FEAT_LPA2` | 2M, 1G | 1 to 16 tables |
//! | 64 KiB | 64K, 512M; 4T with `FEAT_LPA` | 2M, 16G | 1 to 16 tables |
//!
//! The rules are those of the Arm Architecture Reference Manual (DDI 0487): D8.3 for descriptor
//! formats, D8.4 and D8.6 for stage-2 permissions and memory attributes, D8.2.3 for the start level and
//! concatenated tables, D8.16 for break-before-make, D24.2 for `VTCR_EL2` and `VTTBR_EL2`. The
//! manual counts levels from the root (3 maps pages); this crate counts from the pages.

mod descriptor;
mod features;
mod granule;
pub mod maintenance;
mod registers;

use core::marker::PhantomData;

pub use features::Arm64Features;
pub use granule::{Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K};
pub use registers::Arm64Root;

use self::descriptor::{CONTIGUOUS, TABLE_OR_PAGE, VALID};
use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, MemoryType};
use crate::geometry::{Geometry, Level, level_shifts};

/// Arm stage 2 with one granule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTwo<G: Granule>(PhantomData<G>);

/// Pages of 4 KiB, addresses of up to 48 bits.
pub type Arm64 = StageTwo<Granule4K>;

/// Pages of 4 KiB, addresses of up to 52 bits. For CPUs with `FEAT_LPA2` at stage 2
/// (`ID_AA64MMFR0_EL1.TGran4_2`).
pub type Arm64Lpa2 = StageTwo<Granule4KLpa2>;

/// Pages of 16 KiB, addresses of up to 48 bits.
pub type Arm64Granule16K = StageTwo<Granule16K>;

/// Pages of 16 KiB, addresses of up to 52 bits. For CPUs with `FEAT_LPA2` at stage 2
/// (`ID_AA64MMFR0_EL1.TGran16_2`).
pub type Arm64Granule16KLpa2 = StageTwo<Granule16KLpa2>;

/// Pages of 64 KiB, addresses of up to 52 bits.
pub type Arm64Granule64K = StageTwo<Granule64K>;

impl<G: Granule> Format for StageTwo<G> {
    type Features = Arm64Features;
    type Root = Arm64Root;

    const NAME: &'static str = G::NAME;
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<4>(G::PAGE_SHIFT, G::INDEX_BITS);

    fn rules(features: &Arm64Features) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: true,
            caches_invalid: false,
            hardware_accessed: features.hardware_accessed,
            hardware_dirty: features.keeps_dirty(),
        }
    }

    fn geometry(features: &Arm64Features, bits: u8) -> Result<Geometry, GeometryError> {
        // The guest's physical addresses may not outgrow the CPU's (D8.2.1).
        let highest = granule::address_bits::<G>(*features);
        let lowest = granule::ADDRESS_BITS_MIN;
        (lowest..=highest)
            .contains(&bits)
            .then(|| granule::geometry::<G>(*features, bits))
            .flatten()
            .ok_or(GeometryError {
                bits,
                format: Self::NAME,
                lowest,
                highest,
            })
    }

    fn vmid_bits(features: &Arm64Features) -> u8 {
        if features.vmid16 { 16 } else { 8 }
    }

    fn root(features: &Arm64Features, geometry: &Geometry, table: Hpa, vmid: u16) -> Arm64Root {
        registers::root::<G>(*features, geometry, table, vmid)
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &Arm64Features, _: Level, table: Hpa) -> u64 {
        granule::pack::<G>(table) | TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn leaf(
        features: &Arm64Features,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        descriptor::leaf::<G>(*features, level, hpa, attributes)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        granule::bytes::<G>(level)
    }

    #[inline]
    fn decode_leaf(features: &Arm64Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        descriptor::decode_leaf::<G>(*features, level, raw)
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & (TABLE_OR_PAGE | VALID) == TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn address(_: &Arm64Features, level: Level, raw: u64) -> Hpa {
        descriptor::address::<G>(level, raw)
    }

    #[inline]
    fn is_in_run(_: Level, raw: u64) -> bool {
        raw & CONTIGUOUS != 0
    }

    fn forces(features: &Arm64Features, memory: MemoryType) -> bool {
        match memory {
            // Without forced write-back the guest may bypass caches, and without a coherent
            // instruction cache new code needs maintenance; both need a host mapping that
            // device memory may lack.
            MemoryType::WriteBack | MemoryType::WriteThrough => {
                features.force_write_back && features.coherent_instruction_cache
            }
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}
