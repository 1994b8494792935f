//! RISC-V G-stage: `Sv39x4`, `Sv48x4` and `Sv57x4` with entries of 8 bytes here, `Sv32x4` with
//! entries of 4 bytes in [`sv32x4`].
//!
//! The rules are those of the RISC-V Privileged Architecture: "Guest Physical Address
//! Translation" and "Hypervisor Guest Address Translation and Protection Register (hgatp)" of the
//! hypervisor extension, which take the format of an entry from "Sv39: Page-Based 39-bit
//! Virtual-Memory System" and its neighbours, and the extensions Svpbmt (memory types), Svnapot
//! (64 KiB as sixteen equal entries), Svadu (hardware sets A and D) and Svvptc (entries that
//! become valid are seen without a fence). The modes differ from the host's own in one thing: the
//! root is four tables side by side, 16 KiB, and has two more index bits.

mod flags;
pub mod maintenance;
pub mod sv32x4;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, MemoryType};
use crate::geometry::{Geometry, Level, LevelShape, level_shifts};
use flags::VALID;

/// RISC-V G-stage of a 64-bit hart: the smallest of `Sv39x4`, `Sv48x4` and `Sv57x4` that the hart
/// has and that holds the guest's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RiscV;

/// What of the G-stage the hart at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent feature of the hart"
)]
pub struct RiscVFeatures {
    /// `hgatp.MODE` can be `Sv39x4`: guest addresses of 41 bits.
    pub sv39x4: bool,
    /// `hgatp.MODE` can be `Sv48x4`: guest addresses of 50 bits.
    pub sv48x4: bool,
    /// `hgatp.MODE` can be `Sv57x4`: guest addresses of 59 bits.
    pub sv57x4: bool,
    /// Svpbmt with `menvcfg.PBMTE` set: an entry names a memory type.
    pub svpbmt: bool,
    /// `henvcfg.PBMTE` is set: the guest's own entries name memory types too, and win.
    pub guest_svpbmt: bool,
    /// Svnapot: sixteen equal entries are 64 KiB that may be kept as one translation.
    pub svnapot: bool,
    /// Svadu with `menvcfg.ADUE` set: the hardware sets A and D. Otherwise an access without A, or
    /// a store without D, faults (Svade).
    pub svadu: bool,
    /// Svvptc: an entry that becomes valid is seen soon without a fence.
    pub svvptc: bool,
}

impl RiscVFeatures {
    /// A hart with every mode and every extension, which shares none of them with the guest.
    pub const ALL: Self = Self {
        sv39x4: true,
        sv48x4: true,
        sv57x4: true,
        svpbmt: true,
        guest_svpbmt: false,
        svnapot: true,
        svadu: true,
        svvptc: true,
    };

    /// A hart with `Sv39x4` and no extension.
    pub const NONE: Self = Self {
        sv39x4: true,
        sv48x4: false,
        sv57x4: false,
        svpbmt: false,
        guest_svpbmt: false,
        svnapot: false,
        svadu: false,
        svvptc: false,
    };

    /// Number of levels of each mode and whether the hart has it, smallest first.
    const fn modes(self) -> [(u8, bool); 3] {
        [(3, self.sv39x4), (4, self.sv48x4), (5, self.sv57x4)]
    }

    const fn hardware(self) -> Hardware {
        Hardware {
            svadu: self.svadu,
            svvptc: self.svvptc,
        }
    }
}

/// What both widths of hart may have.
#[derive(Clone, Copy)]
struct Hardware {
    svadu: bool,
    svvptc: bool,
}

impl Hardware {
    /// A walk may use any value that an entry had since the last fence ("Supervisor Memory-Management
    /// Fence Instruction"), so old and new translation may be in use side by side until the fence,
    /// and no entry needs to be invalid in between. Those values include invalid ones, but for
    /// Svvptc.
    const fn rules(self) -> Rules {
        Rules {
            flush: FlushKind::Ipi,
            break_before_make: false,
            caches_invalid: !self.svvptc,
            hardware_accessed: self.svadu,
            hardware_dirty: self.svadu,
        }
    }
}

