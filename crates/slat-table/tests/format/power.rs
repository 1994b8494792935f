//! POWER radix tables, partition-scoped: every bit against the Power ISA.
//!
//! The fields here are written from the manual's figures (version 3.1, Book III, "Radix Tree
//! Translation"), in its own numbering, bit 0 being the most significant, and share nothing with
//! the crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::power::{
    Page4K, Page64K, PageSize, Power, Power4K, Power64K, PowerFeatures,
};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const GIB1: Level = Level::new(2);
const GIB512: Level = Level::new(3);
const ALL: PowerFeatures = PowerFeatures::ALL;

fn ram(permissions: Permissions) -> Attributes {
    Attributes::new(permissions, MemoryType::WriteBack)
}

/// The bits from `first` to `last` in the manual's numbering.
fn field(raw: u64, first: u32, last: u32) -> u64 {
    raw << first >> (63 - (last - first))
}

#[test]
fn every_leaf_obeys_the_laws() {
    for bits in [31, 40, 52] {
        laws::check::<Power4K>(&ALL, bits);
        laws::check::<Power64K>(&ALL, bits);
    }
    let narrow = PowerFeatures {
        real_address_bits: 51,
    };
    laws::check::<Power4K>(&narrow, 52);
}

/// `ATT`, bits 58 and 59: normal memory, strong access order, non-idempotent, tolerant.
const MEMORY_ATTRIBUTES: [(u64, MemoryType); 3] = [
    (0b00, MemoryType::WriteBack),
    (0b10, MemoryType::Device),
    (0b11, MemoryType::NonCacheable),
];

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(raw: u64, hpa: Hpa, attributes: Attributes) {
    assert_eq!(field(raw, 0, 0), 1, "valid");
    assert_eq!(field(raw, 1, 1), 1, "leaf");
    let software = field(raw, 2, 2) << 3 | field(raw, 52, 54);
    assert_eq!(software, u64::from(attributes.software));
    assert_eq!(field(raw, 3, 6), 0, "reserved");
    assert_eq!(field(raw, 7, 51) << 12, hpa.raw(), "RPN");
    assert_eq!(field(raw, 55, 55), u64::from(attributes.accessed), "R");
    assert_eq!(field(raw, 56, 56), u64::from(attributes.dirty), "C");
    assert_eq!(field(raw, 57, 57), 0, "reserved");
    let memory = (field(raw, 58, 59), attributes.memory);
    assert!(MEMORY_ATTRIBUTES.contains(&memory));
    let Permissions {
        read,
        write,
        execute,
    } = attributes.permissions;
    assert_eq!(field(raw, 60, 60), 0, "privileged");
    let access = [field(raw, 61, 61), field(raw, 62, 62), field(raw, 63, 63)];
    let execute = execute == Execute::Always;
    assert_eq!(access.map(|bit| bit == 1), [read, write, execute]);
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(attributes: Attributes) -> bool {
    let Permissions {
        read,
        write,
        execute,
    } = attributes.permissions;
    let device = attributes.memory == MemoryType::Device;
    let known = |(_, memory): &(u64, MemoryType)| *memory == attributes.memory;
    MEMORY_ATTRIBUTES.iter().any(known)
        && matches!(execute, Execute::Never | Execute::Always)
        && !(device && execute == Execute::Always)
        && (read || !write)
        && (write || !attributes.dirty)
        && attributes.software < 16
}

fn leaves_agree<P: PageSize>() {
    let software: Vec<u8> = (0..=17).collect();
    for attributes in laws::all_attributes(&software) {
        for level in [PAGE, MIB2, GIB1] {
            let step = Power::<P>::leaf_step(level);
            for hpa in [0, step, (1 << 57) - step].map(Hpa::new) {
                let encoded = Power::<P>::leaf(&ALL, level, hpa, attributes);
                assert_eq!(encoded.is_ok(), expressible(attributes));
                if let Ok(raw) = encoded {
                    agrees(raw, hpa, attributes);
                }
            }
        }
    }
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    leaves_agree::<Page4K>();
    leaves_agree::<Page64K>();
}

#[test]
fn well_known_values() {
    let leaf = |level, hpa, permissions, memory| {
        let attributes = Attributes::new(permissions, memory);
        Power4K::leaf(&ALL, level, Hpa::new(hpa), attributes).unwrap()
    };
    let ram = MemoryType::WriteBack;
    assert_eq!(
        leaf(PAGE, 0x8000_0000, Permissions::ALL, ram),
        0xc000_0000_8000_0107
    );
    assert_eq!(
        leaf(MIB2, 0x8020_0000, Permissions::READ, ram),
        0xc000_0000_8020_0104
    );
    assert_eq!(
        leaf(
            GIB1,
            0x4000_0000,
            Permissions::READ_WRITE,
            MemoryType::Device
        ),
        0xc000_0000_4000_0126
    );
    // NLS: 9 index bits below, but 5 in a table of 64 KiB pages.
    let table = Hpa::new(0x4_2000_1000);
    assert_eq!(Power4K::table(&ALL, GIB1, table), 0x8000_0004_2000_1009);
    assert_eq!(Power4K::table(&ALL, MIB2, table), 0x8000_0004_2000_1009);
    assert_eq!(Power64K::table(&ALL, MIB2, table), 0x8000_0004_2000_1005);
    let small = Hpa::new(0x4_2000_1100);
    assert_eq!(Power64K::table(&ALL, MIB2, small), 0x8000_0004_2000_1105);
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let leaf = |features, level, hpa, attributes| {
        Power64K::leaf(&features, level, Hpa::new(hpa), attributes)
    };
    let all = ram(Permissions::ALL);
    assert_eq!(leaf(ALL, GIB512, 0, all), Err(EncodeError::NoLeaf(GIB512)));
    let (hpa, level) = (Hpa::new(0x1000), PAGE);
    let unaligned = EncodeError::Unaligned { hpa, level };
    assert_eq!(leaf(ALL, PAGE, 0x1000, all), Err(unaligned));
    for (real_address_bits, bits) in [(51, 51), (60, 57)] {
        let features = PowerFeatures { real_address_bits };
        let hpa = Hpa::new(1 << bits);
        let error = EncodeError::AddressWidth { hpa, bits };
        assert_eq!(leaf(features, PAGE, hpa.raw(), all), Err(error));
    }
    let only_write = Permissions {
        read: false,
        ..Permissions::READ_WRITE
    };
    let kernel = Permissions {
        execute: Execute::Privileged,
        ..Permissions::ALL
    };
    for (attributes, error) in [
        (ram(only_write), EncodeError::Permissions(only_write)),
        (ram(kernel), EncodeError::Permissions(kernel)),
        (
            Attributes {
                dirty: true,
                ..ram(Permissions::READ)
            },
            EncodeError::Dirty,
        ),
        (
            Attributes {
                software: 16,
                ..all
            },
            EncodeError::Software(16),
        ),
        (
            Attributes {
                contiguous: true,
                ..all
            },
            EncodeError::Contiguous(PAGE),
        ),
        (
            Attributes::new(Permissions::ALL, MemoryType::Device),
            EncodeError::ExecutableDevice(MemoryType::Device),
        ),
        (
            Attributes::new(Permissions::READ, MemoryType::WriteThrough),
            EncodeError::MemoryType(MemoryType::WriteThrough),
        ),
    ] {
        assert_eq!(leaf(ALL, PAGE, 0, attributes), Err(error));
    }
}

#[test]
fn an_entry_that_maps_nothing_is_zero() {
    for level in [PAGE, MIB2, GIB1, GIB512] {
        assert_eq!(Power4K::empty(level), 0);
    }
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let leaf = |level| {
        let hpa = Hpa::new(0x8000_0000);
        Power4K::leaf(&ALL, level, hpa, ram(Permissions::ALL)).unwrap()
    };
    let table = |level| Power4K::table(&ALL, level, Hpa::new(0x4000));
    for (what, level, foreign) in [
        (
            "a reserved bit above the address",
            PAGE,
            leaf(PAGE) | 1 << 57,
        ),
        ("a key", PAGE, leaf(PAGE) | 1 << 60),
        ("the reserved bit below C", PAGE, leaf(PAGE) | 1 << 6),
        ("strong access order", PAGE, leaf(PAGE) | 1 << 4),
        ("privileged", PAGE, leaf(PAGE) | 1 << 3),
        ("write without read", PAGE, leaf(PAGE) & !(1 << 2)),
        (
            "changed, but not writable",
            PAGE,
            leaf(PAGE) & !(1 << 1) | 1 << 7,
        ),
        ("an unaligned block", MIB2, leaf(MIB2) | 1 << 20),
        ("a block of 512 GiB", GIB512, leaf(GIB1)),
        ("a pointer among pages", PAGE, table(MIB2)),
        ("a table of another size", GIB1, table(GIB1) - 4),
        ("a pointer's reserved bit", MIB2, table(MIB2) | 1 << 5),
        (
            "a pointer's upper reserved bit",
            MIB2,
            table(MIB2) | 1 << 60,
        ),
    ] {
        let entry = Power4K::decode(&ALL, level, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
    let small = PowerFeatures {
        real_address_bits: 32,
    };
    let beyond = leaf(PAGE) | 1 << 32;
    assert_eq!(
        Power4K::decode(&small, PAGE, beyond),
        Entry::Foreign(beyond)
    );
}

#[test]
fn the_tree_has_one_shape_for_each_page_size() {
    for bits in [31, 32, 40, 52] {
        let small = Power4K::geometry(&ALL, bits).unwrap();
        let large = Power64K::geometry(&ALL, bits).unwrap();
        for (geometry, pages) in [(small, (12, 9, 4096)), (large, (16, 5, 256))] {
            assert_eq!(geometry.root(), GIB512);
            let shapes: Vec<(u8, u8, u32)> = [PAGE, MIB2, GIB1, GIB512]
                .map(|level| *geometry.shape(level))
                .iter()
                .map(|shape| (shape.shift, shape.index_bits, shape.table_bytes))
                .collect();
            assert_eq!(
                shapes,
                [pages, (21, 9, 4096), (30, 9, 4096), (39, 13, 65536)]
            );
        }
    }
    for bits in [0, 30, 53, 255] {
        let error = Power64K::geometry(&ALL, bits).unwrap_err();
        assert_eq!((error.bits, error.lowest, error.highest), (bits, 31, 52));
    }
}

#[test]
fn the_partition_table_entry_names_size_place_and_width_of_the_root() {
    let geometry = Power4K::geometry(&ALL, 52).unwrap();
    let root = Power4K::root(&ALL, &geometry, Hpa::new(0x4_2001_0000), 0x123);
    let [first, second] = root.entry;
    assert_eq!((root.lpid, second), (0x123, 0));
    assert_eq!(field(first, 0, 0), 1, "host radix");
    let size = field(first, 1, 2) << 3 | field(first, 56, 58);
    assert_eq!(31 + size, 52, "RTS");
    assert_eq!(field(first, 3, 3), 0, "reserved");
    assert_eq!(field(first, 4, 55) << 8, 0x4_2001_0000, "RPDB");
    assert_eq!(field(first, 59, 63), 13, "RPDS");
    assert_eq!(first, 0xc000_0004_2001_00ad);
}

#[test]
fn hardware_keeps_accessed_and_dirty_bits() {
    let rules = Power4K::rules(&ALL);
    assert!(rules.hardware_accessed && rules.hardware_dirty);
    assert!(!rules.caches_invalid && rules.break_before_make);
}

#[test]
fn what_holds_whatever_the_guest_asks_for() {
    assert!(Power4K::forces(&ALL, MemoryType::Device));
    assert!(Power4K::forces(&ALL, MemoryType::NonCacheable));
    for memory in [
        MemoryType::WriteBack,
        MemoryType::WriteThrough,
        MemoryType::DeviceStrict,
    ] {
        assert!(!Power4K::forces(&ALL, memory));
    }
}
