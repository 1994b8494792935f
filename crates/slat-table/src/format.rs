//! What the engine needs to know of an architecture: one trait, mostly data.
//!
//! A [`Format`] says how a tree is shaped ([`Geometry`]), how an entry is written and read, what
//! the register that points to the root holds, and which [`Rules`] the hardware imposes on
//! whoever changes entries. The engine has no `if arm`: it follows the rules.

pub mod arm64;
pub mod armv7;
mod catalogue;
pub mod ept;
pub mod npt;
pub mod power;
pub mod riscv;
pub mod s390;

use core::fmt::Debug;

use crate::address::Hpa;
use crate::attributes::{Attributes, MemoryType};
use crate::geometry::{Geometry, Level};

/// An entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Maps nothing.
    Empty,
    /// Points to a table of the next level down.
    Table(Hpa),
    /// Maps a page or block.
    Leaf {
        /// First host physical address of the page or block; of the whole run for one of a run
        /// ([`Attributes::contiguous`]).
        hpa: Hpa,
        /// Everything else it says.
        attributes: Attributes,
    },
    /// Valid to the hardware, but nothing that this format's encoder makes.
    Foreign(u64),
}

/// Order of an entry's bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first (POWER, s390).
    Big,
}

/// How translations are removed from the TLBs of other CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushKind {
    /// By an instruction that reaches all CPUs (Arm, POWER, s390).
    Broadcast,
    /// Every CPU must act (x86, RISC-V). Never awaited under a lock.
    Ipi,
}

/// What the hardware at hand asks of whoever changes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about hardware, not a state"
)]
pub struct Rules {
    /// How other CPUs' translations are removed.
    pub flush: FlushKind,
    /// A change of address, size or memory type of a valid entry must pass through an invalid
    /// entry and a flush. Where it is false, a valid entry may be replaced at once and flushed
    /// afterwards.
    pub break_before_make: bool,
    /// Invalid entries may be cached, so an added mapping needs a local flush too (RISC-V
    /// without Svvptc).
    pub caches_invalid: bool,
    /// The hardware sets the accessed bit by itself.
    pub hardware_accessed: bool,
    /// The hardware sets the dirty bit by itself.
    pub hardware_dirty: bool,
}

/// What a format cannot encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The address is not a multiple of what the entry maps.
    #[error("host address {hpa} is not aligned for a leaf of level {}", level.index())]
    Unaligned {
        /// The address.
        hpa: Hpa,
        /// The entry's level.
        level: Level,
    },
    /// The address has more bits than an entry holds.
    #[error("host address {hpa} has more than {bits} bits")]
    AddressWidth {
        /// The address.
        hpa: Hpa,
        /// Bits that an entry holds.
        bits: u8,
    },
    /// No leaf may stand at this level.
    #[error("level {} has no leaves", .0.index())]
    NoLeaf(Level),
    /// The format or the hardware at hand cannot express this combination of permissions.
    #[error("permissions {0:?} cannot be expressed")]
    Permissions(crate::attributes::Permissions),
    /// The format or the hardware at hand has no such memory type.
    #[error("memory type {0:?} cannot be expressed")]
    MemoryType(MemoryType),
    /// Executable device memory.
    #[error("memory of type {0:?} cannot be executable")]
    ExecutableDevice(MemoryType),
    /// The format has no dirty bit, or the hardware at hand does not keep it.
    #[error("a dirty bit cannot be expressed")]
    Dirty,
    /// The format has no accessed bit, or the hardware at hand does not keep it: every leaf counts
    /// as used.
    #[error("a page that was not used cannot be told from one that was")]
    Unaccessed,
    /// The hardware at hand has no runs of leaves of this level.
    #[error("level {} has no runs of leaves", .0.index())]
    Contiguous(Level),
    /// More software bits than the format has.
    #[error("software bits {0:#x} do not fit")]
    Software(u8),
}

/// A guest address width that a format cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bits} guest address bits: {format} does {lowest} to {highest}")]
pub struct GeometryError {
    /// Bits asked for.
    pub bits: u8,
    /// [`Format::NAME`].
    pub format: &'static str,
    /// Fewest bits.
    pub lowest: u8,
    /// Most bits, given the hardware's features.
    pub highest: u8,
}

