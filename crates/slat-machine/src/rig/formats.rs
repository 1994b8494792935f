//! The formats that a run can have: every row of [`every_format!`](slat_table::every_format), by
//! name.

use core::fmt;

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, MemoryType, Permissions};
use slat_table::every_format;
use slat_table::format::Format as _;
use slat_table::geometry::{Geometry, Level};

use super::plan::{Features, Plan};
use super::{Options, Outcome, RigError, run_on};
use crate::modelled::Modelled;

/// A format with the hardware that it runs on.
pub struct Row {
    name: &'static str,
    address_bits: u8,
    geometry: fn(u8, Features) -> Option<Geometry>,
    devices: fn(Features) -> bool,
    fills_tables: fn() -> bool,
    run: fn(&Plan, &Options) -> Result<Outcome, RigError>,
}

macro_rules! rows {
    ($($test:ident $name:literal $($format:ident)::+ $($features:ident)::+ $address_bits:literal;)*) => {
        /// All rows.
        pub static ROWS: &[Row] = &[$(Row {
            name: $name,
            address_bits: $address_bits,
            geometry: |bits, has| geometry::<$($format)::+>($($features)::+, bits, has),
            devices: |has| has_devices::<$($format)::+>($($features)::+, has),
            fills_tables: || <$($format)::+>::empty(Level::PAGE) != 0,
            run: |plan, options| run_on::<$($format)::+>(plan, options, $($features)::+),
        }),*];
    };
}

every_format!(rows);

impl Row {
    /// The row called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name == name)
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Bits of the widest guest physical address.
    pub const fn address_bits(&self) -> u8 {
        self.address_bits
    }

    /// The tree for guest addresses of so many bits; `None` if CPUs that have `has` cannot do so
    /// many or so few.
    pub fn geometry(&self, address_bits: u8, has: Features) -> Option<Geometry> {
        (self.geometry)(address_bits, has)
    }

    /// Whether device memory can be mapped so that it holds against the guest.
    pub fn has_devices(&self, has: Features) -> bool {
        (self.devices)(has)
    }

    /// Whether an empty entry is not zero, so that a new table takes a store for each of them.
    pub fn fills_tables(&self) -> bool {
        (self.fills_tables)()
    }

    pub(crate) fn run(&self, plan: &Plan, options: &Options) -> Result<Outcome, RigError> {
        (self.run)(plan, options)
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

fn geometry<F: Modelled>(features: F::Features, bits: u8, has: Features) -> Option<Geometry> {
    F::geometry(&F::equipped(features, &has), bits).ok()
}

fn has_devices<F: Modelled>(features: F::Features, has: Features) -> bool {
    device_memory::<F>(&F::equipped(features, &has)).is_some()
}

/// What a host with these CPUs says of a device's memory: where the format has no types, or the
/// CPUs lack them, it is memory like any other. `None` if no leaf that shows a device can be made.
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
    fn every_row_is_found_by_its_name_and_does_its_widest_address() {
        let has = Features {
            hardware_accessed: true,
            hardware_dirty: true,
            force_write_back: true,
        };
        for row in ROWS {
            let found = Row::named(row.name).expect("it is listed");
            assert!(core::ptr::eq(found, row), "{row:?} is there twice");
            assert!(row.geometry(row.address_bits, has).is_some(), "{row:?}");
        }
        assert!(Row::named("none such").is_none());
    }
}
