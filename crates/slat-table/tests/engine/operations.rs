//! Random operations, placed where they make trouble: around the boundaries of blocks.

use proptest::prelude::*;

use slat_table::address::Hpa;
use slat_table::attributes::Attributes;
use slat_table::format::Format;
use slat_table::geometry::{Geometry, Level};

use crate::setup::{DEVICE, GIB, RAM, ROM};

/// An operation, with places given relative to what makes trouble: block boundaries.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Install {
        place: Place,
        level: u8,
        count: Count,
        target: Target,
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
    /// The hardware notes that a page was used or written.
    Use {
        place: Place,
        write: bool,
    },
}

/// A page near one of the anchors, or what follows its first 4 KiB.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) anchor: usize,
    pub(crate) pages: i64,
    pub(crate) inside: bool,
}

/// Neighbouring leaves: as many as so many runs have, and some more.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    pub(crate) runs: u64,
    pub(crate) more: u64,
}

/// Which host memory a range is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A place that every block around the guest address is aligned with.
    First,
    /// Another.
    Second,
    /// One that only single leaves are aligned with.
    Askew,
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

/// Guest addresses at which blocks of every size meet.
pub(crate) fn anchors(geometry: &Geometry) -> [u64; ANCHORS] {
    let end = 1u64 << geometry.address_bits();
    let (block, large) = blocks(geometry);
    [
        0,
        block,
        large,
        large + 3 * block,
        2 * large,
        end.saturating_sub(large),
        end - block,
    ]
    .map(|anchor| anchor.min(end - block))
}

/// Widths of a guest address for which there is a tree with at least a few blocks, up to `most`.
pub(crate) fn widths<F: Format>(features: &F::Features, most: u8) -> Vec<u8> {
    let possible = |bits: &u8| {
        F::geometry(features, *bits)
            .is_ok_and(|tree| tree.root() > Level::PAGE && 1 << *bits >= 4 * blocks(&tree).0)
    };
    (20..=most).filter(possible).collect()
}

/// Host address bits of a format's leaves.
pub(crate) fn host_bits<F: Format>(features: &F::Features) -> u8 {
    let exists = |bits: &u8| F::leaf(features, Level::PAGE, Hpa::new(1 << bits), RAM).is_ok();
    (30..63).take_while(exists).last().expect("leaves") + 1
}

/// What leaves may say, as far as the format can.
pub(crate) fn kinds<F: Format>(features: &F::Features) -> Vec<Attributes> {
    let old = Attributes {
        accessed: false,
        ..RAM
    };
    let marked = |software| Attributes { software, ..ROM };
    let dirty = Attributes { dirty: true, ..RAM };
    let possible = |kind: &Attributes| F::leaf(features, Level::PAGE, Hpa::new(0), *kind).is_ok();
    let kinds = [RAM, ROM, DEVICE, old, marked(1), marked(5), dirty];
    kinds.into_iter().filter(possible).collect()
}

pub(crate) fn place() -> impl Strategy<Value = Place> {
    (0..ANCHORS, -6i64..7, prop::bool::weighted(0.2)).prop_map(|(anchor, pages, inside)| Place {
        anchor,
        pages,
        inside,
    })
}

fn count() -> impl Strategy<Value = Count> {
    let runs = prop_oneof![2 => Just(0u64), 1 => 1u64..3];
    (runs, 1u64..9).prop_map(|(runs, more)| Count { runs, more })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![5 => Just(Target::First), 3 => Just(Target::Second), 1 => Just(Target::Askew)]
}

pub(crate) fn length() -> impl Strategy<Value = Length> {
    (
        prop_oneof![4 => Just(0usize), 3 => Just(1), 2 => Just(2), 1 => Just(3)],
        1u64..12,
    )
        .prop_map(|(unit, pages)| Length { unit, pages })
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    let level = prop_oneof![3 => Just(0u8), 2 => Just(1), 1 => Just(2), 1 => Just(3)];
    let install = (place(), level, count(), target(), 0..7usize).prop_map(
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
    let used = (place(), any::<bool>()).prop_map(|(place, write)| Operation::Use { place, write });
    prop_oneof![9 => install, 5 => unmap, 2 => split, 2 => age, 1 => prune, 1 => used]
}

/// Which allocation of an operation fails, if any.
pub(crate) fn failure() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => Just(None), 1 => (0u64..5).prop_map(Some)]
}
