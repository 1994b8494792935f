//! Armv7 LPAE stage 2: every bit against the Arm Architecture Reference Manual (DDI 0406, B3.6 to
//! B3.8, B4.1).

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::armv7::{Armv7, Armv7Features, Armv7Root};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

const FEATURES: Armv7Features = Armv7Features::ALL;
const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const GIB1: Level = Level::new(2);
const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
/// Levels with the bytes that a leaf maps.
const LEVELS: [(Level, u64); 3] = [(PAGE, 1 << 12), (MIB2, 1 << 21), (GIB1, 1 << 30)];

fn leaf(level: Level, hpa: u64, attributes: Attributes) -> Result<u64, EncodeError> {
    Armv7::leaf(&FEATURES, level, Hpa::new(hpa), attributes)
}

#[test]
fn trees_of_all_widths_obey_the_laws() {
    for bits in [32, 34, 35, 39, 40] {
        laws::check::<Armv7>(&FEATURES, bits);
    }
}

/// What the manual's tables make of a leaf: the attributes that it must have come from, and its
/// address.
fn read(level: Level, raw: u64) -> (u64, Attributes) {
    let bits = |low: u32, width: u32| raw >> low & ((1 << width) - 1);
    assert_eq!(bits(0, 1), 1, "valid");
    assert_eq!(bits(1, 1), u64::from(level == PAGE), "1 is a page");
    assert_eq!(bits(8, 2), 0b11, "inner shareable");
    let reserved = [bits(11, 1), bits(40, 12), bits(53, 1), bits(59, 5)];
    assert_eq!(reserved, [0; 4]);
    // Outer, inner: 1 not cacheable, 2 write-through, 3 write-back. Outer 0 is no normal memory.
    let memory = match (bits(4, 2), bits(2, 2)) {
        (0, 0) => MemoryType::DeviceStrict,
        (0, 1) => MemoryType::Device,
        (1, 1) => MemoryType::NonCacheable,
        (2, 2) => MemoryType::WriteThrough,
        (3, 3) => MemoryType::WriteBack,
        other => panic!("{other:?}"),
    };
    let execute = if bits(54, 1) == 0 {
        Execute::Always
    } else {
        Execute::Never
    };
    let permissions = Permissions {
        read: bits(6, 1) != 0,
        write: bits(7, 1) != 0,
        execute,
    };
    let attributes = Attributes {
        permissions,
        memory,
        accessed: bits(10, 1) != 0,
        dirty: false,
        software: u8::try_from(bits(55, 4)).unwrap(),
        contiguous: bits(52, 1) != 0,
    };
    (bits(12, 28) << 12, attributes)
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    for attributes in laws::all_attributes(&[0, 1, 8, 15, 16]) {
        let device = matches!(
            attributes.memory,
            MemoryType::Device | MemoryType::DeviceStrict
        );
        let expressible = match attributes.permissions.execute {
            Execute::Never => true,
            Execute::Always => !device,
            Execute::Privileged | Execute::Unprivileged => false,
        } && !attributes.dirty
            && attributes.software < 16;
        for (level, bytes) in LEVELS {
            for hpa in [0, bytes, (1 << 40) - bytes] {
                let encoded = leaf(level, hpa, attributes);
                assert_eq!(encoded.is_ok(), expressible, "{attributes:?}");
                if let Ok(raw) = encoded {
                    assert_eq!(read(level, raw), (hpa, attributes));
                }
            }
        }
    }
}

