//! What the unit tests share: the tree of one well-known format.

use slat_table::format::Format;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::geometry::Geometry;

/// The least that a CPU with stage 2 has.
pub(crate) const FEATURES: Arm64Features = Arm64Features {
    physical_bits: 40,
    force_write_back: false,
    execute_never_extended: false,
    hardware_accessed: false,
    hardware_dirty: false,
    vmid16: false,
    coherent_instruction_cache: false,
};

/// 40 bits: pages, 2 MiB blocks, 1 GiB blocks.
pub(crate) fn geometry() -> Geometry {
    Arm64::geometry(&FEATURES, 40).unwrap()
}
