//! Intel EPT: every bit against the Intel SDM.
//!
//! The decoder here is written from the manual's field tables (volume 3, 29.3.2 and 29.3.3.1) and
//! shares nothing with the crate's.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::ept::{Ept, EptFeatures};
use slat_table::format::{EncodeError, Entry, FlushKind, Format};
use slat_table::geometry::Level;

use crate::laws;

const PAGE: Level = Level::PAGE;
const MIB2: Level = Level::new(1);
const GIB1: Level = Level::new(2);
const SUPPRESS_EXCEPTION: u64 = 1 << 63;

const RAM: Attributes = Attributes::new(Permissions::ALL, MemoryType::WriteBack);

/// Every combination of the features that change how an entry looks.
fn all_features() -> Vec<EptFeatures> {
    let bit = |bits: u8, number: u8| bits >> number & 1 != 0;
    (0..16)
        .map(|bits| EptFeatures {
            execute_only: bit(bits, 0),
            mode_based_execute: bit(bits, 1),
            accessed_dirty: bit(bits, 2),
            ignore_pat: bit(bits, 3),
            ..EptFeatures::ALL
        })
        .collect()
}

#[test]
fn every_leaf_obeys_the_laws() {
    for features in all_features() {
        laws::check::<Ept>(&features, 48);
    }
}

#[test]
fn narrow_trees_and_trees_without_blocks_obey_the_laws() {
    laws::check::<Ept>(&EptFeatures::NONE, 32);
    let pages_only = EptFeatures {
        blocks_2m: false,
        ..EptFeatures::NONE
    };
    laws::check::<Ept>(&pages_only, 48);
}

/// A field of an entry, by its lowest bit and width.
fn field(raw: u64, low: u32, width: u32) -> u64 {
    raw >> low & ((1 << width) - 1)
}

/// The manual's memory types (29.3.7).
const MEMORY_TYPES: [(u64, MemoryType); 4] = [
    (0, MemoryType::Device),
    (1, MemoryType::NonCacheable),
    (4, MemoryType::WriteThrough),
    (6, MemoryType::WriteBack),
];

/// Whether the guest's kernel and its user programs may execute.
fn who_executes(execute: Execute) -> (bool, bool) {
    match execute {
        Execute::Never => (false, false),
        Execute::Privileged => (true, false),
        Execute::Unprivileged => (false, true),
        Execute::Always => (true, true),
    }
}

/// Whether an entry is a misconfiguration by its permissions (29.3.3.1).
fn misconfigured(features: EptFeatures, raw: u64) -> bool {
    let (read, write, execute) = (field(raw, 0, 1), field(raw, 1, 1), field(raw, 2, 1));
    let user = field(raw, 10, 1) != 0 && features.mode_based_execute;
    read == 0 && (write != 0 || !features.execute_only && (execute != 0 || user))
}

/// What the manual makes of `raw` must be what `attributes` asked for.
fn agrees(features: EptFeatures, level: Level, raw: u64, hpa: Hpa, attributes: Attributes) {
    assert!(!misconfigured(features, raw), "{raw:#x}");
    assert_ne!(raw & 0b100_0000_0111, 0, "present");
    assert_eq!(field(raw, 0, 1) != 0, attributes.permissions.read);
    assert_eq!(field(raw, 1, 1) != 0, attributes.permissions.write);
    let kernel = field(raw, 2, 1) != 0;
    let user = if features.mode_based_execute {
        field(raw, 10, 1) != 0
    } else {
        assert_eq!(field(raw, 10, 1), 0);
        kernel
    };
    assert_eq!((kernel, user), who_executes(attributes.permissions.execute));
    let memory = field(raw, 3, 3);
    let (_, memory) = MEMORY_TYPES
        .into_iter()
        .find(|(bits, _)| *bits == memory)
        .expect("no reserved type");
    assert_eq!(memory, attributes.memory);
    let cached = matches!(memory, MemoryType::WriteBack | MemoryType::WriteThrough);
    assert_eq!(field(raw, 6, 1) != 0, features.ignore_pat && cached);
    assert_eq!(field(raw, 7, 1) != 0, level != PAGE, "a block's bit 7");
    if features.accessed_dirty {
        assert_eq!(field(raw, 8, 1) != 0, attributes.accessed);
        assert_eq!(field(raw, 9, 1) != 0, attributes.dirty);
    } else {
        assert_eq!(field(raw, 8, 2), 0);
    }
    assert_eq!(field(raw, 11, 1), 0, "ignored, left alone");
    assert_eq!(field(raw, 12, 40) << 12, hpa.raw());
    assert_eq!(field(raw, 52, 5), u64::from(attributes.software));
    let (paging, paging_write, ignored) = (field(raw, 57, 1), field(raw, 58, 1), field(raw, 59, 1));
    let (shadow_stack, sub_page) = (field(raw, 60, 1), field(raw, 61, 1));
    assert_eq!(
        [paging, paging_write, ignored, shadow_stack, sub_page],
        [0; 5]
    );
    assert_eq!(field(raw, 62, 1), 0, "ignored, left alone");
    assert_eq!(field(raw, 63, 1), 1, "violations come to the hypervisor");
}