#[test]
fn well_known_values() {
    assert_eq!(leaf(PAGE, 0x8000_0000, RAM), Ok(0x8000_07ff));
    assert_eq!(leaf(MIB2, 0xff_8020_0000, RAM), Ok(0xff_8020_07fd));
    assert_eq!(leaf(GIB1, 0xc000_0000, RAM), Ok(0xc000_07fd));
    let uart = Attributes::new(Permissions::READ_WRITE, MemoryType::Device);
    assert_eq!(leaf(PAGE, 0x0900_0000, uart), Ok(0x0040_0000_0900_07c7));
    assert_eq!(
        Armv7::table(&FEATURES, GIB1, Hpa::new(0xf4_2000_1000)),
        0xf4_2000_1003
    );
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let level = Level::new(3);
    assert_eq!(leaf(level, 0, RAM), Err(EncodeError::NoLeaf(level)));
    let hpa = Hpa::new(0x1000);
    let unaligned = EncodeError::Unaligned { hpa, level: MIB2 };
    assert_eq!(leaf(MIB2, 0x1000, RAM), Err(unaligned));
    let hpa = Hpa::new(1 << 40);
    let beyond = EncodeError::AddressWidth { hpa, bits: 40 };
    assert_eq!(leaf(PAGE, 1 << 40, RAM), Err(beyond));
    let dirty = Attributes { dirty: true, ..RAM };
    assert_eq!(leaf(PAGE, 0, dirty), Err(EncodeError::Dirty));
    let software = Attributes {
        software: 16,
        ..RAM
    };
    assert_eq!(leaf(PAGE, 0, software), Err(EncodeError::Software(16)));
    let kernel = Permissions {
        execute: Execute::Privileged,
        ..Permissions::ALL
    };
    let split = Attributes {
        permissions: kernel,
        ..RAM
    };
    assert_eq!(leaf(PAGE, 0, split), Err(EncodeError::Permissions(kernel)));
    let device = Attributes::new(Permissions::ALL, MemoryType::Device);
    let executable = EncodeError::ExecutableDevice(MemoryType::Device);
    assert_eq!(leaf(PAGE, 0, device), Err(executable));
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let page = leaf(PAGE, 0x8000_0000, RAM).unwrap();
    let block = leaf(MIB2, 0x8000_0000, RAM).unwrap();
    for (what, level, foreign) in [
        ("bit 11", PAGE, page | 1 << 11),
        ("an address beyond 40 bits", PAGE, page | 1 << 40),
        (
            "a dirty bit modifier, which came later",
            PAGE,
            page | 1 << 51,
        ),
        ("bit 53, which came later", PAGE, page | 1 << 53),
        ("bit 59", PAGE, page | 1 << 59),
        ("bit 63", PAGE, page | 1 << 63),
        ("not shareable", PAGE, page & !(0b11 << 8)),
        ("a block at the last level", PAGE, page & !0b10),
        ("inner and outer differ", PAGE, page & !(0b01 << 4)),
        ("an unaligned block", MIB2, block | 1 << 13),
        ("a block of 512 GiB", Level::new(3), block),
    ] {
        let found = Armv7::decode(&FEATURES, level, foreign);
        assert_eq!(found, Entry::Foreign(foreign), "{what}");
    }
}

#[test]
fn the_contiguous_hint_moves_the_address_of_leaves_only() {
    let table = Hpa::new(0x8000_1000);
    let raw = Armv7::table(&FEATURES, MIB2, table) | 1 << 52;
    let found = Armv7::decode(&FEATURES, MIB2, raw);
    assert_eq!(found, Entry::Table(table), "ignored in a table pointer");
}

/// Guest address bits, levels, `SL0`, tables side by side at the root, `T0SZ` with its sign.
const SHAPES: [(u8, usize, u32, u32, u32); 9] = [
    (32, 2, 0, 4, 0b0_0000),
    (33, 2, 0, 8, 0b1_1111),
    (34, 2, 0, 16, 0b1_1110),
    (35, 3, 1, 1, 0b1_1101),
    (36, 3, 1, 1, 0b1_1100),
    (37, 3, 1, 1, 0b1_1011),
    (38, 3, 1, 1, 0b1_1010),
    (39, 3, 1, 1, 0b1_1001),
    (40, 3, 1, 2, 0b1_1000),
];

fn root(bits: u8, table: u64) -> Armv7Root {
    let geometry = Armv7::geometry(&FEATURES, bits).unwrap();
    Armv7::root(&FEATURES, &geometry, Hpa::new(table), 0x1234)
}

#[test]
fn start_levels_and_concatenation() {
    for (bits, levels, sl0, tables, t0sz) in SHAPES {
        let geometry = Armv7::geometry(&FEATURES, bits).unwrap();
        let top = geometry.root();
        assert_eq!(top.index() + 1, levels, "{bits} bits");
        assert_eq!(
            geometry.shape(top).table_bytes,
            tables * 4096,
            "{bits} bits"
        );
        assert_eq!(geometry.table_maps(top), 1 << bits);
        for level in geometry.levels_down() {
            let entry = geometry.entry_bytes(level);
            assert_eq!(geometry.run_bytes(level), Some(16 * entry));
        }
        let vtcr = root(bits, 0).vtcr;
        assert_eq!(vtcr & 0b1_1111, t0sz, "{bits} bits");
        assert_eq!(vtcr >> 6 & 0b11, sl0, "{bits} bits");
    }
    for bits in [0, 31, 41, 48, 255] {
        let error = Armv7::geometry(&FEATURES, bits).unwrap_err();
        assert_eq!((error.bits, error.lowest, error.highest), (bits, 32, 40));
    }
}

#[test]
fn root_registers() {
    // RES1, inner shareable, write-back write-allocate walks, SL0 1, T0SZ -8; VMIDs have 8 bits.
    let expected = Armv7Root {
        vttbr: 0x0034_00ff_8000_2000,
        vtcr: 0x8000_3558,
    };
    assert_eq!(root(40, 0xff_8000_2000), expected);
}

#[test]
fn what_holds_whatever_the_guest_asks_for() {
    use MemoryType::{Device, DeviceStrict, NonCacheable, WriteBack, WriteThrough};
    for memory in [WriteBack, WriteThrough] {
        assert!(!Armv7::forces(&FEATURES, memory));
    }
    for memory in [NonCacheable, Device, DeviceStrict] {
        assert!(Armv7::forces(&FEATURES, memory));
    }
}
