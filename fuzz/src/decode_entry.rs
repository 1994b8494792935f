//! Entries of Arm stage 2: whatever is in memory decodes, and decoding and encoding agree.

use arbitrary::Arbitrary;
use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::{Entry, Format};
use slat_table::geometry::Level;

/// An entry found in memory, a leaf to encode, and the hardware that both are for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Input {
    raw: u64,
    level: u8,
    hpa: u64,
    permissions: u8,
    memory: u8,
    accessed: bool,
    dirty: bool,
    software: u8,
    features: u8,
    physical_bits: u8,
}

/// Levels that a tree can have.
const LEVELS: u8 = 4;

/// Decodes and encodes.
///
/// # Panics
///
/// If a law of [`Format`] does not hold.
pub fn run(input: &Input) {
    let level = Level::new(input.level % LEVELS);
    let features = features(input);
    decoded(features, level, input.raw);
    encoded(features, level, Hpa::new(input.hpa), attributes(input));
}

/// What is found in memory is one thing only, and a leaf is encoded as it was found.
fn decoded(features: Arm64Features, level: Level, raw: u64) {
    let entry = Arm64::decode(&features, level, raw);
    let empty = Arm64::is_empty(level, raw);
    let table = Arm64::is_table(level, raw);
    assert_eq!(empty, entry == Entry::Empty, "{raw:#x}");
    assert_eq!(table, matches!(entry, Entry::Table(_)), "{raw:#x}");
    match entry {
        Entry::Empty => {}
        Entry::Table(hpa) => assert_eq!(Arm64::address(&features, level, raw), hpa),
        Entry::Foreign(found) => assert_eq!(found, raw),
        Entry::Leaf { hpa, attributes } => {
            assert_eq!(Arm64::address(&features, level, raw), hpa, "{raw:#x}");
            assert!(hpa.is_aligned(Arm64::leaf_step(level)), "{raw:#x}");
            let again = Arm64::leaf(&features, level, hpa, attributes);
            assert_eq!(again, Ok(raw), "{attributes:?}");
        }
    }
}

/// What can be encoded decodes to what it was, and so does its neighbour.
fn encoded(features: Arm64Features, level: Level, hpa: Hpa, attributes: Attributes) {
    let Ok(raw) = Arm64::leaf(&features, level, hpa, attributes) else {
        return;
    };
    let leaf = Entry::Leaf { hpa, attributes };
    assert_eq!(Arm64::decode(&features, level, raw), leaf, "{raw:#x}");
    let Some(next) = hpa.checked_add(Arm64::leaf_step(level)) else {
        return;
    };
    if let Ok(neighbour) = Arm64::leaf(&features, level, next, attributes) {
        assert_eq!(neighbour, raw + Arm64::leaf_step(level));
    }
}

fn features(input: &Input) -> Arm64Features {
    let bit = |number: u8| input.features >> number & 1 != 0;
    let widths = [32, 36, 40, 42, 44, 48, 52];
    Arm64Features {
        physical_bits: widths[usize::from(input.physical_bits) % widths.len()],
        force_write_back: bit(0),
        execute_never_extended: bit(1),
        hardware_accessed: bit(2),
        hardware_dirty: bit(3),
        vmid16: bit(4),
        coherent_instruction_cache: bit(5),
    }
}

fn attributes(input: &Input) -> Attributes {
    let bit = |number: u8| input.permissions >> number & 1 != 0;
    let execute = [
        Execute::Never,
        Execute::Privileged,
        Execute::Unprivileged,
        Execute::Always,
    ];
    let memory = [
        MemoryType::WriteBack,
        MemoryType::WriteThrough,
        MemoryType::NonCacheable,
        MemoryType::Device,
        MemoryType::DeviceStrict,
    ];
    Attributes {
        permissions: Permissions {
            read: bit(0),
            write: bit(1),
            execute: execute[usize::from(input.permissions >> 2 & 3)],
        },
        memory: memory[usize::from(input.memory) % memory.len()],
        accessed: input.accessed,
        dirty: input.dirty,
        software: input.software,
        contiguous: false,
    }
}
