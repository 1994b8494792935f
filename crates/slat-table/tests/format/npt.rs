//! AMD nested paging: every bit against the AMD64 APM.
//!
//! The decoder here is written from the manual's field tables (volume 2, 5.3, 5.4, 7.8 and 15.25) and
//! shares nothing with the crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::npt::{Encryption, Npt, NptFeatures, PAT_AFTER_RESET};
use slat_table::format::{EncodeError, Entry, FlushKind, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const GIB1: Level = Level::new(2);
const NO_EXECUTE: u64 = 1 << 63;

const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);

/// Encryption by bit 51, as on a CPU with 52 address bits.
const ENCRYPTED_HIGH: NptFeatures = NptFeatures {
    encryption: Encryption::new(51, 6),
    ..NptFeatures::ALL
};

/// Every set of features that changes how an entry looks, with the width of an address and the
/// encryption bit in an entry.
const ALL_FEATURES: [(NptFeatures, u32, u64); 4] = [
    (NptFeatures::ALL, 52, 0),
    (NptFeatures::ENCRYPTED, 43, 1 << 47),
    (ENCRYPTED_HIGH, 46, 1 << 51),
    (
        NptFeatures {
            pat: PAT_AFTER_RESET,
            ..NptFeatures::ALL
        },
        52,
        0,
    ),
];

#[test]
fn hosts_that_no_row_of_the_catalogue_is_for_obey_the_laws() {
    laws::check::<Npt>(&ENCRYPTED_HIGH, 48);
    laws::check::<Npt>(&NptFeatures::FIVE_LEVELS, 40);
    laws::check::<Npt>(&NptFeatures::NONE, 32);
}

/// A field of an entry, by its lowest bit and width.
fn field(raw: u64, low: u32, width: u32) -> u64 {
    raw >> low & ((1 << width) - 1)
}

