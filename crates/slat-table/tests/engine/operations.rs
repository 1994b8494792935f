//! Random operations, placed where they make trouble: around the boundaries of blocks.

use proptest::prelude::*;

use slat_table::attributes::Attributes;
use slat_table::geometry::{Geometry, Level};

use crate::setup::{DEVICE, GIB, RAM, ROM};

/// An operation, with places given relative to what makes trouble: block boundaries.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Install {
        place: Place,
        level: u8,
        count: u64,
        target: u64,
        attributes: usize,
    },
    Unmap {
        place: Place,
        length: Length,
        split: bool,
    },
    Split {
        place: Place,
        length: Length,
        to: u8,
    },
    Age {
        place: Place,
        length: Length,
    },
    Prune {
        place: Place,
        length: Length,
    },
}

/// A page near one of the anchors.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) anchor: usize,
    pub(crate) pages: i64,
}

/// A length: so many pages more or less than a page, a block, or everything.
#[derive(Clone, Debug)]
pub(crate) struct Length {
    pub(crate) unit: usize,
    pub(crate) pages: u64,
}

pub(crate) const ANCHORS: usize = 7;

/// Sizes of the two smallest blocks.
pub(crate) fn blocks(geometry: &Geometry) -> (u64, u64) {
    let level = Level::new(2);
    let large = if level <= geometry.root() {
        geometry.entry_bytes(level)
    } else {
        GIB
    };
    (geometry.entry_bytes(Level::new(1)), large)
}

/// Guest addresses at which blocks of every size meet, for a table of so many address bits.
pub(crate) fn anchors(bits: u8, block: u64, large: u64) -> [u64; ANCHORS] {
    let end = 1u64 << bits;
    [
        0,
        block,
        large,
        large + 3 * block,
        2 * large,
        end - large,
        end - block,
    ]
}

pub(crate) fn kinds() -> [Attributes; 5] {
    let old = Attributes {
        accessed: false,
        ..RAM
    };
    let marked = Attributes { software: 5, ..ROM };
    [RAM, ROM, DEVICE, old, marked]
}

pub(crate) fn place() -> impl Strategy<Value = Place> {
    (0..ANCHORS, -6i64..7).prop_map(|(anchor, pages)| Place { anchor, pages })
}

pub(crate) fn length() -> impl Strategy<Value = Length> {
    (
        prop_oneof![4 => Just(0usize), 3 => Just(1), 2 => Just(2), 1 => Just(3)],
        1u64..12,
    )
        .prop_map(|(unit, pages)| Length { unit, pages })
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    let install = (place(), 0u8..3, 1u64..9, 0u64..2, 0..5usize).prop_map(
        |(place, level, count, target, attributes)| Operation::Install {
            place,
            level,
            count,
            target,
            attributes,
        },
    );
    let unmap =
        (place(), length(), any::<bool>()).prop_map(|(place, length, split)| Operation::Unmap {
            place,
            length,
            split,
        });
    let split = (place(), length(), 0u8..3).prop_map(|(place, length, to)| Operation::Split {
        place,
        length,
        to,
    });
    let age = (place(), length()).prop_map(|(place, length)| Operation::Age { place, length });
    let prune = (place(), length()).prop_map(|(place, length)| Operation::Prune { place, length });
    prop_oneof![8 => install, 5 => unmap, 2 => split, 2 => age, 1 => prune]
}

/// Which allocation of an operation fails, if any.
pub(crate) fn failure() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => Just(None), 1 => (0u64..5).prop_map(Some)]
}
