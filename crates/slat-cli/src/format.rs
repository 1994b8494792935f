//! The formats that second-level tables can have, by name: every row of
//! [`every_format!`](slat_table::every_format).
//!
//! A [`Row`] is a format with hardware that has it. What the command does for one row it does for
//! all: `slat explain` builds the row's tables, `slat run` runs them on its hardware, and `slat
//! formats` tells what [`About`] knows.

mod about;
mod sizes;

use core::fmt;

use slat_machine::modelled::Modelled;
use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::every_format;
use slat_table::format::GeometryError;
use slat_table::geometry::{Geometry, Level};

use crate::explain::{Examine, engine};
use crate::layout::HOST_END;

pub use about::{About, AccessedKept, DirtyKept, FlushBy};
pub use sizes::Sizes;

/// A format with hardware that has it.
pub struct Row {
    name: &'static str,
    address_bits: u8,
    geometry: fn(u8) -> Result<Geometry, GeometryError>,
    host_bits: fn() -> u8,
    devices: fn() -> bool,
    about: fn(&Row) -> About,
    pub(crate) examine: Examine,
}

macro_rules! rows {
    ($($test:ident $name:literal $($format:ident)::+ $($features:ident)::+ $address_bits:literal;)*) => {
        /// All rows, the default first.
        pub static ROWS: &[Row] = &[$(Row {
            name: $name,
            address_bits: $address_bits,
            geometry: |bits| geometry::<$($format)::+>(&$($features)::+, bits),
            host_bits: || host_bits::<$($format)::+>(&$($features)::+),
            devices: || device_memory::<$($format)::+>(&$($features)::+).is_some(),
            about: |row| About::of::<$($format)::+>(row, &$($features)::+),
            examine: |layout| engine::examine_as::<$($format)::+>(layout, $($features)::+),
        }),*];
    };
}

every_format!(rows);

impl Row {
    /// The row called `name`.
    ///
    /// # Errors
    ///
    /// [`UnknownFormat`] if none is.
    pub fn named(name: &str) -> Result<&'static Self, UnknownFormat> {
        let named = ROWS.iter().find(|row| row.name == name);
        named.ok_or_else(|| UnknownFormat(name.to_owned()))
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Bits of a guest physical address, where nothing else is asked for: those of the tree that
    /// the row is named after.
    pub const fn address_bits(&self) -> u8 {
        self.address_bits
    }

    /// Bits of the host physical addresses that an entry can hold.
    pub fn host_bits(&self) -> u8 {
        (self.host_bits)()
    }

    /// The end of the host physical addresses that an entry can hold.
    pub fn host_end(&self) -> u64 {
        1_u64
            .checked_shl(self.host_bits().into())
            .unwrap_or(HOST_END)
    }

    /// Whether a device's memory can be shown so that it holds against the guest, which may not
    /// execute it either.
    pub fn has_devices(&self) -> bool {
        (self.devices)()
    }

    /// The tree for guest physical addresses of so many bits.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] if the hardware does not do that many or that few.
    pub fn geometry(&self, address_bits: u8) -> Result<Geometry, GeometryError> {
        (self.geometry)(address_bits)
    }

    /// The sizes of pages of a host of this architecture.
    pub fn sizes(&self) -> Sizes {
        // Every row does the width that it is named after; see the test.
        (self.geometry)(self.address_bits)
            .map_or(Sizes::PAGES_ONLY, |geometry| Sizes::of(&geometry))
    }

    /// What there is to know about it.
    pub fn about(&self) -> About {
        (self.about)(self)
    }
}

impl Default for &'static Row {
    fn default() -> Self {
        &ROWS[0]
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Row {}

/// No format has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no format `{0}`: there are {names}", names = names())]
pub struct UnknownFormat(pub String);

fn names() -> String {
    let names: Vec<_> = ROWS.iter().map(Row::name).collect();
    names.join(", ")
}

fn geometry<F: Modelled>(features: &F::Features, bits: u8) -> Result<Geometry, GeometryError> {
    F::geometry(features, bits)
}

fn host_bits<F: Modelled>(features: &F::Features) -> u8 {
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let holds = |bit: &u8| F::leaf(features, Level::PAGE, Hpa::new(1 << bit), ram).is_ok();
    (0..64).rev().find(holds).map_or(0, |bit| bit + 1)
}

/// How a device's memory is shown to a guest so that it holds against it: where the format has no
/// types, or the CPUs lack them, it is memory like any other. `None` if no leaf that shows a device
/// can be made.
pub(crate) fn device_memory<F: Modelled>(features: &F::Features) -> Option<MemoryType> {
    let holds = |memory: &MemoryType| {
        let attributes = Attributes::new(Permissions::READ_WRITE, *memory);
        F::forces(features, *memory)
            && F::leaf(features, Level::PAGE, Hpa::new(0), attributes).is_ok()
    };
    [MemoryType::Device, MemoryType::WriteBack]
        .into_iter()
        .find(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_name_its_width_and_hardware_to_run_on() {
        for row in ROWS {
            assert_eq!(Row::named(row.name), Ok(row));
            let geometry = row.geometry(row.address_bits).expect("its own width");
            assert_eq!(
                geometry.entry_bytes(Level::PAGE),
                row.sizes().small(),
                "{row:?}"
            );
            let run = slat_machine::rig::Row::named(row.name).expect("it can be run");
            assert_eq!(run.address_bits(), row.address_bits);
        }
        assert_eq!(<&Row>::default().name(), "arm64-4k");
    }

    #[test]
    fn host_addresses_have_the_bits_that_entries_hold() {
        let of = |name| Row::named(name).unwrap().host_bits();
        assert_eq!(of("armv7"), 40);
        assert_eq!(of("sv32x4"), 34);
        assert_eq!(of("arm64-4k"), 48);
        assert_eq!(of("arm64-64k-lpa"), 52);
        assert_eq!(of("sv48x4"), 56);
    }

    #[test]
    fn a_name_that_is_none_is_answered_with_those_there_are() {
        let error = Row::named("arm65").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no format `arm65`: there are arm64-4k, "),
            "{error}"
        );
        assert!(error.ends_with("power-64k"), "{error}");
    }
}