/// A second-level translation format, as a zero-sized type.
///
/// Laws, checked for every format by one test:
/// * `decode(level, leaf(level, hpa, a)?)` is that leaf; `decode(level, table(..))` that table;
/// * `decode(level, empty(level))` is [`Entry::Empty`];
/// * [`is_empty`](Format::is_empty), [`is_table`](Format::is_table),
///   [`address`](Format::address) and [`is_in_run`](Format::is_in_run) agree with `decode`;
/// * a leaf that is one of a run decodes to the first address of the run, whichever of its
///   addresses it was encoded for;
/// * every level of a [`geometry`](Format::geometry) has the shift that
///   [`SHIFTS`](Format::SHIFTS) says;
/// * leaves of neighbouring pages with equal attributes differ by
///   [`leaf_step`](Format::leaf_step), within a run by [`run_step`](Format::run_step).
pub trait Format: Copy + Debug + Default + Send + Sync + 'static {
    /// What of the format the hardware at hand has.
    type Features: Copy + Debug + Send + Sync + 'static;

    /// What the registers or tables that point to the root hold.
    type Root: Copy + Debug + Eq;

    /// Name for people, such as `"arm64 4K stage 2"`.
    const NAME: &'static str;

    /// Order of an entry's bytes in memory.
    const BYTE_ORDER: ByteOrder;

    /// log2 of the bytes that an entry maps, by level, pages first, for as many levels as a tree of
    /// this format can have. Walks cut addresses by these, which are known when they are compiled.
    const SHIFTS: &'static [u8];

    /// log2 of the bytes that an entry of `level` maps; 63 beyond the levels that there are.
    #[inline]
    fn shift(level: Level) -> u8 {
        Self::SHIFTS.get(level.index()).copied().unwrap_or(63)
    }

    /// Bytes of an entry: 8, or 4 (RISC-V `Sv32x4`). An entry of 4 bytes is the lower half of
    /// every `u64` below.
    const ENTRY_BYTES: u64 = 8;

    /// What the hardware asks of whoever changes entries.
    fn rules(features: &Self::Features) -> Rules;

    /// The tree for guest addresses of `address_bits` bits.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] if the hardware cannot do that many or that few.
    fn geometry(features: &Self::Features, address_bits: u8) -> Result<Geometry, GeometryError>;

    /// By how many bits of a VM's number the hardware at hand tells translations apart. 16 where it
    /// does so by other means.
    fn vmid_bits(features: &Self::Features) -> u8 {
        let _ = features;
        16
    }

    /// What the root pointer holds, for a root table at `table` and the VM named `vmid`, which has
    /// no more than [`vmid_bits`](Self::vmid_bits).
    fn root(features: &Self::Features, geometry: &Geometry, table: Hpa, vmid: u16) -> Self::Root;

    /// The entry that maps nothing. Need not be zero (s390, EPT with suppressed #VE).
    fn empty(level: Level) -> u64;

    /// The entry at `level` that points to the table of the next level down at `table`.
    fn table(features: &Self::Features, level: Level, table: Hpa) -> u64;

    /// The entry at `level` that maps the page or block at `hpa`.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] names what cannot be expressed.
    fn leaf(
        features: &Self::Features,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError>;

    /// What to add to a leaf entry of `level` to get that of the next page or block.
    fn leaf_step(level: Level) -> u64;

    /// What to add to a leaf entry of `level` that is one of a run to get that of the next page or
    /// block of the same run. Nothing where a run repeats one entry (RISC-V).
    fn run_step(level: Level) -> u64 {
        Self::leaf_step(level)
    }

    /// What `raw`, found at `level`, means.
    #[inline]
    fn decode(features: &Self::Features, level: Level, raw: u64) -> Entry {
        if Self::is_empty(level, raw) {
            return Entry::Empty;
        }
        if Self::is_table(level, raw) {
            return Entry::Table(Self::address(features, level, raw));
        }
        match Self::decode_leaf(features, level, raw) {
            Some((hpa, attributes)) => Entry::Leaf { hpa, attributes },
            None => Entry::Foreign(raw),
        }
    }

    /// What `raw`, found at `level` and neither empty nor a table pointer, maps: the first host
    /// physical address of the page, block or run, and the rest. `None` if no encoder of this
    /// format makes it.
    fn decode_leaf(features: &Self::Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)>;

    /// Whether `raw`, found at `level`, maps nothing.
    fn is_empty(level: Level, raw: u64) -> bool;

    /// Whether `raw`, found at `level`, points to a table.
    fn is_table(level: Level, raw: u64) -> bool;

    /// The host physical address in `raw`, a table pointer or leaf found at `level`.
    fn address(features: &Self::Features, level: Level, raw: u64) -> Hpa;

    /// Whether `raw`, a leaf found at `level`, says that it is one of a run.
    fn is_in_run(level: Level, raw: u64) -> bool;

    /// Whether this memory type holds whatever the guest asks for in its own tables. Memory that
    /// the host cannot maintain caches for is refused where it does not.
    fn forces(features: &Self::Features, memory: MemoryType) -> bool;
}
