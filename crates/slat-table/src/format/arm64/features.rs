//! What of stage 2 a CPU has.

/// What of stage 2 the CPU at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// So that it is read in one go, wherever an entry is encoded or decoded.
#[repr(align(8))]
pub struct Arm64Features {
    /// Bits of a physical address (`ID_AA64MMFR0_EL1.PARange`): 32, 36, 40, 42, 44, 48 or 52. A
    /// format whose descriptors hold fewer uses as many as they hold.
    pub physical_bits: u8,
    /// `FEAT_S2FWB` with `HCR_EL2.FWB` set: memory types are forced rather than combined with
    /// the guest's, and encoded differently.
    pub force_write_back: bool,
    /// `FEAT_XNX`: execution can be allowed to EL0 and EL1 separately.
    pub execute_never_extended: bool,
    /// `FEAT_HAFDBS` with `VTCR_EL2.HA` set: the hardware sets the access flag.
    pub hardware_accessed: bool,
    /// `FEAT_HAFDBS` level 2 with `VTCR_EL2.HD` set: the hardware makes writable-clean leaves
    /// writable-dirty. Counts only together with `hardware_accessed`.
    pub hardware_dirty: bool,
    /// `FEAT_VMID16` with `VTCR_EL2.VS` set: 16-bit VMIDs.
    pub vmid16: bool,
    /// `CTR_EL0.DIC`: instruction caches need no invalidation for new code.
    pub coherent_instruction_cache: bool,
}

impl Arm64Features {
    /// A CPU with 48-bit addresses and every feature.
    pub const ALL: Self = Self {
        physical_bits: 48,
        force_write_back: true,
        execute_never_extended: true,
        hardware_accessed: true,
        hardware_dirty: true,
        vmid16: true,
        coherent_instruction_cache: true,
    };

    /// A CPU with 52-bit addresses and every feature.
    pub const WIDE: Self = Self {
        physical_bits: 52,
        ..Self::ALL
    };

    /// A CPU with 48-bit addresses and no feature.
    pub const NONE: Self = Self {
        physical_bits: 48,
        force_write_back: false,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    };

    /// Whether the hardware keeps dirty bits. `VTCR_EL2.HD` does nothing while `HA` is clear, and
    /// a leaf with `DBM` would then never become writable (D8.5).
    #[inline]
    pub(super) const fn keeps_dirty(self) -> bool {
        self.hardware_accessed && self.hardware_dirty
    }
}
