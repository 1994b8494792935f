//! `Sv32x4`, entries of 4 bytes: every bit against the Privileged Architecture ("Sv32").

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::riscv::sv32x4::{Sv32x4, Sv32x4Features};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB4: Level = Level::new(1);
const ALL: Sv32x4Features = Sv32x4Features::ALL;
const NONE: Sv32x4Features = Sv32x4Features::NONE;
const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);

#[test]
fn every_leaf_obeys_the_laws() {
    for features in [ALL, NONE] {
        for bits in [12, 32, 34] {
            laws::check::<Sv32x4>(&features, bits);
        }
    }
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software: Vec<u8> = (0..=5).collect();
    for features in [ALL, NONE] {
        for attributes in laws::all_attributes(&software) {
            for (level, bytes) in [(PAGE, 4096), (MIB4, 4 << 20)] {
                for hpa in [0, bytes, (1 << 34) - bytes].map(Hpa::new) {
                    let encoded = Sv32x4::leaf(&features, level, hpa, attributes);
                    assert_eq!(encoded.is_ok(), expressible(features, attributes));
                    if let Ok(raw) = encoded {
                        assert_eq!(raw, expected(features, hpa, attributes));
                    }
                }
            }
        }
    }
}

fn expressible(features: Sv32x4Features, attributes: Attributes) -> bool {
    let Permissions {
        read,
        write,
        execute,
    } = attributes.permissions;
    attributes.memory == MemoryType::WriteBack
        && matches!(execute, Execute::Never | Execute::Always)
        && (read || (!write && execute == Execute::Always))
        && (features.svadu || !attributes.dirty)
        && attributes.software < 4
}

/// The entry, put together from the manual's figure: PPN 31:10, RSW 9:8, D, A, G, U, X, W, R, V.
fn expected(features: Sv32x4Features, hpa: Hpa, attributes: Attributes) -> u64 {
    let Permissions {
        read,
        write,
        execute,
    } = attributes.permissions;
    let dirty = attributes.dirty || (write && !features.svadu);
    let bits = [
        true,
        read,
        write,
        execute == Execute::Always,
        true,
        false,
        attributes.accessed,
        dirty,
    ];
    let flags = bits
        .into_iter()
        .enumerate()
        .map(|(at, set)| u64::from(set) << at)
        .sum::<u64>();
    hpa.raw() / 4096 * 1024 + u64::from(attributes.software) * 256 + flags
}

#[test]
fn well_known_values() {
    assert_eq!(Sv32x4::ENTRY_BYTES, 4);
    let leaf = |level, hpa| Sv32x4::leaf(&NONE, level, Hpa::new(hpa), RAM).unwrap();
    assert_eq!(leaf(PAGE, 0x8000_0000), 0x2000_00df);
    assert_eq!(leaf(MIB4, 0x3_ffc0_0000), 0xfff0_00df);
    let table = Sv32x4::table(&NONE, MIB4, Hpa::new(0x3_ffff_f000));
    assert_eq!(table, 0xffff_fc01);
    assert_eq!(Sv32x4::leaf_step(PAGE), 1 << 10);
    assert_eq!(Sv32x4::leaf_step(MIB4), 1 << 20);
}

#[test]
fn what_four_bytes_cannot_hold_is_refused() {
    let leaf = |level, hpa, attributes| Sv32x4::leaf(&ALL, level, Hpa::new(hpa), attributes);
    let hpa = Hpa::new(1 << 34);
    assert_eq!(
        leaf(PAGE, 1 << 34, RAM),
        Err(EncodeError::AddressWidth { hpa, bits: 34 })
    );
    let memory = MemoryType::Device;
    assert_eq!(
        leaf(PAGE, 0, Attributes { memory, ..RAM }),
        Err(EncodeError::MemoryType(memory))
    );
    let run = Attributes {
        contiguous: true,
        ..RAM
    };
    assert_eq!(leaf(PAGE, 0, run), Err(EncodeError::Contiguous(PAGE)));
    let level = Level::new(2);
    assert_eq!(leaf(level, 0, RAM), Err(EncodeError::NoLeaf(level)));
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let raw = Sv32x4::leaf(&ALL, PAGE, Hpa::new(0x8000_0000), RAM).unwrap();
    let block = Sv32x4::leaf(&ALL, MIB4, Hpa::new(0x8040_0000), RAM).unwrap();
    let pointer = Sv32x4::table(&ALL, MIB4, Hpa::new(0x8000_1000));
    for (what, level, foreign) in [
        ("no user bit", PAGE, raw & !(1 << 4)),
        ("global", PAGE, raw | 1 << 5),
        ("write without read", PAGE, raw & !(1 << 1)),
        ("more than four bytes", PAGE, raw | 1 << 32),
        ("a misaligned megapage", MIB4, block | 1 << 19),
        ("a pointer where there is nothing below", PAGE, pointer),
        ("a pointer with A", MIB4, pointer | 1 << 6),
        ("a leaf too high", Level::new(2), raw),
    ] {
        assert_eq!(
            Sv32x4::decode(&ALL, level, foreign),
            Entry::Foreign(foreign),
            "{what}"
        );
    }
}

#[test]
fn the_tree_has_two_levels_and_a_wide_root() {
    let geometry = Sv32x4::geometry(&ALL, 34).unwrap();
    assert_eq!(geometry.root(), MIB4);
    let pages = geometry.shape(PAGE);
    assert_eq!(
        (pages.shift, pages.index_bits, pages.table_bytes),
        (12, 10, 4096)
    );
    let root = geometry.shape(MIB4);
    assert_eq!(
        (root.shift, root.index_bits, root.table_bytes),
        (22, 12, 16384)
    );
    for bits in [0, 11, 35, 255] {
        let error = Sv32x4::geometry(&ALL, bits).unwrap_err();
        assert_eq!((error.bits, error.lowest, error.highest), (bits, 12, 34));
    }
}

#[test]
fn the_root_register_has_mode_vmid_and_page_number() {
    let geometry = Sv32x4::geometry(&ALL, 34).unwrap();
    let root = |table, vmid| Sv32x4::root(&ALL, &geometry, Hpa::new(table), vmid);
    assert_eq!(root(0x8000_4000, 5), 1 << 31 | 5 << 22 | 0x8_0004);
    assert_eq!(
        root(0x3_ffff_c000, 0xffff),
        0xffff_ffff & !(0b11 << 29) & !0b11
    );
    assert!(Sv32x4::rules(&NONE).caches_invalid && !Sv32x4::rules(&ALL).caches_invalid);
    assert!(Sv32x4::rules(&ALL).hardware_dirty && !Sv32x4::rules(&NONE).hardware_dirty);
    assert!(Sv32x4::forces(&ALL, MemoryType::WriteBack));
}