/// Page numbers stand two bits lower in an entry than in an address.
const PAGE_NUMBER_SHIFT: u8 = 10;
/// The page number: bits 53:10.
const PAGE_NUMBER: u64 = 0x003f_ffff_ffff_fc00;
/// Bits of a host physical address: 44 of the page number, 12 within the page.
const HOST_BITS: u8 = 56;
const MEMORY_SHIFT: u32 = 61;
const MEMORY_MASK: u64 = 0b11 << MEMORY_SHIFT;
const NAPOT: u64 = 1 << 63;
/// log2 of the entries of a NAPOT run, the only size that Svnapot has.
const RUN_BITS: u8 = 4;
/// The low bits of the page number in an entry of a run. They hold the run's size, `0b1000`, in
/// place of an address.
const RUN_MASK: u64 = 0b1111 << PAGE_NUMBER_SHIFT;
const RUN_SIZE: u64 = 0b1000 << PAGE_NUMBER_SHIFT;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
const TABLE_BYTES: u32 = 4096;
/// The root is four tables side by side.
const ROOT_BITS: u8 = 2;
const LARGEST_LEAF: Level = Level::new(4);

/// Bits of a guest physical address with so many levels.
const fn guest_bits(levels: u8) -> u8 {
    PAGE_SHIFT + INDEX_BITS * levels + ROOT_BITS
}

impl Format for RiscV {
    type Features = RiscVFeatures;
    /// `hgatp`.
    type Root = u64;

    const NAME: &'static str = "RISC-V G-stage";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<5>(PAGE_SHIFT, INDEX_BITS);

    fn rules(features: &RiscVFeatures) -> Rules {
        features.hardware().rules()
    }

