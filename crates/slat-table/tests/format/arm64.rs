//! Arm stage 2, 4 KiB granule: every bit against the Arm Architecture Reference Manual.
//!
//! The decoder here is written from the manual's field tables (DDI 0487, D8.3 and D8.6) and
//! shares nothing with the crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const GIB1: Level = Level::new(2);

fn plain() -> Arm64Features {
    Arm64Features {
        physical_bits: 48,
        force_write_back: false,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    }
}

/// Every combination of the features that change how an entry looks.
fn all_features() -> Vec<Arm64Features> {
    (0..16u8)
        .map(|bits| Arm64Features {
            force_write_back: bits & 1 != 0,
            execute_never_extended: bits & 2 != 0,
            hardware_accessed: bits & 4 != 0,
            hardware_dirty: bits & 8 != 0,
            ..plain()
        })
        .collect()
}

#[test]
fn every_leaf_obeys_the_laws() {
    for features in all_features() {
        laws::check::<Arm64>(&features, 48);
    }
}

#[test]
fn smaller_trees_obey_the_laws() {
    for bits in [32, 34, 39, 40] {
        laws::check::<Arm64>(&plain(), bits);
    }
}

/// A field of a stage-2 descriptor: lowest bit and width.
struct Field(u32, u32);

const ATTRIBUTE_FIELDS: [(&str, Field); 13] = [
    ("valid", Field(0, 1)),
    ("type", Field(1, 1)),
    ("MemAttr", Field(2, 4)),
    ("S2AP", Field(6, 2)),
    ("SH", Field(8, 2)),
    ("AF", Field(10, 1)),
    ("FnXS", Field(11, 1)),
    ("OA", Field(12, 36)),
    ("RES0", Field(48, 3)),
    ("DBM", Field(51, 1)),
    ("Contiguous", Field(52, 1)),
    ("XN", Field(53, 2)),
    ("software", Field(55, 4)),
];

fn field(raw: u64, name: &str) -> u64 {
    let (_, Field(low, width)) = ATTRIBUTE_FIELDS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a known field");
    raw >> low & ((1 << width) - 1)
}

/// `MemAttr` with and without `FEAT_S2FWB`, from the manual's tables D8.6.5 and D8.6.6.
const MEMORY_ATTRIBUTES: [(bool, u64, MemoryType); 9] = [
    (false, 0b0000, MemoryType::DeviceStrict),
    (false, 0b0001, MemoryType::Device),
    (false, 0b0101, MemoryType::NonCacheable),
    (false, 0b1010, MemoryType::WriteThrough),
    (false, 0b1111, MemoryType::WriteBack),
    (true, 0b0000, MemoryType::DeviceStrict),
    (true, 0b0001, MemoryType::Device),
    (true, 0b0101, MemoryType::NonCacheable),
    (true, 0b0110, MemoryType::WriteBack),
];

/// `XN[1:0]`: whether EL1 and EL0 may execute.
const EXECUTE_NEVER: [(u64, bool, bool); 4] = [
    (0b00, true, true),
    (0b01, false, true),
    (0b10, false, false),
    (0b11, true, false),
];

fn who_executes(execute: Execute) -> (bool, bool) {
    match execute {
        Execute::Never => (false, false),
        Execute::Privileged => (true, false),
        Execute::Unprivileged => (false, true),
        Execute::Always => (true, true),
    }
}

