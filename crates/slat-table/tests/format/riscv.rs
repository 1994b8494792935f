//! RISC-V G-stage, entries of 8 bytes: every bit against the Privileged Architecture.
//!
//! The decoder here is written from the manual's figures and tables ("Sv39", "Svpbmt", "Svnapot",
//! "hgatp") and shares nothing with the crate's.

#[path = "riscv/sv32x4.rs"]
mod sv32x4;

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::riscv::{RiscV, RiscVFeatures};
use slat_table::format::{EncodeError, Entry, FlushKind, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const TIB256: Level = Level::new(4);
const NONE: RiscVFeatures = RiscVFeatures::NONE;
const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);

/// Every combination of the features that change how an entry looks, with every mode.
fn all_features() -> Vec<RiscVFeatures> {
    (0..8u8)
        .map(|bits| RiscVFeatures {
            svpbmt: bits & 1 != 0,
            svnapot: bits & 2 != 0,
            svadu: bits & 4 != 0,
            ..RiscVFeatures::ALL
        })
        .collect()
}

#[test]
fn every_leaf_obeys_the_laws() {
    for features in all_features() {
        laws::check::<RiscV>(&features, 59);
    }
}

#[test]
fn smaller_trees_obey_the_laws() {
    for bits in [12, 30, 41, 42, 50, 51] {
        laws::check::<RiscV>(&RiscVFeatures::ALL, bits);
    }
    laws::check::<RiscV>(&NONE, 41);
}

/// Fields of an entry: name, lowest bit, width.
const FIELDS: [(&str, u32, u32); 13] = [
    ("V", 0, 1),
    ("R", 1, 1),
    ("W", 2, 1),
    ("X", 3, 1),
    ("U", 4, 1),
    ("G", 5, 1),
    ("A", 6, 1),
    ("D", 7, 1),
    ("RSW", 8, 2),
    ("PPN", 10, 44),
    ("reserved", 54, 7),
    ("PBMT", 61, 2),
    ("N", 63, 1),
];

fn field(raw: u64, name: &str) -> u64 {
    let (_, low, width) = FIELDS
        .into_iter()
        .find(|(known, ..)| *known == name)
        .expect("a known field");
    raw >> low & ((1 << width) - 1)
}

