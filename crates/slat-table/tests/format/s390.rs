//! s390 DAT tables: every bit against the z/Architecture Principles of Operation.
//!
//! The fields here are written from the manual's figures (SA22-7832, chapter 3, "Translation
//! Tables"), in its own numbering, bit 0 being the most significant, and share nothing with the
//! crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::s390::{S390, S390Features};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const SEGMENT: Level = Level::new(1);
const REGION_3: Level = Level::new(2);
const REGION_2: Level = Level::new(3);
const REGION_1: Level = Level::new(4);
const ALL: S390Features = S390Features::ALL;
const NONE: S390Features = S390Features::NONE;

fn all_features() -> Vec<S390Features> {
    (0..8u8)
        .map(|bits| S390Features {
            enhanced_dat_1: bits & 1 != 0,
            enhanced_dat_2: bits & 2 != 0,
            instruction_execution_protection: bits & 4 != 0,
        })
        .collect()
}

fn ram(permissions: Permissions) -> Attributes {
    Attributes::new(permissions, MemoryType::WriteBack)
}

/// The bits from `first` to `last` in the manual's numbering.
fn field(raw: u64, first: u32, last: u32) -> u64 {
    raw << first >> (63 - (last - first))
}

#[test]
fn every_leaf_obeys_the_laws() {
    for features in all_features() {
        laws::check::<S390>(&features, 63);
    }
    for bits in [31, 42, 53] {
        laws::check::<S390>(&NONE, bits);
    }
}

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(level: Level, raw: u64, hpa: Hpa, attributes: Attributes) {
    let Permissions { write, execute, .. } = attributes.permissions;
    assert_eq!(field(raw, 54, 54), u64::from(!write), "DAT protection");
    assert_eq!(
        field(raw, 55, 55),
        u64::from(execute == Execute::Never),
        "IEP"
    );
    let software = u64::from(attributes.software);
    let invalid = u64::from(!attributes.accessed);
    if level == PAGE {
        assert_eq!(
            field(raw, 0, 51) << 12,
            hpa.raw(),
            "page-frame real address"
        );
        assert_eq!(field(raw, 52, 52), 0, "must be zero");
        assert_eq!(field(raw, 53, 53), invalid, "page invalid");
        // Bits 56 to 63 are for programs.
        assert_eq!(field(raw, 56, 58), software);
        assert_eq!(field(raw, 59, 63), 0b10001);
        return;
    }
    let frame_end = if level == SEGMENT { 43 } else { 32 };
    let frame = field(raw, 0, frame_end) << (63 - frame_end);
    assert_eq!(frame, hpa.raw(), "frame absolute address");
    assert_eq!(field(raw, frame_end + 1, 46), 0, "reserved");
    assert_eq!(field(raw, 47, 47), 0, "access control is not valid");
    assert_eq!(
        field(raw, 48, 52),
        software << 1,
        "so these are for programs"
    );
    assert_eq!(field(raw, 53, 53), 1, "format control");
    assert_eq!(field(raw, 56, 57), 0);
    assert_eq!(field(raw, 58, 58), invalid, "segment or region invalid");
    assert_eq!(field(raw, 59, 59), 0, "common segment or region");
    assert_eq!(field(raw, 60, 61), level.index() as u64 - 1, "table type");
    assert_eq!(field(raw, 62, 63), 0b01);
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(features: S390Features, attributes: Attributes) -> bool {
    let never = attributes.permissions.execute == Execute::Never;
    let always = attributes.permissions.execute == Execute::Always;
    attributes.permissions.read
        && (always || never && features.instruction_execution_protection)
        && attributes.memory == MemoryType::WriteBack
        && !attributes.dirty
        && attributes.software < 8
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software: Vec<u8> = (0..=17).collect();
    for features in all_features() {
        for attributes in laws::all_attributes(&software) {
            for (level, there) in [
                (PAGE, true),
                (SEGMENT, features.enhanced_dat_1),
                (REGION_3, features.enhanced_dat_2),
            ] {
                let step = S390::leaf_step(level);
                for hpa in [0, step, 0_u64.wrapping_sub(step)].map(Hpa::new) {
                    let encoded = S390::leaf(&features, level, hpa, attributes);
                    let expected = there && expressible(features, attributes);
                    assert_eq!(encoded.is_ok(), expected);
                    if let Ok(raw) = encoded {
                        agrees(level, raw, hpa, attributes);
                    }
                }
            }
        }
    }
}

#[test]
fn well_known_values() {
    let leaf =
        |level, hpa, permissions| S390::leaf(&ALL, level, Hpa::new(hpa), ram(permissions)).unwrap();
    assert_eq!(leaf(PAGE, 0x8000_0000, Permissions::ALL), 0x8000_0011);
    assert_eq!(leaf(PAGE, 0x8000_1000, Permissions::READ), 0x8000_1311);
    assert_eq!(leaf(SEGMENT, 0x8010_0000, Permissions::ALL), 0x8010_0401);
    assert_eq!(leaf(REGION_3, 0x8000_0000, Permissions::ALL), 0x8000_0405);
    assert_eq!(leaf(REGION_3, 0x8000_0000, Permissions::READ), 0x8000_0705);
    let old = Attributes {
        accessed: false,
        ..ram(Permissions::ALL)
    };
    assert_eq!(S390::leaf(&ALL, PAGE, Hpa::new(0x5000), old), Ok(0x5411));
    let old = S390::leaf(&ALL, SEGMENT, Hpa::new(0), old);
    assert_eq!(old, Ok(0x421));
    let tables = [SEGMENT, REGION_3, REGION_2, REGION_1]
        .map(|level| S390::table(&ALL, level, Hpa::new(0x4_2000_4000)));
    assert_eq!(
        tables,
        [0x4_2000_4000, 0x4_2000_4007, 0x4_2000_400b, 0x4_2000_400f]
    );
    let empty = [PAGE, SEGMENT, REGION_3, REGION_2, REGION_1].map(S390::empty);
    assert_eq!(empty, [0x410, 0x20, 0x24, 0x28, 0x2c]);
}

#[test]
fn a_leaf_that_was_not_used_is_invalid_but_not_empty() {
    let unused = Attributes {
        accessed: false,
        ..ram(Permissions::ALL)
    };
    for (level, invalid) in [(PAGE, 0x400), (SEGMENT, 0x20), (REGION_3, 0x20)] {
        let hpa = Hpa::new(0x8000_0000);
        let young = S390::leaf(&ALL, level, hpa, ram(Permissions::ALL)).unwrap();
        let old = S390::leaf(&ALL, level, hpa, unused).unwrap();
        assert_eq!(old, young | invalid);
        assert!(!S390::is_empty(level, old));
        let expected = Entry::Leaf {
            hpa,
            attributes: unused,
        };
        assert_eq!(S390::decode(&ALL, level, old), expected);
    }
}

#[test]
fn every_entry_tells_by_its_value_which_kind_of_table_it_lies_in() {
    for attributes in laws::all_attributes(&(0..8).collect::<Vec<u8>>()) {
        for level in [PAGE, SEGMENT, REGION_3] {
            if let Ok(raw) = S390::leaf(&ALL, level, Hpa::new(0), attributes) {
                assert_eq!(field(raw, 59, 59) == 1, level == PAGE);
            }
        }
    }
    for level in [SEGMENT, REGION_3, REGION_2, REGION_1] {
        for raw in [
            S390::empty(level),
            S390::table(&ALL, level, Hpa::new(0x4000)),
        ] {
            assert_eq!(field(raw, 59, 61), level.index() as u64 - 1);
        }
    }
    assert_eq!(field(S390::empty(PAGE), 59, 59), 1);
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let leaf =
        |features, level, hpa, attributes| S390::leaf(&features, level, Hpa::new(hpa), attributes);
    let all = ram(Permissions::ALL);
    for (features, level) in [
        (NONE, SEGMENT),
        (NONE, REGION_3),
        (ALL, REGION_2),
        (ALL, REGION_1),
    ] {
        let error = EncodeError::NoLeaf(level);
        assert_eq!(leaf(features, level, 0, all), Err(error));
    }
    let (hpa, level) = (Hpa::new(0x8000_0000 - 0x10_0000), REGION_3);
    let unaligned = EncodeError::Unaligned { hpa, level };
    assert_eq!(leaf(ALL, level, hpa.raw(), all), Err(unaligned));
    let never = Permissions::READ_WRITE;
    let refused = EncodeError::Permissions(never);
    assert_eq!(leaf(NONE, PAGE, 0, ram(never)), Err(refused));
    assert!(leaf(ALL, PAGE, 0, ram(never)).is_ok());
    for (attributes, error) in [
        (Attributes { dirty: true, ..all }, EncodeError::Dirty),
        (Attributes { software: 8, ..all }, EncodeError::Software(8)),
        (
            Attributes {
                contiguous: true,
                ..all
            },
            EncodeError::Contiguous(PAGE),
        ),
        (
            Attributes {
                memory: MemoryType::Device,
                ..all
            },
            EncodeError::MemoryType(MemoryType::Device),
        ),
    ] {
        assert_eq!(leaf(ALL, PAGE, 0, attributes), Err(error));
    }
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let leaf = |level| {
        let hpa = Hpa::new(0x8000_0000);
        S390::leaf(&ALL, level, hpa, ram(Permissions::ALL)).unwrap()
    };
    let table = |level| S390::table(&ALL, level, Hpa::new(0x4000));
    for (what, level, foreign) in [
        ("zero, which is page 0", PAGE, 0),
        ("a page without our mark", PAGE, leaf(PAGE) & !1),
        ("the bit that must be zero", PAGE, leaf(PAGE) | 1 << 11),
        ("software's other bits", PAGE, leaf(PAGE) | 1 << 1),
        ("access control", SEGMENT, leaf(SEGMENT) | 1 << 16),
        ("fetch protection", SEGMENT, leaf(SEGMENT) | 1 << 11),
        ("a common segment", SEGMENT, leaf(SEGMENT) | 1 << 4),
        ("another table's type", SEGMENT, leaf(SEGMENT) | 1 << 2),
        ("an unaligned segment", SEGMENT, leaf(SEGMENT) | 1 << 19),
        ("an unaligned region", REGION_3, leaf(REGION_3) | 1 << 30),
        ("a region-second leaf", REGION_2, leaf(REGION_3) | 1 << 3),
        ("a protected segment", SEGMENT, table(SEGMENT) | 1 << 9),
        ("a shorter table", REGION_3, table(REGION_3) - 1),
        ("a table offset", REGION_2, table(REGION_2) | 1 << 6),
        ("a table's wrong type", REGION_1, table(REGION_2)),
    ] {
        let entry = S390::decode(&ALL, level, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
    for (level, features) in [(SEGMENT, NONE), (REGION_3, NONE)] {
        let raw = leaf(level);
        assert_eq!(S390::decode(&features, level, raw), Entry::Foreign(raw));
    }
    let never = S390::leaf(&ALL, PAGE, Hpa::new(0), ram(Permissions::READ)).unwrap();
    assert_eq!(S390::decode(&NONE, PAGE, never), Entry::Foreign(never));
}

#[test]
fn a_pointer_that_an_instruction_made_invalid_is_empty() {
    for level in [SEGMENT, REGION_3, REGION_2, REGION_1] {
        let raw = S390::table(&ALL, level, Hpa::new(0x4000)) | 0x20;
        assert_eq!(S390::decode(&ALL, level, raw), Entry::Empty);
    }
}

#[test]
fn only_page_tables_may_begin_between_two_pages() {
    let table = Hpa::new(0x4800);
    let segment = S390::table(&ALL, SEGMENT, table);
    assert_eq!(S390::decode(&ALL, SEGMENT, segment), Entry::Table(table));
    for level in [REGION_3, REGION_2, REGION_1] {
        let raw = S390::table(&ALL, level, Hpa::new(0x4000)) | 0x800;
        assert_eq!(S390::decode(&ALL, level, raw), Entry::Foreign(raw));
    }
}

/// Guest address bits, levels, index bits of the root, and the ASCE's low bits.
const SHAPES: [(u8, usize, u8, u64); 8] = [
    (31, 2, 11, 0b0011),
    (32, 3, 11, 0b0111),
    (40, 3, 11, 0b0111),
    (42, 3, 11, 0b0111),
    (43, 4, 11, 0b1011),
    (53, 4, 11, 0b1011),
    (54, 5, 10, 0b1101),
    (63, 5, 10, 0b1101),
];

#[test]
fn the_root_is_the_lowest_table_that_maps_enough() {
    for (bits, levels, index_bits, low) in SHAPES {
        let geometry = S390::geometry(&NONE, bits).unwrap();
        let root = geometry.root();
        assert_eq!(root.index() + 1, levels, "{bits} bits");
        let shape = geometry.shape(root);
        assert_eq!((shape.index_bits, shape.table_bytes), (index_bits, 16384));
        let asce = S390::root(&NONE, &geometry, Hpa::new(0x1_0000_4000), 7).asce;
        assert_eq!(asce, 0x1_0000_4000 | low, "{bits} bits");
        let pages = geometry.shape(PAGE);
        assert_eq!((pages.shift, pages.index_bits), (12, 8));
        assert_eq!(pages.table_bytes, 4096, "room for PGSTEs");
    }
}

#[test]
fn leaves_larger_than_pages_depend_on_the_facilities() {
    for features in all_features() {
        let geometry = S390::geometry(&features, 63).unwrap();
        let leaves: Vec<bool> = (0..5)
            .map(|number| geometry.shape(Level::new(number)).leaf)
            .collect();
        let expected = [
            true,
            features.enhanced_dat_1,
            features.enhanced_dat_2,
            false,
            false,
        ];
        assert_eq!(leaves, expected);
    }
}

#[test]
fn widths_that_cannot_be_done() {
    for bits in [0, 30, 64, 255] {
        let error = S390::geometry(&ALL, bits).unwrap_err();
        assert_eq!((error.bits, error.lowest, error.highest), (bits, 31, 63));
    }
}

#[test]
fn nothing_but_write_back_can_be_asked_for() {
    assert!(S390::forces(&ALL, MemoryType::WriteBack));
    assert!(!S390::forces(&ALL, MemoryType::Device));
    let rules = S390::rules(&ALL);
    assert!(!rules.hardware_accessed && !rules.hardware_dirty && !rules.caches_invalid);
}
