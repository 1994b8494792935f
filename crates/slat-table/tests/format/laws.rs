//! The laws in the documentation of [`Format`], checked over the whole domain of attributes.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::{EncodeError, Entry, Format};
use slat_table::geometry::{Geometry, Level, MAX_LEVELS};

const EXECUTE: [Execute; 4] = [
    Execute::Never,
    Execute::Privileged,
    Execute::Unprivileged,
    Execute::Always,
];
const MEMORY: [MemoryType; 5] = [
    MemoryType::WriteBack,
    MemoryType::WriteThrough,
    MemoryType::NonCacheable,
    MemoryType::Device,
    MemoryType::DeviceStrict,
];
const BOOLS: [bool; 2] = [false, true];

/// Every combination of attributes, with the software bits given.
pub(crate) fn all_attributes(software: &[u8]) -> Vec<Attributes> {
    let mut all = Vec::new();
    for read in BOOLS {
        for write in BOOLS {
            for execute in EXECUTE {
                for memory in MEMORY {
                    for accessed in BOOLS {
                        for dirty in BOOLS {
                            all.extend(software.iter().map(|&software| Attributes {
                                permissions: Permissions {
                                    read,
                                    write,
                                    execute,
                                },
                                memory,
                                accessed,
                                dirty,
                                software,
                                contiguous: false,
                            }));
                        }
                    }
                }
            }
        }
    }
    all
}

/// Checks every law for one set of hardware features.
pub(crate) fn check<F: Format>(features: &F::Features, address_bits: u8) {
    let geometry = F::geometry(features, address_bits).unwrap();
    any_level_can_be_asked_about::<F>(features);
    assert!(geometry.has_shifts(F::SHIFTS));
    let software: Vec<u8> = (0..=16).chain([0x80, 0xff]).collect();
    let attributes = all_attributes(&software);
    for level in geometry.levels_down() {
        empty_is_empty::<F>(features, level);
        let shape = geometry.shape(level);
        assert!(shape.leaf || shape.run_bits == 0, "runs of what is no leaf");
        if level != Level::PAGE {
            tables_are_tables::<F>(features, &geometry, level);
        }
        let mut leaves = 0;
        for &attributes in &attributes {
            leaves += leaves_are_leaves::<F>(features, &geometry, level, attributes);
            if attributes.software == 0 {
                runs_are_runs::<F>(features, &geometry, level, attributes);
            }
        }
        assert_eq!(
            leaves != 0,
            geometry.shape(level).leaf,
            "{level:?} of {features:?}"
        );
    }
}

/// Levels that no tree of the format has are no reason to panic, up to the one above the highest
/// root of any format.
fn any_level_can_be_asked_about<F: Format>(features: &F::Features) {
    let highest = u8::try_from(MAX_LEVELS).unwrap();
    for level in (0..=highest).map(Level::new) {
        assert_ne!(F::leaf_step(level), 0, "{level:?}");
        empty_is_empty::<F>(features, level);
        for bit in 0..64 {
            let _ = F::decode(features, level, 1 << bit);
            let _ = F::decode(features, level, !(1 << bit));
        }
    }
}

fn empty_is_empty<F: Format>(features: &F::Features, level: Level) {
    let empty = F::empty(level);
    assert_eq!(F::decode(features, level, empty), Entry::Empty);
    assert!(F::is_empty(level, empty) && !F::is_table(level, empty));
}

fn tables_are_tables<F: Format>(features: &F::Features, geometry: &Geometry, level: Level) {
    let bytes = u64::from(geometry.shape(level.down().unwrap()).table_bytes);
    for table in [1, 2, 5, 0x1_2345].map(|number| Hpa::new(number * bytes)) {
        let raw = F::table(features, level, table);
        assert_eq!(F::decode(features, level, raw), Entry::Table(table));
        assert!(F::is_table(level, raw) && !F::is_empty(level, raw));
        assert_eq!(F::address(features, level, raw), table);
    }
}