const MEMORY_TYPES: [(u64, MemoryType); 3] = [
    (0, MemoryType::WriteBack),
    (1, MemoryType::NonCacheable),
    (2, MemoryType::Device),
];

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(features: RiscVFeatures, raw: u64, hpa: Hpa, attributes: Attributes) {
    let Attributes {
        permissions,
        memory,
        accessed,
        dirty,
        software,
        contiguous,
    } = attributes;
    assert_eq!((field(raw, "V"), field(raw, "U")), (1, 1));
    assert_eq!((field(raw, "G"), field(raw, "reserved")), (0, 0));
    assert_eq!(field(raw, "R") != 0, permissions.read);
    assert_eq!(field(raw, "W") != 0, permissions.write);
    assert_eq!(field(raw, "X") != 0, permissions.execute == Execute::Always);
    assert_eq!(field(raw, "A") != 0, accessed);
    let writes_at_once = permissions.write && !features.svadu;
    assert_eq!(field(raw, "D") != 0, dirty || writes_at_once);
    assert_eq!(field(raw, "RSW"), u64::from(software));
    assert!(MEMORY_TYPES.contains(&(field(raw, "PBMT"), memory)));
    assert_eq!(field(raw, "N") != 0, contiguous);
    let page = hpa.raw() >> 12;
    let expected = if contiguous { page & !0xf | 0x8 } else { page };
    assert_eq!(field(raw, "PPN"), expected);
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(features: RiscVFeatures, level: Level, attributes: Attributes) -> bool {
    let Permissions {
        read,
        write,
        execute,
    } = attributes.permissions;
    let known = match attributes.memory {
        MemoryType::WriteBack => true,
        MemoryType::NonCacheable | MemoryType::Device => features.svpbmt,
        _ => false,
    };
    let split = !matches!(execute, Execute::Never | Execute::Always);
    known
        && !split
        && (read || (!write && execute == Execute::Always))
        && (features.svadu || !attributes.dirty)
        && (!attributes.contiguous || (features.svnapot && level == PAGE))
        && attributes.software < 4
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software: Vec<u8> = (0..=5).collect();
    for features in all_features() {
        for mut attributes in laws::all_attributes(&software) {
            for contiguous in [false, true] {
                attributes.contiguous = contiguous;
                for level in (0..5).map(Level::new) {
                    let bytes = RiscV::leaf_step(level) << 2;
                    for hpa in [0, bytes, (1 << 56) - bytes].map(Hpa::new) {
                        let encoded = RiscV::leaf(&features, level, hpa, attributes);
                        assert_eq!(encoded.is_ok(), expressible(features, level, attributes));
                        if let Ok(raw) = encoded {
                            agrees(features, raw, hpa, attributes);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_entries_of_a_run_are_equal_and_decode_to_its_first_page() {
    let features = RiscVFeatures::ALL;
    let run = Attributes {
        contiguous: true,
        ..RAM
    };
    let leaf = |hpa| RiscV::leaf(&features, PAGE, Hpa::new(hpa), run).unwrap();
    let first = leaf(0x8001_0000);
    for page in 0..16 {
        assert_eq!(leaf(0x8001_0000 + page * 0x1000), first);
    }
    assert_eq!(RiscV::run_step(PAGE), 0);
    assert_eq!(leaf(0x8002_0000), first + (RiscV::leaf_step(PAGE) << 4));
    let hpa = Hpa::new(0x8001_0000);
    assert_eq!(RiscV::address(&features, PAGE, first), hpa);
    let entry = Entry::Leaf {
        hpa,
        attributes: run,
    };
    assert_eq!(RiscV::decode(&features, PAGE, first), entry);
    assert!(!RiscV::is_table(PAGE, first) && !RiscV::is_empty(PAGE, first));
}

#[test]
fn only_pages_come_in_runs_and_only_with_svnapot() {
    for (features, run_bits) in [(RiscVFeatures::ALL, 4), (NONE, 0)] {
        let geometry = RiscV::geometry(&features, 41).unwrap();
        assert_eq!(geometry.shape(PAGE).run_bits, run_bits);
        assert_eq!(geometry.shape(MIB2).run_bits, 0);
    }
}

#[test]
fn well_known_values() {
    let leaf = |features: RiscVFeatures, level, hpa, attributes| {
        RiscV::leaf(&features, level, Hpa::new(hpa), attributes).unwrap()
    };
    // V R W X U A D: page number 0x80000 from bit 10.
    assert_eq!(leaf(NONE, PAGE, 0x8000_0000, RAM), 0x2000_00df);
    // D is the hardware's to set.
    let all = RiscVFeatures::ALL;
    assert_eq!(leaf(all, MIB2, 0x8020_0000, RAM), 0x2008_005f);
    let read_only = Attributes::new(Permissions::READ, MemoryType::WriteBack);
    assert_eq!(leaf(NONE, PAGE, 0x8000_0000, read_only), 0x2000_0053);
    let device = Attributes::new(Permissions::READ_WRITE, MemoryType::Device);
    assert_eq!(leaf(all, PAGE, 0x1000_0000, device), 0x4000_0000_0400_0057);
    let run = Attributes {
        contiguous: true,
        ..RAM
    };
    assert_eq!(leaf(all, PAGE, 0x8000_0000, run), 0x8000_0000_2000_205f);
    let table = RiscV::table(&NONE, MIB2, Hpa::new(0x8000_1000));
    assert_eq!(table, 0x2000_0401);
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let leaf = |level, hpa, attributes| RiscV::leaf(&NONE, level, Hpa::new(hpa), attributes);
    let level = Level::new(5);
    assert_eq!(leaf(level, 0, RAM), Err(EncodeError::NoLeaf(level)));
    let hpa = Hpa::new(0x1000);
    assert_eq!(
        leaf(MIB2, 0x1000, RAM),
        Err(EncodeError::Unaligned { hpa, level: MIB2 })
    );
    let hpa = Hpa::new(1 << 56);
    assert_eq!(
        leaf(PAGE, 1 << 56, RAM),
        Err(EncodeError::AddressWidth { hpa, bits: 56 })
    );
    let write_only = Permissions {
        read: false,
        write: true,
        execute: Execute::Never,
    };
    for permissions in [
        write_only,
        Permissions {
            execute: Execute::Always,
            ..write_only
        },
        Permissions {
            write: false,
            ..write_only
        },
        Permissions {
            execute: Execute::Privileged,
            ..Permissions::ALL
        },
    ] {
        let attributes = Attributes::new(permissions, MemoryType::WriteBack);
        assert_eq!(
            leaf(PAGE, 0, attributes),
            Err(EncodeError::Permissions(permissions))
        );
    }
    for memory in [MemoryType::Device, MemoryType::DeviceStrict] {
        assert_eq!(
            leaf(PAGE, 0, Attributes { memory, ..RAM }),
            Err(EncodeError::MemoryType(memory))
        );
    }
    let dirty = Attributes { dirty: true, ..RAM };
    assert_eq!(leaf(PAGE, 0, dirty), Err(EncodeError::Dirty));
    let software = Attributes { software: 4, ..RAM };
    assert_eq!(leaf(PAGE, 0, software), Err(EncodeError::Software(4)));
    let run = Attributes {
        contiguous: true,
        ..RAM
    };
    assert_eq!(leaf(PAGE, 0, run), Err(EncodeError::Contiguous(PAGE)));
    assert_eq!(
        RiscV::leaf(&RiscVFeatures::ALL, MIB2, Hpa::new(0), run),
        Err(EncodeError::Contiguous(MIB2))
    );
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let all = RiscVFeatures::ALL;
    let raw = RiscV::leaf(&all, PAGE, Hpa::new(0x8000_0000), RAM).unwrap();
    let block = RiscV::leaf(&all, MIB2, Hpa::new(0x8020_0000), RAM).unwrap();
    let pointer = RiscV::table(&all, MIB2, Hpa::new(0x8000_1000));
    for (what, level, foreign) in [
        ("no user bit", PAGE, raw & !(1 << 4)),
        ("global", PAGE, raw | 1 << 5),
        ("write without read", PAGE, raw & !(1 << 1)),
        ("reserved bit 54", PAGE, raw | 1 << 54),
        ("reserved bit 60", PAGE, raw | 1 << 60),
        ("reserved memory type 3", PAGE, raw | 3 << 61),
        ("a run without a size", PAGE, raw | 1 << 63),
        ("a run of two pages", PAGE, raw | 1 << 63 | 1 << 10),
        ("a run of 128 KiB", PAGE, raw | 1 << 63 | 0x10 << 10),
        ("a run of blocks", MIB2, block | 1 << 63),
        ("a misaligned block", MIB2, block | 1 << 10),
        ("a pointer to nowhere further down", PAGE, pointer),
        ("a pointer with U", MIB2, pointer | 1 << 4),
        ("a pointer with A", MIB2, pointer | 1 << 6),
        ("a pointer with D", MIB2, pointer | 1 << 7),
        ("a pointer with a memory type", MIB2, pointer | 1 << 61),
        ("a pointer with N", MIB2, pointer | 1 << 63),
        ("a leaf too high", Level::new(5), raw),
    ] {
        assert_eq!(
            RiscV::decode(&all, level, foreign),
            Entry::Foreign(foreign),
            "{what}"
        );
    }
    let plain = RiscV::leaf(&NONE, PAGE, Hpa::new(0x8000_0000), RAM).unwrap();
    for (what, foreign) in [
        ("a memory type without Svpbmt", plain | 1 << 61),
        ("a run without Svnapot", plain | 1 << 63 | 1 << 13),
        ("writable but not at once", plain & !(1 << 7)),
        ("dirty but not writable", plain & !(1 << 2)),
    ] {
        assert_eq!(
            RiscV::decode(&NONE, PAGE, foreign),
            Entry::Foreign(foreign),
            "{what}"
        );
    }
}

#[test]
fn a_mode_for_every_width() {
    let all = RiscVFeatures::ALL;
    // Guest address bits, levels, MODE.
    for (bits, levels, mode) in [
        (12, 3, 8),
        (40, 3, 8),
        (41, 3, 8),
        (42, 4, 9),
        (50, 4, 9),
        (51, 5, 10),
        (59, 5, 10),
    ] {
        let geometry = RiscV::geometry(&all, bits).unwrap();
        let root = geometry.root();
        assert_eq!(root.index() + 1, levels, "{bits} bits");
        assert_eq!(geometry.address_bits(), bits);
        let shape = geometry.shape(root);
        assert_eq!((shape.index_bits, shape.table_bytes), (11, 16384));
        for level in geometry.levels_below_root() {
            let shape = geometry.shape(level);
            assert_eq!((shape.index_bits, shape.table_bytes), (9, 4096));
        }
        let leaves: Vec<u64> = geometry
            .leaf_levels()
            .map(|level| geometry.entry_bytes(level))
            .collect();
        let sizes = [1 << 48, 1 << 39, 1 << 30, 1 << 21, 1 << 12];
        assert_eq!(leaves, sizes[5 - levels..]);
        let hgatp = RiscV::root(&all, &geometry, Hpa::new(0x8000_4000), 0x1234);
        assert_eq!(hgatp, mode << 60 | 0x1234 << 44 | 0x8_0004);
    }
}

#[test]
fn a_mode_that_the_hart_does_not_have_is_not_used() {
    let only_wide = RiscVFeatures {
        sv39x4: false,
        sv48x4: false,
        ..RiscVFeatures::ALL
    };
    let geometry = RiscV::geometry(&only_wide, 41).unwrap();
    assert_eq!(geometry.root(), TIB256);
    let error = RiscV::geometry(&NONE, 42).unwrap_err();
    assert_eq!((error.lowest, error.highest), (12, 41));
    let no_mode = RiscVFeatures {
        sv57x4: false,
        ..only_wide
    };
    assert_eq!(RiscV::geometry(&no_mode, 41).unwrap_err().highest, 0);
    for bits in [0, 11, 60, 255] {
        let error = RiscV::geometry(&RiscVFeatures::ALL, bits).unwrap_err();
        assert_eq!((error.bits, error.highest), (bits, 59));
    }
}

#[test]
fn a_vmid_stays_in_its_field() {
    let geometry = RiscV::geometry(&NONE, 41).unwrap();
    let hgatp = RiscV::root(&NONE, &geometry, Hpa::new(0x00ff_ffff_ffff_c000), 0xffff);
    assert_eq!(hgatp, 8 << 60 | 0x3fff << 44 | 0xfff_ffff_fffc);
}

#[test]
fn rules_follow_the_extensions() {
    let none = RiscV::rules(&NONE);
    assert_eq!(none.flush, FlushKind::Ipi);
    assert!(none.caches_invalid && !none.break_before_make);
    assert!(!none.hardware_accessed && !none.hardware_dirty);
    let all = RiscV::rules(&RiscVFeatures::ALL);
    assert!(!all.caches_invalid && all.hardware_accessed && all.hardware_dirty);
}

#[test]
fn a_guest_with_memory_types_of_its_own_may_bypass_caches() {
    let guest = RiscVFeatures {
        guest_svpbmt: true,
        ..RiscVFeatures::ALL
    };
    assert!(RiscV::forces(&RiscVFeatures::ALL, MemoryType::WriteBack));
    assert!(!RiscV::forces(&guest, MemoryType::WriteBack));
    assert!(RiscV::forces(&guest, MemoryType::NonCacheable));
    assert!(RiscV::forces(&guest, MemoryType::Device));
}