/// Which attributes can be expressed, said once more and differently.
fn expressible(features: EptFeatures, attributes: Attributes) -> bool {
    let Attributes {
        permissions,
        memory,
        accessed,
        dirty,
        software,
        ..
    } = attributes;
    let (kernel, user) = who_executes(permissions.execute);
    let possible = match (permissions.read, permissions.write) {
        (true, _) => true,
        (false, true) => false,
        (false, false) => features.execute_only && (kernel || user),
    };
    possible
        && (kernel == user || features.mode_based_execute)
        && MEMORY_TYPES.iter().any(|(_, known)| *known == memory)
        && (features.accessed_dirty || accessed && !dirty)
        && software < 32
}

#[test]
fn leaves_mean_to_the_hardware_what_was_asked_for() {
    let software = [0, 1, 0x10, 0x1f, 0x20, 0xff];
    for features in all_features() {
        for attributes in laws::all_attributes(&software) {
            for level in [PAGE, MIB2, GIB1] {
                let top = (1 << 52) - Ept::leaf_step(level);
                for hpa in [0, Ept::leaf_step(level), top].map(Hpa::new) {
                    let encoded = Ept::leaf(&features, level, hpa, attributes);
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
    let plain = EptFeatures {
        mode_based_execute: false,
        ignore_pat: false,
        ..EptFeatures::ALL
    };
    let leaf = |features: &EptFeatures, level, hpa, permissions, memory| {
        let attributes = Attributes::new(permissions, memory);
        Ept::leaf(features, level, Hpa::new(hpa), attributes).unwrap()
    };
    let ram = MemoryType::WriteBack;
    let all = Permissions::ALL;
    assert_eq!(
        leaf(&plain, PAGE, 0x8000_0000, all, ram),
        SUPPRESS_EXCEPTION | 0x8000_0137
    );
    assert_eq!(
        leaf(&plain, MIB2, 0x8020_0000, all, ram),
        SUPPRESS_EXCEPTION | 0x8020_01b7
    );
    assert_eq!(
        leaf(&plain, GIB1, 0xc000_0000, Permissions::READ, ram),
        SUPPRESS_EXCEPTION | 0xc000_01b1
    );
    assert_eq!(
        leaf(&EptFeatures::ALL, PAGE, 0x8000_0000, all, ram),
        SUPPRESS_EXCEPTION | 0x8000_0577,
        "with the user's bit and ignore-PAT"
    );
    let device = MemoryType::Device;
    assert_eq!(
        leaf(&plain, PAGE, 0xfee0_0000, Permissions::READ_WRITE, device),
        SUPPRESS_EXCEPTION | 0xfee0_0103
    );
    assert_eq!(
        Ept::table(&plain, GIB1, Hpa::new(0x4_2000_1000)),
        0x4_2000_1007
    );
    let split = Ept::table(&EptFeatures::ALL, GIB1, Hpa::new(0x4_2000_1000));
    assert_eq!(split, 0x4_2000_1407);
    assert_eq!(Ept::empty(PAGE), SUPPRESS_EXCEPTION);
}

#[test]
fn errors_name_what_cannot_be_expressed() {
    let leaf = |features: EptFeatures, level, hpa, attributes| {
        Ept::leaf(&features, level, Hpa::new(hpa), attributes)
    };
    let (all, none) = (EptFeatures::ALL, EptFeatures::NONE);
    let level = Level::new(3);
    assert_eq!(leaf(all, level, 0, RAM), Err(EncodeError::NoLeaf(level)));
    assert_eq!(leaf(none, GIB1, 0, RAM), Err(EncodeError::NoLeaf(GIB1)));
    let hpa = Hpa::new(0x1000);
    assert_eq!(
        leaf(all, MIB2, 0x1000, RAM),
        Err(EncodeError::Unaligned { hpa, level: MIB2 })
    );
    let hpa = Hpa::new(1 << 48);
    assert_eq!(
        leaf(none, PAGE, 1 << 48, RAM),
        Err(EncodeError::AddressWidth { hpa, bits: 48 })
    );
    let hpa = Hpa::new(1 << 52);
    let claims = EptFeatures {
        physical_bits: 60,
        ..all
    };
    assert_eq!(
        leaf(claims, PAGE, 1 << 52, RAM),
        Err(EncodeError::AddressWidth { hpa, bits: 52 })
    );
    let contiguous = Attributes {
        contiguous: true,
        ..RAM
    };
    assert_eq!(
        leaf(all, PAGE, 0, contiguous),
        Err(EncodeError::Contiguous(PAGE))
    );
    let dirty = Attributes { dirty: true, ..RAM };
    assert_eq!(leaf(none, PAGE, 0, dirty), Err(EncodeError::Dirty));
    let old = Attributes {
        accessed: false,
        ..RAM
    };
    assert_eq!(leaf(none, PAGE, 0, old), Err(EncodeError::Unaccessed));
    let software = Attributes {
        software: 0x20,
        ..RAM
    };
    assert_eq!(
        leaf(all, PAGE, 0, software),
        Err(EncodeError::Software(0x20))
    );
    let strict = MemoryType::DeviceStrict;
    assert_eq!(
        leaf(
            all,
            PAGE,
            0,
            Attributes {
                memory: strict,
                ..RAM
            }
        ),
        Err(EncodeError::MemoryType(strict))
    );
}

#[test]
fn permissions_that_would_be_a_misconfiguration_are_refused() {
    let refused = |features: EptFeatures, read, write, execute| {
        let permissions = Permissions {
            read,
            write,
            execute,
        };
        let attributes = Attributes { permissions, ..RAM };
        let encoded = Ept::leaf(&features, PAGE, Hpa::new(0), attributes);
        encoded == Err(EncodeError::Permissions(permissions))
    };
    let (all, none) = (EptFeatures::ALL, EptFeatures::NONE);
    for features in [all, none] {
        assert!(
            refused(features, false, false, Execute::Never),
            "not present"
        );
        assert!(refused(features, false, true, Execute::Never));
        assert!(refused(features, false, true, Execute::Always));
    }
    let executes = [Execute::Always, Execute::Privileged, Execute::Unprivileged];
    for execute in executes {
        assert!(refused(none, false, false, execute), "{execute:?} alone");
        assert!(!refused(all, false, false, execute), "{execute:?} alone");
    }
    let together = EptFeatures {
        mode_based_execute: false,
        ..all
    };
    assert!(refused(together, true, true, Execute::Privileged));
    assert!(refused(together, true, true, Execute::Unprivileged));
}

#[test]
fn foreign_entries_are_told_from_ours() {
    let features = EptFeatures {
        ignore_pat: false,
        mode_based_execute: false,
        ..EptFeatures::ALL
    };
    let page = Ept::leaf(&features, PAGE, Hpa::new(0x8000_0000), RAM).unwrap();
    for (what, foreign) in [
        ("ignore-PAT that nobody asked for", page | 1 << 6),
        ("write-protected memory", page & !(7 << 3) | 5 << 3),
        ("a reserved memory type", page & !(7 << 3) | 2 << 3),
        ("a page with a block's bit", page | 1 << 7),
        (
            "the user's bit without mode-based execute control",
            page | 1 << 10,
        ),
        ("an ignored bit", page | 1 << 11),
        ("verify guest paging", page | 1 << 57),
        ("paging-write access", page | 1 << 58),
        ("supervisor shadow stack", page | 1 << 60),
        ("sub-page write permissions", page | 1 << 61),
        (
            "a violation that goes to the guest",
            page & !SUPPRESS_EXCEPTION,
        ),
        ("write without read", page & !0b101),
    ] {
        let entry = Ept::decode(&features, PAGE, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
    let block = Ept::leaf(&features, MIB2, Hpa::new(0x8000_0000), RAM).unwrap();
    let level = Level::new(3);
    for (what, level, foreign) in [
        ("reserved address bits of a block", MIB2, block | 1 << 13),
        ("a block above 1 GiB", level, block),
    ] {
        let entry = Ept::decode(&features, level, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
    for (what, foreign) in [
        ("an address that the CPU does not have", page | 1 << 49),
        ("accessed where nobody keeps it", page),
    ] {
        let entry = Ept::decode(&EptFeatures::NONE, PAGE, foreign);
        assert_eq!(entry, Entry::Foreign(foreign), "{what}");
    }
}

#[test]
fn a_table_that_the_walker_has_accessed_is_still_a_table() {
    let table = Hpa::new(0x8000_1000);
    let raw = Ept::table(&EptFeatures::ALL, MIB2, table) | 1 << 8;
    assert_eq!(
        Ept::decode(&EptFeatures::ALL, MIB2, raw),
        Entry::Table(table)
    );
}

#[test]
fn the_walk_is_as_long_as_the_address_needs() {
    for (bits, levels, eptp) in [(32, 4, 0x5e), (48, 4, 0x5e), (49, 5, 0x66), (57, 5, 0x66)] {
        let geometry = Ept::geometry(&EptFeatures::ALL, bits).unwrap();
        assert_eq!(geometry.root().index() + 1, levels, "{bits} bits");
        assert_eq!(geometry.address_bits(), bits);
        for level in geometry.levels_down() {
            let shape = geometry.shape(level);
            assert_eq!((shape.index_bits, shape.table_bytes), (9, 4096));
            assert_eq!(shape.leaf, level <= GIB1);
        }
        // Write-back walks, the length less one, accessed and dirty flags.
        let root = Ept::root(&EptFeatures::ALL, &geometry, Hpa::new(0x1_2345_6000), 7);
        assert_eq!(root.eptp, 0x1_2345_6000 | eptp, "{bits} bits");
    }
    let geometry = Ept::geometry(&EptFeatures::NONE, 48).unwrap();
    let root = Ept::root(&EptFeatures::NONE, &geometry, Hpa::new(0x1000), 0);
    assert_eq!(root.eptp, 0x101e, "no accessed and dirty flags");
}

#[test]
fn widths_that_cannot_be_done() {
    for (features, highest) in [(EptFeatures::ALL, 57), (EptFeatures::NONE, 48)] {
        for bits in [0, 31, highest + 1, 255] {
            let error = Ept::geometry(&features, bits).unwrap_err();
            assert_eq!(
                (error.bits, error.lowest, error.highest),
                (bits, 32, highest)
            );
        }
    }
}

#[test]
fn what_the_hardware_asks_of_whoever_changes_entries() {
    let rules = Ept::rules(&EptFeatures::ALL);
    assert_eq!(rules.flush, FlushKind::Ipi);
    assert!(!rules.break_before_make && !rules.caches_invalid);
    assert!(rules.hardware_accessed && rules.hardware_dirty);
    let rules = Ept::rules(&EptFeatures::NONE);
    assert!(!rules.hardware_accessed && !rules.hardware_dirty);
}

#[test]
fn what_holds_whatever_the_guest_asks_for() {
    let (all, none) = (EptFeatures::ALL, EptFeatures::NONE);
    for memory in [MemoryType::WriteBack, MemoryType::WriteThrough] {
        assert!(Ept::forces(&all, memory) && !Ept::forces(&none, memory));
    }
    for memory in [MemoryType::NonCacheable, MemoryType::Device] {
        assert!(Ept::forces(&all, memory) && Ept::forces(&none, memory));
    }
}
