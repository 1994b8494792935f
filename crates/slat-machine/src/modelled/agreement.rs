//! Whether a format's encoder and an architecture's walker mean the same.
//!
//! The two are written apart, from the same manual. Entries are drawn at random, encoded by the one and
//! read by the other; what hardware makes of them goes back through the format's decoder. For formats
//! that encode an accessed and a dirty bit as such.

use slat_table::address::Hpa;
use slat_table::attributes::{Access, Attributes, Execute, MemoryType, Permissions};
use slat_table::format::{ByteOrder, Entry, Format};
use slat_table::geometry::{Geometry, Level};

use super::Modelled;
use crate::address;
use crate::architecture::{self, Architecture, Descriptor, Leaf, LevelShape};
use crate::event::AccessKind;
use crate::random::Random;

const ENTRIES: usize = 4000;
const VMID: u16 = 1;

/// Panics on the first difference.
pub(super) fn check<F: Modelled>(features: &F::Features, address_bits: u8) {
    let geometry = F::geometry(features, address_bits).unwrap();
    let table = Hpa::new(0x10_0000);
    let root = F::root(features, &geometry, table, VMID);
    let registers = F::registers(features, root, VMID);
    let walker = architecture::from_registers(&registers).unwrap();
    assert_eq!(walker.root(), to_machine(table));
    trees_agree::<F>(features, &geometry, &*walker);
    let random = &mut Random::new(u64::from(address_bits));
    let mut leaves = 0;
    for _ in 0..ENTRIES {
        let level = Level::new(u8::try_from(random.below(geometry.root().index() + 1)).unwrap());
        entries_agree::<F>(features, level, &*walker, random);
        leaves += usize::from(leaves_agree::<F>(
            features, &geometry, level, &*walker, random,
        ));
    }
    assert!(leaves > ENTRIES / 100, "{leaves} leaves are no test");
}

fn trees_agree<F: Modelled>(
    features: &F::Features,
    geometry: &Geometry,
    walker: &dyn Architecture,
) {
    let levels: Vec<LevelShape> = (0..=geometry.root().index())
        .map(|number| geometry.shape(Level::new(u8::try_from(number).unwrap())))
        .map(|shape| LevelShape {
            shift: shape.shift,
            index_bits: shape.index_bits,
        })
        .collect();
    assert_eq!(walker.levels(), levels);
    assert!(walker.address_bits() >= geometry.address_bits());
    assert_eq!(walker.entry_bytes(), F::ENTRY_BYTES);
    let rules = F::rules(features);
    assert_eq!(walker.break_before_make(), rules.break_before_make);
    assert_eq!(walker.caches_invalid(), rules.caches_invalid);
}

fn entries_agree<F: Modelled>(
    features: &F::Features,
    level: Level,
    walker: &dyn Architecture,
    random: &mut Random,
) {
    let empty = walker.decode(level.index(), in_memory::<F>(F::empty(level)));
    assert_eq!(empty, Descriptor::Invalid, "{level:?}");
    if level == Level::PAGE {
        return;
    }
    let table = Hpa::new((random.bits() & 0xffff_ffff) << 16 & ((1 << 40) - 1));
    let raw = F::table(features, level, table);
    let read = walker.decode(level.index(), in_memory::<F>(raw));
    assert_eq!(read, Descriptor::Table(to_machine(table)), "{raw:#x}");
    let Some(accessed) = walker.with_accessed(level.index(), in_memory::<F>(raw)) else {
        return;
    };
    assert_eq!(walker.decode(level.index(), accessed), read);
    let again = F::decode(features, level, in_memory::<F>(accessed));
    assert_eq!(again, Entry::Table(table), "accessed");
}