/// Whether the hardware keeps dirty bits: `HD` counts only together with `HA`.
fn keeps_dirty(features: Arm64Features) -> bool {
    features.hardware_accessed && features.hardware_dirty
}

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(features: Arm64Features, level: Level, raw: u64, hpa: Hpa, attributes: Attributes) {
    assert_eq!(field(raw, "valid"), 1);
    assert_eq!(
        field(raw, "type"),
        u64::from(level == PAGE),
        "1 is a page, 0 a block"
    );
    let memory = MEMORY_ATTRIBUTES
        .iter()
        .find(|(fwb, bits, _)| *fwb == features.force_write_back && *bits == field(raw, "MemAttr"))
        .map(|(_, _, memory)| *memory);
    assert_eq!(memory, Some(attributes.memory));
    assert_eq!(field(raw, "S2AP") & 1 != 0, attributes.permissions.read);
    let (writes, modifier) = (field(raw, "S2AP") & 2 != 0, field(raw, "DBM") != 0);
    if keeps_dirty(features) {
        // D8.5.2: with DBM set, write permission taken away means clean, not read-only.
        assert_eq!(modifier, attributes.permissions.write);
        assert_eq!(writes, attributes.dirty);
    } else {
        assert!(!modifier && !attributes.dirty);
        assert_eq!(writes, attributes.permissions.write);
    }
    assert_eq!(field(raw, "SH"), 0b11, "inner shareable");
    assert_eq!(field(raw, "AF") != 0, attributes.accessed);
    assert_eq!(field(raw, "OA") << 12, hpa.raw());
    assert_eq!(
        (
            field(raw, "FnXS"),
            field(raw, "RES0"),
            field(raw, "Contiguous")
        ),
        (0, 0, 0)
    );
    let (_, el1, el0) = EXECUTE_NEVER
        .into_iter()
        .find(|(bits, ..)| *bits == field(raw, "XN"))
        .expect("two bits");
    assert_eq!((el1, el0), who_executes(attributes.permissions.execute));
    assert_eq!(field(raw, "software"), u64::from(attributes.software));
    assert_eq!(
        raw >> 59,
        0,
        "PBHA and the ignored bit above are left alone"
    );
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(features: Arm64Features, attributes: Attributes) -> bool {
    let (el1, el0) = who_executes(attributes.permissions.execute);
    let device = matches!(
        attributes.memory,
        MemoryType::Device | MemoryType::DeviceStrict
    );
    let known = MEMORY_ATTRIBUTES
        .iter()
        .any(|(fwb, _, memory)| *fwb == features.force_write_back && *memory == attributes.memory);
    known
        && (el1 == el0 || features.execute_never_extended)
        && !(device && (el1 || el0))
        && !(attributes.dirty && !(keeps_dirty(features) && attributes.permissions.write))
        && attributes.software < 16
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software: Vec<u8> = (0..=17).collect();
    for features in all_features() {
        for attributes in laws::all_attributes(&software) {
            for level in [PAGE, MIB2, GIB1] {
                let top = (1 << 48) - Arm64::leaf_step(level);
                for hpa in [0, Arm64::leaf_step(level), top].map(Hpa::new) {
                    let encoded = Arm64::leaf(&features, level, hpa, attributes);
                    assert_eq!(encoded.is_ok(), expressible(features, attributes));
                    if let Ok(raw) = encoded {
                        agrees(features, level, raw, hpa, attributes);
                    }
                }
            }
        }
    }
}

#[test]
fn well_known_values() {
    let leaf = |level, hpa, permissions, memory| {
        Arm64::leaf(
            &plain(),
            level,
            Hpa::new(hpa),
            Attributes::new(permissions, memory),
        )
        .unwrap()
    };
    let ram = MemoryType::WriteBack;
    assert_eq!(leaf(PAGE, 0x8000_0000, Permissions::ALL, ram), 0x8000_07ff);
    assert_eq!(leaf(MIB2, 0x8020_0000, Permissions::ALL, ram), 0x8020_07fd);
    assert_eq!(leaf(GIB1, 0xc000_0000, Permissions::ALL, ram), 0xc000_07fd);
    assert_eq!(
        leaf(PAGE, 0x8000_0000, Permissions::READ, ram),
        0x0040_0000_8000_077f
    );
    assert_eq!(
        leaf(
            PAGE,
            0x0900_0000,
            Permissions::READ_WRITE,
            MemoryType::Device
        ),
        0x0040_0000_0900_07c7
    );
    assert_eq!(
        Arm64::table(&plain(), GIB1, Hpa::new(0x4_2000_1000)),
        0x4_2000_1003
    );
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let device = Attributes::new(Permissions::ALL, MemoryType::Device);
    let leaf =
        |features, level, hpa, attributes| Arm64::leaf(&features, level, Hpa::new(hpa), attributes);
    let level = Level::new(3);
    assert_eq!(
        leaf(plain(), level, 0, ram),
        Err(EncodeError::NoLeaf(level))
    );
    let hpa = Hpa::new(0x1000);
    assert_eq!(
        leaf(plain(), MIB2, 0x1000, ram),
        Err(EncodeError::Unaligned { hpa, level: MIB2 })
    );
    let narrow = Arm64Features {
        physical_bits: 40,
        ..plain()
    };
    let hpa = Hpa::new(1 << 40);
    assert_eq!(
        leaf(narrow, PAGE, 1 << 40, ram),
        Err(EncodeError::AddressWidth { hpa, bits: 40 })
    );
    let wide = Arm64Features {
        physical_bits: 52,
        ..plain()
    };
    let hpa = Hpa::new(1 << 48);
    assert_eq!(
        leaf(wide, PAGE, 1 << 48, ram),
        Err(EncodeError::AddressWidth { hpa, bits: 48 })
    );
    assert_eq!(
        leaf(plain(), PAGE, 0, device),
        Err(EncodeError::ExecutableDevice(MemoryType::Device))
    );
    let dirty = Attributes { dirty: true, ..ram };
    assert_eq!(leaf(plain(), PAGE, 0, dirty), Err(EncodeError::Dirty));
    let software = Attributes {
        software: 0x10,
        ..ram
    };
    assert_eq!(
        leaf(plain(), PAGE, 0, software),
        Err(EncodeError::Software(0x10))
    );
    let forced = Arm64Features {
        force_write_back: true,
        ..plain()
    };
    let through = Attributes {
        memory: MemoryType::WriteThrough,
        ..ram
    };
    assert_eq!(
        leaf(forced, PAGE, 0, through),
        Err(EncodeError::MemoryType(MemoryType::WriteThrough))
    );
    let kernel = Permissions {
        execute: Execute::Privileged,
        ..Permissions::ALL
    };
    let split = Attributes {
        permissions: kernel,
        ..ram
    };
    assert_eq!(
        leaf(plain(), PAGE, 0, split),
        Err(EncodeError::Permissions(kernel))
    );
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let raw = Arm64::leaf(&plain(), PAGE, Hpa::new(0x8000_0000), ram).unwrap();
    for (what, foreign) in [
        ("FnXS", raw | 1 << 11),
        (
            "dirty bit modifier without hardware dirty state",
            raw | 1 << 51,
        ),
        ("not shareable", raw & !(0b11 << 8)),
        ("the wrong type bit for a page", raw & !0b10),
        ("Device-GRE", raw & !(0xf << 2) | 0b0011 << 2),
        ("an extended XN value without FEAT_XNX", raw | 1 << 53),
    ] {
        assert_eq!(
            Arm64::decode(&plain(), PAGE, foreign),
            Entry::Foreign(foreign),
            "{what}"
        );
    }
    let block = Arm64::leaf(&plain(), MIB2, Hpa::new(0x8000_0000), ram).unwrap();
    let unaligned = block | 1 << 13;
    assert_eq!(
        Arm64::decode(&plain(), MIB2, unaligned),
        Entry::Foreign(unaligned)
    );
    let level = Level::new(3);
    assert_eq!(
        Arm64::decode(&plain(), level, block),
        Entry::Foreign(block),
        "no 512 GiB blocks"
    );
    let small = Arm64Features {
        physical_bits: 32,
        ..plain()
    };
    let beyond = raw | 1 << 32;
    assert_eq!(
        Arm64::decode(&small, PAGE, beyond),
        Entry::Foreign(beyond),
        "an address that the CPU does not have"
    );
}

#[test]
fn a_writable_page_without_dirty_tracking_is_foreign_where_dirty_is_tracked() {
    let features = Arm64Features {
        hardware_accessed: true,
        hardware_dirty: true,
        ..plain()
    };
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    // Such a page can be written without a trace, so it must not pass for a clean one.
    let untracked = Arm64::leaf(&plain(), PAGE, Hpa::new(0x8000_0000), ram).unwrap();
    assert_eq!(
        Arm64::decode(&features, PAGE, untracked),
        Entry::Foreign(untracked)
    );
}

#[test]
fn hardware_dirty_state_needs_hardware_access_flags() {
    let dirty_only = Arm64Features {
        hardware_dirty: true,
        ..plain()
    };
    assert!(!Arm64::rules(&dirty_only).hardware_dirty);
    let both = Arm64Features {
        hardware_accessed: true,
        ..dirty_only
    };
    assert!(Arm64::rules(&both).hardware_dirty && Arm64::rules(&both).hardware_accessed);
    let vtcr = |features| {
        let geometry = Arm64::geometry(&features, 40).unwrap();
        Arm64::root(&features, &geometry, Hpa::new(0x8000_0000), 0).vtcr
    };
    assert_eq!(vtcr(dirty_only) & 0b11 << 21, 0);
    assert_eq!(vtcr(both) & 0b11 << 21, 0b11 << 21);
}

/// Guest address bits, levels, the manual's start level, `SL0`, tables side by side at the root.
const SHAPES: [(u8, usize, u64, u64, u32); 17] = [
    (32, 2, 2, 0, 4),
    (33, 2, 2, 0, 8),
    (34, 2, 2, 0, 16),
    (35, 3, 1, 1, 1),
    (36, 3, 1, 1, 1),
    (37, 3, 1, 1, 1),
    (38, 3, 1, 1, 1),
    (39, 3, 1, 1, 1),
    (40, 3, 1, 1, 2),
    (41, 3, 1, 1, 4),
    (42, 3, 1, 1, 8),
    (43, 3, 1, 1, 16),
    (44, 4, 0, 2, 1),
    (45, 4, 0, 2, 1),
    (46, 4, 0, 2, 1),
    (47, 4, 0, 2, 1),
    (48, 4, 0, 2, 1),
];

#[test]
fn start_levels_and_concatenation() {
    for (bits, levels, start, sl0, tables) in SHAPES {
        let geometry = Arm64::geometry(&plain(), bits).unwrap();
        let root = geometry.root();
        assert_eq!(
            (root.index() + 1, 3 - root.index() as u64),
            (levels, start),
            "{bits} bits"
        );
        assert_eq!(
            geometry.shape(root).table_bytes,
            tables * 4096,
            "{bits} bits"
        );
        assert_eq!(geometry.table_maps(root), 1 << bits);
        let vtcr = Arm64::root(&plain(), &geometry, Hpa::new(0x8000_0000), 0).vtcr;
        assert_eq!(vtcr >> 6 & 0b11, sl0, "{bits} bits");
        assert_eq!(vtcr & 0x3f, 64 - u64::from(bits), "T0SZ");
        for level in geometry.levels_below_root() {
            let shape = geometry.shape(level);
            assert_eq!((shape.index_bits, shape.table_bytes), (9, 4096));
        }
    }
}

#[test]
fn widths_that_cannot_be_done() {
    for bits in [0, 31, 49, 64, 255] {
        let error = Arm64::geometry(&plain(), bits).unwrap_err();
        assert_eq!((error.bits, error.lowest, error.highest), (bits, 32, 48));
    }
    let narrow = Arm64Features {
        physical_bits: 40,
        ..plain()
    };
    assert!(Arm64::geometry(&narrow, 40).is_ok());
    assert_eq!(Arm64::geometry(&narrow, 41).unwrap_err().highest, 40);
}

#[test]
fn physical_sizes() {
    for (physical_bits, field) in [
        (32, 0),
        (36, 1),
        (40, 2),
        (42, 3),
        (44, 4),
        (48, 5),
        (52, 5),
    ] {
        let features = Arm64Features {
            physical_bits,
            ..plain()
        };
        let geometry = Arm64::geometry(&features, 32).unwrap();
        let vtcr = Arm64::root(&features, &geometry, Hpa::new(0x8000_0000), 0).vtcr;
        assert_eq!(vtcr >> 16 & 0b111, field, "{physical_bits} bits");
    }
}

#[test]
fn root_registers() {
    let a57 = Arm64Features {
        physical_bits: 44,
        ..plain()
    };
    let geometry = Arm64::geometry(&a57, 40).unwrap();
    let root = Arm64::root(&a57, &geometry, Hpa::new(0x4002_0000), 0x1234);
    // RES1, PS 44 bits, inner shareable, write-back write-allocate walks, SL0 1, T0SZ 24.
    assert_eq!(root.vtcr, 0x8004_3558);
    assert_eq!(root.vttbr, 0x0034_0000_4002_0000, "8-bit VMID");
    let newer = Arm64Features {
        physical_bits: 48,
        vmid16: true,
        hardware_accessed: true,
        ..a57
    };
    let geometry = Arm64::geometry(&newer, 48).unwrap();
    let root = Arm64::root(&newer, &geometry, Hpa::new(0x4002_0000), 0x1234);
    // RES1, HA, VS, PS 48 bits, ..., SL0 2, T0SZ 16.
    assert_eq!(root.vtcr, 0x802d_3590);
    assert_eq!(root.vttbr, 0x1234_0000_4002_0000, "16-bit VMID");
}

#[test]
fn what_holds_whatever_the_guest_asks_for() {
    let coherent = Arm64Features {
        force_write_back: true,
        coherent_instruction_cache: true,
        ..plain()
    };
    assert!(Arm64::forces(&coherent, MemoryType::WriteBack));
    assert!(!Arm64::forces(&plain(), MemoryType::WriteBack));
    let only_data = Arm64Features {
        coherent_instruction_cache: false,
        ..coherent
    };
    assert!(!Arm64::forces(&only_data, MemoryType::WriteBack));
    for memory in [
        MemoryType::NonCacheable,
        MemoryType::Device,
        MemoryType::DeviceStrict,
    ] {
        assert!(Arm64::forces(&plain(), memory));
    }
}
