//! What there is to know about a row, asked of the format itself.

use serde::Serialize;
use slat_machine::modelled::Modelled;
use slat_report::size::Size;
use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::format::{ByteOrder, FlushKind};
use slat_table::geometry::{Geometry, Level};

use super::Row;
use crate::columns::columns;

/// A row, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about hardware, not a state"
)]
pub struct About {
    /// The row's name.
    pub name: &'static str,
    /// The format's name for people.
    pub title: &'static str,
    /// Bits of a guest physical address in the tree described here.
    pub address_bits: u8,
    /// The fewest that the hardware does.
    pub fewest_address_bits: u8,
    /// The most that the hardware does.
    pub most_address_bits: u8,
    /// Bits of a host physical address.
    pub host_bits: u8,
    /// Levels of tables.
    pub levels: usize,
    /// Bytes of the root.
    pub root_bytes: u32,
    /// What a leaf can map, pages first.
    pub leaves: Vec<Size>,
    /// What a run of leaves can map that hardware may keep as one translation.
    pub runs: Vec<Size>,
    /// Whether a device's memory can be shown to a guest.
    pub devices: bool,
    /// Whether an entry's most significant byte comes first.
    pub big_endian: bool,
    /// How other CPUs are made to forget.
    pub flush: FlushBy,
    /// Whether a live leaf has to become invalid before it becomes another.
    pub break_before_make: bool,
    /// Whether an added mapping needs a flush of the CPU that missed it.
    pub caches_invalid: bool,
    /// Who notes that a page was used.
    pub accessed: AccessedKept,
    /// Who notes that a page was written.
    pub dirty: DirtyKept,
}

/// How other CPUs are made to forget translations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "the two ways that there are")]
pub enum FlushBy {
    /// An instruction reaches all of them.
    Broadcast,
    /// Each is interrupted and does it itself.
    Interrupt,
}

/// Who notes that a page was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "the three ways that there are")]
pub enum AccessedKept {
    /// The hardware.
    Hardware,
    /// The host, at the fault that a page not used yet gives.
    Host,
    /// Nobody: every page counts as used.
    Nobody,
}

/// Who notes that a page was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "the two ways that there are")]
pub enum DirtyKept {
    /// The hardware.
    Hardware,
    /// The host, at the fault that a write to a write-protected page gives.
    Host,
}

impl About {
    pub(super) fn of<F: Modelled>(row: &Row, features: &F::Features) -> Self {
        let rules = F::rules(features);
        let does = |bits: &u8| F::geometry(features, *bits).is_ok();
        let geometry = F::geometry(features, row.address_bits).ok();
        let unused = Attributes {
            accessed: false,
            ..Attributes::new(Permissions::ALL, MemoryType::WriteBack)
        };
        let says_unused = F::leaf(features, Level::PAGE, Hpa::new(0), unused).is_ok();
        Self {
            name: row.name,
            title: F::NAME,
            address_bits: row.address_bits,
            fewest_address_bits: (0..64).find(does).unwrap_or(row.address_bits),
            most_address_bits: (0..64).rev().find(does).unwrap_or(row.address_bits),
            host_bits: row.host_bits(),
            levels: geometry.map_or(0, |geometry| geometry.root().index() + 1),
            root_bytes: geometry.map_or(0, |geometry| geometry.shape(geometry.root()).table_bytes),
            leaves: sizes(geometry.as_ref(), |geometry, level| {
                Some(geometry.entry_bytes(level))
            }),
            runs: sizes(geometry.as_ref(), Geometry::run_bytes),
            devices: row.has_devices(),
            big_endian: F::BYTE_ORDER == ByteOrder::Big,
            flush: match rules.flush {
                FlushKind::Broadcast => FlushBy::Broadcast,
                FlushKind::Ipi => FlushBy::Interrupt,
            },
            break_before_make: rules.break_before_make,
            caches_invalid: rules.caches_invalid,
            accessed: match (rules.hardware_accessed, says_unused) {
                (true, _) => AccessedKept::Hardware,
                (false, true) => AccessedKept::Host,
                (false, false) => AccessedKept::Nobody,
            },
            dirty: if rules.hardware_dirty {
                DirtyKept::Hardware
            } else {
                DirtyKept::Host
            },
        }
    }
}

/// The head of the table of formats.
const HEAD: [[&str; 11]; 2] = [
    [
        "",
        "guest",
        "",
        "host",
        "",
        "",
        "",
        "",
        "live",
        "faults",
        "notes use,",
    ],
    [
        "name", "bits", "levels", "bits", "root", "leaves", "runs", "flush", "change", "flush",
        "writes",
    ],
];

impl About {
    /// All of `rows` as text.
    pub(crate) fn table(rows: &[Self]) -> String {
        let rows: Vec<_> = rows.iter().map(Self::cells).collect();
        columns(&HEAD, &rows, &[5, 6, 7, 8, 9, 10])
    }

    fn cells(&self) -> [String; 11] {
        let all = |sizes: &[Size]| {
            let sizes: Vec<_> = sizes.iter().map(Size::to_string).collect();
            if sizes.is_empty() {
                "-".to_owned()
            } else {
                sizes.join(" ")
            }
        };
        let accessed = match self.accessed {
            AccessedKept::Hardware => "hardware",
            AccessedKept::Host => "host",
            AccessedKept::Nobody => "nobody",
        };
        let dirty = match self.dirty {
            DirtyKept::Hardware => "hardware",
            DirtyKept::Host => "host",
        };
        [
            self.name.to_owned(),
            self.address_bits.to_string(),
            self.levels.to_string(),
            self.host_bits.to_string(),
            Size(self.root_bytes.into()).to_string(),
            all(&self.leaves),
            all(&self.runs),
            match self.flush {
                FlushBy::Broadcast => "broadcast",
                FlushBy::Interrupt => "interrupt",
            }
            .to_owned(),
            if self.break_before_make {
                "break first"
            } else {
                "at once"
            }
            .to_owned(),
            if self.caches_invalid { "yes" } else { "no" }.to_owned(),
            format!("{accessed}, {dirty}"),
        ]
    }
}

/// A size for each level that has leaves, pages first.
fn sizes(geometry: Option<&Geometry>, of: impl Fn(&Geometry, Level) -> Option<u64>) -> Vec<Size> {
    let mut sizes: Vec<_> = geometry
        .into_iter()
        .flat_map(|geometry| geometry.leaf_levels().map(move |level| (geometry, level)))
        .filter_map(|(geometry, level)| of(geometry, level).map(Size))
        .collect();
    sizes.reverse();
    sizes
}
