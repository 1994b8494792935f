//! Arm stage 2: every bit against the Arm Architecture Reference Manual.
//!
//! The decoder here is written from the manual's field tables (DDI 0487, D8.3 and D8.6) and
//! shares nothing with the crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::arm64::{
    Arm64, Arm64Features, Arm64Granule16K, Arm64Granule16KLpa2, Arm64Granule64K, Arm64Lpa2,
};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::Level;

use crate::laws;

mod registers;
mod shape;

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

const ATTRIBUTE_FIELDS: [(&str, Field); 10] = [
    ("valid", Field(0, 1)),
    ("type", Field(1, 1)),
    ("MemAttr", Field(2, 4)),
    ("S2AP", Field(6, 2)),
    ("AF", Field(10, 1)),
    ("DBM", Field(51, 1)),
    ("Contiguous", Field(52, 1)),
    ("XN", Field(53, 2)),
    ("software", Field(55, 4)),
    ("PBHA and ignored", Field(59, 5)),
];

/// What the manual says of one granule (D8.3).
struct Manual {
    /// log2 of the size of a page.
    page: u32,
    /// How many levels have leaves, without and with 52-bit addresses.
    leaf_levels: [u8; 2],
    /// Bits of an address that a descriptor holds.
    address_bits: u32,
    /// Where they stand: from bit to bit of the address, at which bit of the descriptor.
    output: &'static [(u32, u32, u32)],
    /// Bits 11:8 and 15:12 and 51:48, where they are not of the address: what they hold.
    others: &'static [(Field, u64)],
}

const MANUAL_4K: Manual = Manual {
    page: 12,
    leaf_levels: [3, 3],
    address_bits: 48,
    output: &[(12, 47, 12)],
    others: &[(Field(8, 2), 0b11), (Field(11, 1), 0), (Field(48, 3), 0)],
};
const MANUAL_4K_LPA2: Manual = Manual {
    page: 12,
    leaf_levels: [4, 4],
    address_bits: 52,
    output: &[(12, 49, 12), (50, 51, 8)],
    others: &[(Field(11, 1), 0), (Field(50, 1), 0)],
};
const MANUAL_16K: Manual = Manual {
    page: 14,
    leaf_levels: [2, 2],
    address_bits: 48,
    output: &[(14, 47, 14)],
    others: &[(Field(8, 2), 0b11), (Field(11, 3), 0), (Field(48, 3), 0)],
};
const MANUAL_16K_LPA2: Manual = Manual {
    page: 14,
    leaf_levels: [3, 3],
    address_bits: 52,
    output: &[(14, 49, 14), (50, 51, 8)],
    others: &[(Field(11, 3), 0), (Field(50, 1), 0)],
};
const MANUAL_64K: Manual = Manual {
    page: 16,
    leaf_levels: [2, 3],
    address_bits: 52,
    output: &[(16, 47, 16), (48, 51, 12)],
    others: &[(Field(8, 2), 0b11), (Field(11, 1), 0), (Field(48, 3), 0)],
};

impl Manual {
    /// The output address in a descriptor.
    fn output(&self, raw: u64) -> u64 {
        let part = |&(low, high, at): &(u32, u32, u32)| {
            let mask = (1 << (high - low + 1)) - 1;
            (raw >> at & mask) << low
        };
        self.output.iter().map(part).sum()
    }