/// Whether there was a leaf to compare.
fn leaves_agree<F: Modelled>(
    features: &F::Features,
    geometry: &Geometry,
    level: Level,
    walker: &dyn Architecture,
    random: &mut Random,
) -> bool {
    let step = 1_u64 << walker.levels()[level.index()].shift;
    let hpa = Hpa::new(random.bits() >> (12 + random.below(32)) & !(step - 1));
    let run = geometry.run_bytes(level);
    let attributes = Attributes {
        contiguous: run.is_some() && random.one_in(4),
        ..draw(random)
    };
    let Ok(raw) = F::leaf(features, level, hpa, attributes) else {
        return false;
    };
    let Descriptor::Leaf(leaf) = walker.decode(level.index(), in_memory::<F>(raw)) else {
        panic!("{attributes:?} at {level:?} is {raw:#x}, which is no leaf");
    };
    assert_eq!(leaf.hpa, to_machine(hpa));
    meanings_agree(&leaf, attributes);
    let run = run.filter(|_| attributes.contiguous);
    assert_eq!(step << leaf.run_bits, run.unwrap_or(step));
    // One of a run has its own address, and is decoded to the run's first.
    let hpa = hpa.align_down(step << leaf.run_bits);
    assert_eq!(F::address(features, level, raw), hpa);
    let rules = F::rules(features);
    let decoded = |bytes: u64| F::decode(features, level, in_memory::<F>(bytes));
    let accessed = walker.with_accessed(level.index(), in_memory::<F>(raw));
    assert_eq!(accessed.is_some(), rules.hardware_accessed);
    if let Some(accessed) = accessed {
        let attributes = Attributes {
            accessed: true,
            ..attributes
        };
        assert_eq!(decoded(accessed), Entry::Leaf { hpa, attributes });
    }
    let dirty = walker.with_dirty(level.index(), in_memory::<F>(raw));
    let keeps = rules.hardware_dirty && attributes.permissions.write;
    assert_eq!(dirty.is_some(), keeps);
    if let Some(dirty) = dirty {
        let attributes = Attributes {
            dirty: true,
            ..attributes
        };
        assert_eq!(decoded(dirty), Entry::Leaf { hpa, attributes });
    }
    true
}

fn meanings_agree(leaf: &Leaf, attributes: Attributes) {
    let permissions = attributes.permissions;
    for (kind, access) in [
        (AccessKind::Read, Access::Read),
        (AccessKind::Write, Access::Write),
        (AccessKind::Execute, Access::Execute),
    ] {
        let allowed = permissions.allow(access);
        assert_eq!(leaf.allows(kind), allowed, "{attributes:?} {kind:?}");
    }
    assert_eq!(leaf.accessed, attributes.accessed);
    assert_eq!(leaf.dirty, attributes.dirty);
    let device = matches!(
        attributes.memory,
        MemoryType::Device | MemoryType::DeviceStrict
    );
    assert_eq!(leaf.device, device);
}

fn draw(random: &mut Random) -> Attributes {
    let executes = [
        Execute::Never,
        Execute::Privileged,
        Execute::Unprivileged,
        Execute::Always,
    ];
    let types = [
        MemoryType::WriteBack,
        MemoryType::WriteThrough,
        MemoryType::NonCacheable,
        MemoryType::Device,
        MemoryType::DeviceStrict,
    ];
    Attributes {
        permissions: Permissions {
            read: !random.one_in(4),
            write: random.half(),
            execute: executes[random.below(executes.len())],
        },
        memory: types[random.below(types.len())],
        accessed: random.half(),
        dirty: random.half(),
        software: u8::try_from(random.below(8)).unwrap(),
        contiguous: false,
    }
}

/// The entry as a little-endian CPU would read its bytes; and back.
const fn in_memory<F: Format>(raw: u64) -> u64 {
    match F::BYTE_ORDER {
        ByteOrder::Little => raw,
        ByteOrder::Big => raw.swap_bytes(),
    }
}

const fn to_machine(hpa: Hpa) -> address::Hpa {
    address::Hpa(hpa.raw())
}