/// The type that a leaf chooses: PWT is bit 0 of the index, PCD bit 1, PAT bit 2 (7.8.3).
fn pat_type(features: NptFeatures, level: Level, raw: u64) -> Option<MemoryType> {
    let pat = if level == PAGE { 7 } else { 12 };
    let index = field(raw, 3, 1) + 2 * field(raw, 4, 1) + 4 * field(raw, pat, 1);
    match features.pat.to_le_bytes()[usize::try_from(index).unwrap()] {
        0 => Some(MemoryType::Device),
        1 => Some(MemoryType::NonCacheable),
        4 => Some(MemoryType::WriteThrough),
        6 => Some(MemoryType::WriteBack),
        _ => None,
    }
}

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(
    (features, width, encrypted): (NptFeatures, u32, u64),
    level: Level,
    raw: u64,
    hpa: Hpa,
    attributes: Attributes,
) {
    assert_eq!(field(raw, 0, 1), 1, "present");
    assert!(attributes.permissions.read, "what is present can be read");
    assert_eq!(field(raw, 1, 1) != 0, attributes.permissions.write);
    assert_eq!(field(raw, 2, 1), 1, "a guest's accesses are a user's");
    assert_eq!(pat_type(features, level, raw), Some(attributes.memory));
    assert_eq!(field(raw, 5, 1) != 0, attributes.accessed);
    assert_eq!(field(raw, 6, 1) != 0, attributes.dirty);
    let mut address = raw & 0x000f_ffff_ffff_f000 & !encrypted;
    if level != PAGE {
        assert_eq!(field(raw, 7, 1), 1, "a block");
        address &= !(1 << 12);
    }
    assert_eq!(address, hpa.raw());
    assert_eq!(address >> width, 0);
    assert_eq!(field(raw, 8, 1), 0, "not global");
    assert_eq!(field(raw, 9, 3), u64::from(attributes.software));
    let cached = matches!(
        attributes.memory,
        MemoryType::WriteBack | MemoryType::WriteThrough
    );
    assert_eq!(raw & encrypted != 0, encrypted != 0 && cached);
    assert_eq!(field(raw, 52, 11), 0, "available bits and protection key");
    let nobody = attributes.permissions.execute == Execute::Never;
    assert_eq!(field(raw, 63, 1) != 0, nobody);
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(features: NptFeatures, attributes: Attributes) -> bool {
    let permissions = attributes.permissions;
    let encoding = match attributes.memory {
        MemoryType::Device => 0,
        MemoryType::NonCacheable => 1,
        MemoryType::WriteThrough => 4,
        MemoryType::WriteBack => 6,
        _ => return false,
    };
    permissions.read
        && matches!(permissions.execute, Execute::Always | Execute::Never)
        && features.pat.to_le_bytes().contains(&encoding)
        && attributes.software < 8
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software = [0, 1, 4, 7, 8, 0xff];
    for set in ALL_FEATURES {
        let (features, width, _) = set;
        for attributes in laws::all_attributes(&software) {
            for level in [PAGE, MIB2, GIB1] {
                let top = (1 << width) - Npt::leaf_step(level);
                for hpa in [0, Npt::leaf_step(level), top].map(Hpa::new) {
                    let encoded = Npt::leaf(&features, level, hpa, attributes);
                    assert_eq!(encoded.is_ok(), expressible(features, attributes));
                    if let Ok(raw) = encoded {
                        agrees(set, level, raw, hpa, attributes);
                    }
                }
            }
        }
    }
}

#[test]
fn well_known_values() {
    let leaf = |features: &NptFeatures, level, hpa, permissions, memory| {
        let attributes = Attributes::new(permissions, memory);
        Npt::leaf(features, level, Hpa::new(hpa), attributes).unwrap()
    };
    let (ram, all) = (MemoryType::WriteBack, Permissions::ALL);
    let plain = &NptFeatures::ALL;
    assert_eq!(leaf(plain, PAGE, 0x8000_0000, all, ram), 0x8000_0027);
    assert_eq!(leaf(plain, MIB2, 0x8020_0000, all, ram), 0x8020_00a7);
    assert_eq!(
        leaf(plain, GIB1, 0xc000_0000, Permissions::READ, ram),
        NO_EXECUTE | 0xc000_00a5
    );
    let device = MemoryType::Device;
    let reads = Permissions::READ_WRITE;
    let apic = NO_EXECUTE | 0xfee0_003f;
    // UC is the fourth type of either PAT.
    assert_eq!(leaf(plain, PAGE, 0xfee0_0000, reads, device), apic);
    assert_eq!(
        leaf(&NptFeatures::NONE, PAGE, 0xfee0_0000, reads, device),
        apic
    );
    // Write-through is the last one here: all three bits, in two places.
    let through = MemoryType::WriteThrough;
    assert_eq!(leaf(plain, PAGE, 0x8000_0000, all, through), 0x8000_00bf);
    assert_eq!(leaf(plain, MIB2, 0x8000_0000, all, through), 0x8000_10bf);
    let encrypted = &NptFeatures::ENCRYPTED;
    assert_eq!(
        leaf(encrypted, PAGE, 0x8000_0000, all, ram),
        0x8000_8000_0027
    );
    assert_eq!(leaf(encrypted, PAGE, 0xfee0_0000, reads, device), apic);
    let table = Hpa::new(0x4_2000_1000);
    assert_eq!(Npt::table(plain, GIB1, table), 0x4_2000_1007);
    assert_eq!(Npt::table(encrypted, GIB1, table), 0x8004_2000_1007);
    assert_eq!(Npt::empty(PAGE), 0);
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let leaf = |features: NptFeatures, level, hpa, attributes| {
        Npt::leaf(&features, level, Hpa::new(hpa), attributes)
    };
    let (all, none) = (NptFeatures::ALL, NptFeatures::NONE);
    let level = Level::new(3);
    assert_eq!(leaf(all, level, 0, RAM), Err(EncodeError::NoLeaf(level)));
    assert_eq!(leaf(none, GIB1, 0, RAM), Err(EncodeError::NoLeaf(GIB1)));
    let hpa = Hpa::new(0x1000);
    assert_eq!(
        leaf(all, MIB2, 0x1000, RAM),
        Err(EncodeError::Unaligned { hpa, level: MIB2 })
    );
    for (features, bits) in [
        (none, 48),
        (NptFeatures::ENCRYPTED, 43),
        (ENCRYPTED_HIGH, 46),
    ] {
        let hpa = Hpa::new(1 << bits);
        assert_eq!(
            leaf(features, PAGE, hpa.raw(), RAM),
            Err(EncodeError::AddressWidth { hpa, bits })
        );
    }
    let contiguous = Attributes {
        contiguous: true,
        ..RAM
    };
    assert_eq!(
        leaf(all, PAGE, 0, contiguous),
        Err(EncodeError::Contiguous(PAGE))
    );
    let software = Attributes { software: 8, ..RAM };
    assert_eq!(leaf(all, PAGE, 0, software), Err(EncodeError::Software(8)));
    // The PAT after reset has no write combining.
    for memory in [MemoryType::NonCacheable, MemoryType::DeviceStrict] {
        assert_eq!(
            leaf(none, PAGE, 0, Attributes { memory, ..RAM }),
            Err(EncodeError::MemoryType(memory))
        );
    }
    let unreadable = Permissions {
        read: false,
        ..Permissions::ALL
    };
    let kernel = Permissions {
        execute: Execute::Privileged,
        ..Permissions::ALL
    };
    for permissions in [unreadable, kernel] {
        assert_eq!(
            leaf(all, PAGE, 0, Attributes { permissions, ..RAM }),
            Err(EncodeError::Permissions(permissions))
        );
    }
}

#[test]
fn an_encryption_bit_stands_among_the_address_bits() {
    for bit in [0, 11, 31, 52, 63, 255] {
        assert_eq!(Encryption::new(bit, 1), None, "{bit}");
    }
    let encryption = Encryption::new(47, 5).unwrap();
    assert_eq!((encryption.bit(), encryption.address_reduction()), (47, 5));
    // One that claims to cost nothing still ends the address below it.
    let free = NptFeatures {
        encryption: Encryption::new(40, 0),
        ..NptFeatures::ALL
    };
    let hpa = Hpa::new(1 << 40);
    assert_eq!(
        Npt::leaf(&free, PAGE, hpa, RAM),
        Err(EncodeError::AddressWidth { hpa, bits: 40 })
    );
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let features = NptFeatures::ALL;
    let page = Npt::leaf(&features, PAGE, Hpa::new(0x8000_0000), RAM).unwrap();
    let block = Npt::leaf(&features, MIB2, Hpa::new(0x8000_0000), RAM).unwrap();
    for (what, level, foreign) in [
        ("a page that no guest can use", PAGE, page & !0b100),
        ("global", PAGE, page | 1 << 8),
        ("UC-", PAGE, page | 0b10 << 3),
        ("write-back by its second index", PAGE, page | 1 << 7),
        ("write-back by its second index", MIB2, block | 1 << 12),
        ("reserved address bits of a block", MIB2, block | 1 << 13),
        ("an available bit", PAGE, page | 1 << 52),
        ("a protection key", PAGE, page | 1 << 59),
        ("a block above 1 GiB", Level::new(3), block),
    ] {
        let entry = Npt::decode(&features, level, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
    let encrypted = NptFeatures::ENCRYPTED;
    let device = Attributes::new(Permissions::READ_WRITE, MemoryType::Device);
    let device = Npt::leaf(&encrypted, PAGE, Hpa::new(0xfee0_0000), device).unwrap();
    for (what, foreign) in [
        ("memory in the clear", page),
        ("an encrypted device", device | 1 << 47),
        ("an address that encryption took", page | 1 << 47 | 1 << 43),
    ] {
        let entry = Npt::decode(&encrypted, PAGE, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
}

#[test]
fn a_table_that_the_walker_has_accessed_is_still_a_table() {
    let table = Hpa::new(0x8000_1000);
    for (features, ..) in ALL_FEATURES {
        let raw = Npt::table(&features, MIB2, table) | 1 << 5;
        assert_eq!(Npt::decode(&features, MIB2, raw), Entry::Table(table));
    }
}

#[test]
fn the_walk_is_as_long_as_the_hosts() {
    for (features, bits, levels) in [
        (NptFeatures::ALL, 32, 4),
        (NptFeatures::ALL, 48, 4),
        (NptFeatures::FIVE_LEVELS, 48, 5),
        (NptFeatures::FIVE_LEVELS, 57, 5),
    ] {
        let geometry = Npt::geometry(&features, bits).unwrap();
        assert_eq!(geometry.root().index() + 1, levels, "{bits} bits");
        assert_eq!(geometry.address_bits(), bits);
        for level in geometry.levels_down() {
            let shape = geometry.shape(level);
            assert_eq!((shape.index_bits, shape.table_bytes), (9, 4096));
            assert_eq!(shape.leaf, level <= GIB1);
        }
    }
    let without = Npt::geometry(&NptFeatures::NONE, 48).unwrap();
    assert!(without.shape(MIB2).leaf && !without.shape(GIB1).leaf);
}

#[test]
fn the_root_is_encrypted_like_every_table() {
    let geometry = Npt::geometry(&NptFeatures::ALL, 48).unwrap();
    let n_cr3 = |features| Npt::root(&features, &geometry, Hpa::new(0x1_2345_6000), 7).n_cr3;
    assert_eq!(n_cr3(NptFeatures::ALL), 0x1_2345_6000);
    assert_eq!(n_cr3(NptFeatures::ENCRYPTED), 1 << 47 | 0x1_2345_6000);
}

#[test]
fn widths_that_cannot_be_done() {
    for (features, highest) in [(NptFeatures::ALL, 48), (NptFeatures::FIVE_LEVELS, 57)] {
        for bits in [0, 31, highest + 1, 255] {
            let error = Npt::geometry(&features, bits).unwrap_err();
            assert_eq!(
                (error.bits, error.lowest, error.highest),
                (bits, 32, highest)
            );
        }
    }
}

#[test]
fn what_the_hardware_asks_of_whoever_changes_entries() {
    let rules = Npt::rules(&NptFeatures::NONE);
    assert_eq!(rules.flush, FlushKind::Ipi);
    assert!(!rules.break_before_make && !rules.caches_invalid);
    assert!(rules.hardware_accessed && rules.hardware_dirty);
}

#[test]
fn what_holds_whatever_the_guest_asks_for() {
    for memory in [MemoryType::WriteBack, MemoryType::WriteThrough] {
        assert!(!Npt::forces(&NptFeatures::ALL, memory));
    }
    for memory in [MemoryType::NonCacheable, MemoryType::Device] {
        assert!(Npt::forces(&NptFeatures::ALL, memory));
    }
}