    /// The levels that have leaves, with the bytes that one maps.
    fn levels(&self, features: Arm64Features) -> impl Iterator<Item = (Level, u64)> + use<> {
        let page = self.page;
        let wide = usize::from(features.physical_bits == 52);
        (0..self.leaf_levels[wide]).map(move |level| {
            (
                Level::new(level),
                1 << (page + (page - 3) * u32::from(level)),
            )
        })
    }
}

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
fn agrees(
    manual: &Manual,
    features: Arm64Features,
    level: Level,
    (raw, hpa): (u64, Hpa),
    attributes: Attributes,
) {
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
    assert_eq!(field(raw, "AF") != 0, attributes.accessed);
    assert_eq!(manual.output(raw), hpa.raw());
    for (Field(low, width), value) in manual.others {
        assert_eq!(raw >> low & ((1 << width) - 1), *value, "bit {low}");
    }
    assert_eq!(field(raw, "Contiguous") != 0, attributes.contiguous);
    let (_, el1, el0) = EXECUTE_NEVER
        .into_iter()
        .find(|(bits, ..)| *bits == field(raw, "XN"))
        .expect("two bits");
    assert_eq!((el1, el0), who_executes(attributes.permissions.execute));
    assert_eq!(field(raw, "software"), u64::from(attributes.software));
    assert_eq!(field(raw, "PBHA and ignored"), 0, "they are left alone");
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

/// Checks leaves of all levels, at both ends of the physical addresses and between.
fn leaves_mean<F: Format<Features = Arm64Features>>(manual: &Manual, features: Arm64Features) {
    let software = [0, 1, 8, 15, 16];
    let top = 1 << manual.address_bits.min(features.physical_bits.into());
    for attributes in laws::all_attributes(&software) {
        for (level, bytes) in manual.levels(features) {
            for hpa in [0, bytes, top / 2, top - bytes].map(Hpa::new) {
                let encoded = F::leaf(&features, level, hpa, attributes);
                assert_eq!(encoded.is_ok(), expressible(features, attributes));
                if let Ok(raw) = encoded {
                    agrees(manual, features, level, (raw, hpa), attributes);
                }
            }
        }
    }
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    for features in all_features() {
        leaves_mean::<Arm64>(&MANUAL_4K, features);
    }
    for base in [Arm64Features::ALL, Arm64Features::NONE] {
        for physical_bits in [48, 52] {
            let features = Arm64Features {
                physical_bits,
                ..base
            };
            leaves_mean::<Arm64>(&MANUAL_4K, features);
            leaves_mean::<Arm64Lpa2>(&MANUAL_4K_LPA2, features);
            leaves_mean::<Arm64Granule16K>(&MANUAL_16K, features);
            leaves_mean::<Arm64Granule16KLpa2>(&MANUAL_16K_LPA2, features);
            leaves_mean::<Arm64Granule64K>(&MANUAL_64K, features);
        }
    }
}

/// Checks that table pointers hold all bits of an address.
fn tables_mean<F: Format<Features = Arm64Features>>(manual: &Manual) {
    let features = Arm64Features::WIDE;
    for bit in manual.page..manual.address_bits {
        let table = Hpa::new(1 << bit | 1 << manual.page);
        let raw = F::table(&features, MIB2, table);
        assert_eq!(raw & 0b11, 0b11);
        assert_eq!(manual.output(raw), table.raw());
        assert_eq!(F::decode(&features, MIB2, raw), Entry::Table(table));
    }
}

#[test]
fn tables_are_found_at_every_address() {
    tables_mean::<Arm64>(&MANUAL_4K);
    tables_mean::<Arm64Lpa2>(&MANUAL_4K_LPA2);
    tables_mean::<Arm64Granule16K>(&MANUAL_16K);
    tables_mean::<Arm64Granule16KLpa2>(&MANUAL_16K_LPA2);
    tables_mean::<Arm64Granule64K>(&MANUAL_64K);
}

#[test]
fn one_of_a_run_is_known_by_the_contiguous_bit_alone() {
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let one_of_a_run = Attributes {
        contiguous: true,
        ..ram
    };
    for (level, hpa, first) in [
        (PAGE, 0x8000_5000, 0x8000_0000),
        (MIB2, 0x8360_0000, 0x8200_0000),
        (GIB1, 0x2_c000_0000, 0),
    ] {
        let leaf = |attributes| Arm64::leaf(&plain(), level, Hpa::new(hpa), attributes).unwrap();
        let raw = leaf(one_of_a_run);
        assert_eq!(raw, leaf(ram) | 1 << 52);
        let run = Entry::Leaf {
            hpa: Hpa::new(first),
            attributes: one_of_a_run,
        };
        assert_eq!(Arm64::decode(&plain(), level, raw), run);
    }
    // Blocks that FEAT_LPA and FEAT_LPA2 add have no runs: the bit is reserved there.
    let wide = Arm64Features::WIDE;
    let hpa = Hpa::new(0);
    for (level, encoded) in [
        (3, Arm64Lpa2::leaf(&wide, Level::new(3), hpa, one_of_a_run)),
        (2, Arm64Granule16KLpa2::leaf(&wide, GIB1, hpa, one_of_a_run)),
        (2, Arm64Granule64K::leaf(&wide, GIB1, hpa, one_of_a_run)),
    ] {
        let level = Level::new(level);
        assert_eq!(encoded, Err(EncodeError::Contiguous(level)));
    }
    let block = Arm64Granule64K::leaf(&wide, GIB1, hpa, ram).unwrap();
    let reserved = block | 1 << 52;
    assert_eq!(
        Arm64Granule64K::decode(&wide, GIB1, reserved),
        Entry::Foreign(reserved)
    );
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
