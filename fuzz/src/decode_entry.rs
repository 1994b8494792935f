//! Entries of Arm stage 2, of every granule and of Armv7: whatever is in memory decodes, and decoding
//! and encoding agree.

use arbitrary::Arbitrary;
use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::arm64::{
    Arm64, Arm64Features, Arm64Granule16K, Arm64Granule16KLpa2, Arm64Granule64K, Arm64Lpa2,
};
use slat_table::format::armv7::{Armv7, Armv7Features};
use slat_table::format::{Entry, Format};
use slat_table::geometry::Level;

/// An entry found in memory, a leaf to encode, and the hardware that both are for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Input {
    format: u8,
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

/// Levels that a tree can have, and one more.
const LEVELS: u8 = 5;

/// The longest run of leaves: 128 pages of 16 KiB.
const LONGEST_RUN: u64 = 128;

/// Decodes and encodes.
///
/// # Panics
///
/// If a law of [`Format`] does not hold.
pub fn run(input: &Input) {
    let features = features(input);
    match input.format % 6 {
        0 => check::<Arm64>(&features, input),
        1 => check::<Arm64Lpa2>(&features, input),
        2 => check::<Arm64Granule16K>(&features, input),
        3 => check::<Arm64Granule16KLpa2>(&features, input),
        4 => check::<Arm64Granule64K>(&features, input),
        _ => check::<Armv7>(&Armv7Features::ALL, input),
    }
}

fn check<F: Format>(features: &F::Features, input: &Input) {
    let level = Level::new(input.level % LEVELS);
    decoded::<F>(features, level, input.raw);
    encoded::<F>(features, level, Hpa::new(input.hpa), attributes(input));
}

/// What is found in memory is one thing only, and a leaf is encoded as it was found. What is one of
/// a run is decoded to the run's first, which is so many steps before it.
fn decoded<F: Format>(features: &F::Features, level: Level, raw: u64) {
    let entry = F::decode(features, level, raw);
    let empty = F::is_empty(level, raw);
    let table = F::is_table(level, raw);
    assert_eq!(empty, entry == Entry::Empty, "{raw:#x}");
    assert_eq!(table, matches!(entry, Entry::Table(_)), "{raw:#x}");
    match entry {
        Entry::Empty => {}
        Entry::Table(hpa) => assert_eq!(F::address(features, level, raw), hpa),
        Entry::Foreign(found) => assert_eq!(found, raw),
        Entry::Leaf { hpa, attributes } => {
            assert_eq!(F::address(features, level, raw), hpa, "{raw:#x}");
            assert!(hpa.is_aligned(F::leaf_step(level)), "{raw:#x}");
            let first = F::leaf(features, level, hpa, attributes).expect("it was found");
            let steps = (raw - first) / F::run_step(level);
            assert_eq!(first + steps * F::run_step(level), raw, "{attributes:?}");
            assert!(steps == 0 || attributes.contiguous && steps < LONGEST_RUN);
        }
    }
}

/// What can be encoded decodes to what it was, and so does its neighbour.
fn encoded<F: Format>(features: &F::Features, level: Level, hpa: Hpa, attributes: Attributes) {
    let Ok(raw) = F::leaf(features, level, hpa, attributes) else {
        return;
    };
    let step = F::leaf_step(level);
    match F::decode(features, level, raw) {
        Entry::Leaf {
            hpa: first,
            attributes: found,
        } => {
            assert_eq!(found, attributes, "{raw:#x}");
            let steps = (hpa.raw() - first.raw()) / step;
            assert!(steps == 0 || attributes.contiguous && steps < LONGEST_RUN);
        }
        other => panic!("{raw:#x} is {other:?}"),
    }
    // An address of more than 48 bits stands in two pieces, and does not carry from one to the other.
    let next = hpa.checked_add(step);
    let Some(next) = next.filter(|next| next.raw() >> 48 == hpa.raw() >> 48) else {
        return;
    };
    if let Ok(neighbour) = F::leaf(features, level, next, attributes) {
        assert_eq!(neighbour, raw + step);
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
        contiguous: bit(4),
    }
}