    /// Fewer bits than a mode has leave a part of its root empty.
    fn geometry(features: &RiscVFeatures, bits: u8) -> Result<Geometry, GeometryError> {
        let modes = features.modes();
        let available = || {
            modes
                .iter()
                .filter(|(_, has)| *has)
                .map(|(levels, _)| *levels)
        };
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: PAGE_SHIFT,
            highest: available().map(guest_bits).max().unwrap_or(0),
        };
        if bits < PAGE_SHIFT {
            return Err(error);
        }
        let levels = available()
            .find(|levels| guest_bits(*levels) >= bits)
            .ok_or(error)?;
        let shape = |number: u8| LevelShape {
            shift: Self::SHIFTS[usize::from(number)],
            index_bits: INDEX_BITS,
            table_bytes: TABLE_BYTES,
            leaf: true,
            run_bits: if features.svnapot && number == 0 {
                RUN_BITS
            } else {
                0
            },
        };
        let mut shapes = [shape(0), shape(1), shape(2), shape(3), shape(4)];
        let shapes = &mut shapes[..usize::from(levels)];
        if let Some(root) = shapes.last_mut() {
            root.index_bits += ROOT_BITS;
            root.table_bytes <<= ROOT_BITS;
        }
        Geometry::new(shapes, bits).ok_or(error)
    }

    fn vmid_bits(_: &RiscVFeatures) -> u8 {
        // A hart may have fewer (VMIDLEN), and then keeps the lower ones: the embedder asks it.
        14
    }

    fn root(_: &RiscVFeatures, geometry: &Geometry, table: Hpa, vmid: u16) -> u64 {
        /// Bits 57:44; a hart may have fewer, and then keeps the lower ones.
        const VMID_MASK: u16 = 0x3fff;
        // MODE is 8, 9 and 10 for roots at our levels 2, 3 and 4.
        let mode = geometry.root().index() as u64 + 6;
        mode << 60 | u64::from(vmid & VMID_MASK) << 44 | table.raw() >> PAGE_SHIFT
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &RiscVFeatures, _: Level, table: Hpa) -> u64 {
        page_number(table) | VALID
    }

    #[inline]
    fn leaf(
        features: &RiscVFeatures,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if level > LARGEST_LEAF {
            return Err(EncodeError::NoLeaf(level));
        }
        if !hpa.is_aligned(leaf_bytes(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        if hpa.raw() >> HOST_BITS != 0 {
            let bits = HOST_BITS;
            return Err(EncodeError::AddressWidth { hpa, bits });
        }
        let flags = flags::encode(features.svadu, attributes)?;
        let memory = memory_bits(*features, attributes.memory)?;
        let page = page_number(hpa);
        if !attributes.contiguous {
            return Ok(page | memory | flags);
        }
        if !has_runs(*features, level) {
            return Err(EncodeError::Contiguous(level));
        }
        Ok(page & !RUN_MASK | RUN_SIZE | NAPOT | memory | flags)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        leaf_bytes(level) >> (PAGE_SHIFT - PAGE_NUMBER_SHIFT)
    }

    /// All entries of a run are the same ("Svnapot").
    #[inline]
    fn run_step(_: Level) -> u64 {
        0
    }

    #[inline]
    fn decode_leaf(features: &RiscVFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        decode_leaf(*features, level, raw)
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    /// A pointer has no bit set but V: the rest is reserved in it, and walks fault on most.
    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & !PAGE_NUMBER == VALID
    }

    #[inline]
    fn address(_: &RiscVFeatures, level: Level, raw: u64) -> Hpa {
        let in_run = Self::is_in_run(level, raw);
        let size = if in_run { RUN_MASK } else { 0 };
        Hpa::new((raw & PAGE_NUMBER & !size) << (PAGE_SHIFT - PAGE_NUMBER_SHIFT))
    }

    #[inline]
    fn is_in_run(level: Level, raw: u64) -> bool {
        level == Level::PAGE && raw & NAPOT != 0
    }

    /// A memory type of the guest's replaces ours where it says one ("Svpbmt", two-stage
    /// translation). It can say non-cacheable and I/O, so only caches can be bypassed by it.
    fn forces(features: &RiscVFeatures, memory: MemoryType) -> bool {
        match memory {
            MemoryType::WriteBack | MemoryType::WriteThrough => !features.guest_svpbmt,
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}

/// Bytes that a leaf of this level maps.
const fn leaf_bytes(level: Level) -> u64 {
    1 << (PAGE_SHIFT as usize + INDEX_BITS as usize * level.index())
}

/// The page number of an aligned address, where an entry has it.
const fn page_number(hpa: Hpa) -> u64 {
    hpa.raw() >> (PAGE_SHIFT - PAGE_NUMBER_SHIFT) & PAGE_NUMBER
}

/// Whether leaves of this level can be one of a run.
const fn has_runs(features: RiscVFeatures, level: Level) -> bool {
    features.svnapot && level.index() == 0
}

/// `PBMT`. Zero leaves it to the physical memory attributes, which say "cacheable" of RAM; they
/// say "I/O" of devices, but no entry would tell that apart, so it has to be said.
#[inline]
fn memory_bits(features: RiscVFeatures, memory: MemoryType) -> Result<u64, EncodeError> {
    let bits = match memory {
        MemoryType::WriteBack => 0,
        MemoryType::NonCacheable if features.svpbmt => 1,
        MemoryType::Device if features.svpbmt => 2,
        _ => return Err(EncodeError::MemoryType(memory)),
    };
    Ok(bits << MEMORY_SHIFT)
}

#[inline]
fn decode_memory(features: RiscVFeatures, raw: u64) -> Option<MemoryType> {
    match (raw & MEMORY_MASK) >> MEMORY_SHIFT {
        0 => Some(MemoryType::WriteBack),
        1 if features.svpbmt => Some(MemoryType::NonCacheable),
        2 if features.svpbmt => Some(MemoryType::Device),
        _ => None,
    }
}

#[inline]
fn decode_leaf(features: RiscVFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
    let contiguous = raw & NAPOT != 0;
    let run = !contiguous || (has_runs(features, level) && raw & RUN_MASK == RUN_SIZE);
    let known = flags::ALL | PAGE_NUMBER | MEMORY_MASK | NAPOT;
    let hpa = RiscV::address(&features, level, raw);
    if !run || level > LARGEST_LEAF || raw & !known != 0 || !hpa.is_aligned(leaf_bytes(level)) {
        return None;
    }
    let memory = decode_memory(features, raw)?;
    let attributes = flags::decode(features.svadu, raw)?;
    let attributes = Attributes {
        memory,
        contiguous,
        ..attributes
    };
    Some((hpa, attributes))
}