/// Checks the leaves with these attributes; how many there are.
fn leaves_are_leaves<F: Format>(
    features: &F::Features,
    geometry: &Geometry,
    level: Level,
    attributes: Attributes,
) -> usize {
    let bytes = geometry.entry_bytes(level);
    let mut leaves = 0;
    for hpa in [0, 1, 0x155].map(|number| Hpa::new(number * bytes)) {
        let Ok(raw) = F::leaf(features, level, hpa, attributes) else {
            continue;
        };
        leaves += 1;
        assert_eq!(
            F::decode(features, level, raw),
            Entry::Leaf { hpa, attributes }
        );
        assert!(!F::is_table(level, raw) && !F::is_empty(level, raw));
        assert_eq!(F::address(features, level, raw), hpa);
        let next = Hpa::new(hpa.raw() + bytes);
        assert_eq!(
            F::leaf(features, level, next, attributes),
            Ok(raw + F::leaf_step(level))
        );
        let unaligned = Hpa::new(hpa.raw() + bytes / 2);
        assert!(matches!(
            F::leaf(features, level, unaligned, attributes),
            Err(EncodeError::Unaligned { .. })
        ));
        // Once for each of the attributes is enough.
        if hpa.raw() == bytes {
            for bit in 0..64 {
                what_is_decoded_can_be_encoded::<F>(features, level, raw ^ 1 << bit);
            }
        }
    }
    leaves
}

/// Checks the leaves of a run with these attributes, where the level has runs.
fn runs_are_runs<F: Format>(
    features: &F::Features,
    geometry: &Geometry,
    level: Level,
    attributes: Attributes,
) {
    let Some(run) = geometry.run_bytes(level) else {
        return;
    };
    let bytes = geometry.entry_bytes(level);
    let attributes = Attributes {
        contiguous: true,
        ..attributes
    };
    let first = Hpa::new(3 * run);
    let Ok(first_raw) = F::leaf(features, level, first, attributes) else {
        return;
    };
    let mut expected = first_raw;
    for number in 0..run / bytes {
        let hpa = Hpa::new(first.raw() + number * bytes);
        let raw = F::leaf(features, level, hpa, attributes).unwrap();
        assert_eq!(raw, expected, "{number} of {level:?}");
        let leaf = Entry::Leaf {
            hpa: first,
            attributes,
        };
        assert_eq!(
            F::decode(features, level, raw),
            leaf,
            "{number} of {level:?}"
        );
        assert_eq!(F::address(features, level, raw), first);
        assert!(F::is_in_run(level, raw));
        assert!(!F::is_table(level, raw) && !F::is_empty(level, raw));
        expected = raw.wrapping_add(F::run_step(level));
    }
}

/// A raw value means exactly one thing: if it decodes to a leaf, that leaf encodes to it (one of a
/// run, to the run's first). So a bit that the encoder does not know can never be lost by decoding and encoding again.
fn what_is_decoded_can_be_encoded<F: Format>(features: &F::Features, level: Level, raw: u64) {
    let entry = F::decode(features, level, raw);
    assert_eq!(entry == Entry::Empty, F::is_empty(level, raw), "{raw:#x}");
    assert_eq!(
        matches!(entry, Entry::Table(_)),
        F::is_table(level, raw),
        "{raw:#x}"
    );
    if let Entry::Leaf { hpa, attributes } = entry {
        assert_eq!(F::is_in_run(level, raw), attributes.contiguous, "{raw:#x}");
        match F::leaf(features, level, hpa, attributes) {
            Ok(again) if attributes.contiguous => assert!(
                (0..=128).any(|number| again + number * F::run_step(level) == raw),
                "{raw:#x}: {entry:?}"
            ),
            Ok(again) => assert_eq!(again, raw, "{entry:?}"),
            Err(error) => {
                assert!(
                    matches!(error, EncodeError::AddressWidth { .. }),
                    "{raw:#x}: {error}"
                );
            }
        }
    }
}
