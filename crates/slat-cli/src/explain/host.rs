//! The host of a layout: an address space with its mappings, and memory on paper.

use slat::host::Host as _;
use slat::table::address::{Hpa, HpaRange, Hva, HvaRange};
use slat::table::attributes::Access;
use slat::table::geometry::Geometry;
use slat::table::lock::StdLocks;
use slat_machine::modelled::Modelled;
use slat_mm::{AddressSpace, Backing, DriverDevice, MapError, Protection};

use super::error::ExamineError;
use super::paper::{Ground, NoFrames};
use super::zones::{Zones, hva_range};
use crate::format::device_memory;
use crate::layout::{Kind, Layout, Mapping};

/// The address space of the process behind a layout.
pub(crate) type Space = AddressSpace<NoFrames, StdLocks>;

/// The layout's mappings, with what is resident brought.
pub(crate) fn host<F: Modelled>(
    layout: &Layout,
    geometry: &Geometry,
    features: &F::Features,
) -> Result<Space, ExamineError> {
    let space = Space::new(NoFrames);
    let largest = geometry.leaf_levels().next();
    let step = largest.map_or(1, |level| geometry.entry_bytes(level));
    let mut ground = Ground::of(layout, step);
    for (index, mapping) in layout.mappings.iter().enumerate() {
        let Some(range) = mapped_range(mapping) else {
            continue;
        };
        let protection = if mapping.writable {
            Protection::ReadWrite
        } else {
            Protection::ReadOnly
        };
        let failed = |error| ExamineError::Map {
            name: mapping.name.clone(),
            error,
        };
        let range_of = |hpa| HpaRange::new(hpa, mapping.bytes).map_err(MapError::Physical);
        let device = if let Kind::Pfnmap { hpa } = mapping.kind {
            let memory = device_memory::<F>(features).ok_or_else(|| no_devices(layout, index))?;
            DriverDevice::new(range_of(Hpa::new(hpa)).map_err(failed)?, memory)
        } else {
            let hpa = ground.take(mapping.hva, mapping.bytes);
            let hpa = hpa.ok_or_else(|| no_room(layout, index))?;
            DriverDevice::ram(range_of(hpa).map_err(failed)?)
        };
        // Linear, and there once it is touched. An address space has no frames of all the sizes
        // that hosts have.
        let backing = Backing::Driver { device, offset: 0 };
        space.map(range, protection, backing).map_err(failed)?;
    }
    let zones = Zones::new(layout, false);
    for zone in zones.iter().filter(|zone| zone.resident) {
        let mut at = zone.range.start;
        while at < zone.range.end {
            // What cannot be brought is found missing later, and reported then.
            let page = space.fault(Hva::new(at), Access::Read);
            at = page.map_or(zone.range.end, |page| page.block.end().raw());
        }
    }
    Ok(space)
}

/// Where the host has `mapping`, unless nobody may access it.
pub(crate) fn mapped_range(mapping: &Mapping) -> Option<HvaRange> {
    hva_range(&mapping.range()).filter(|_| mapping.kind != Kind::NoAccess)
}

fn no_devices(layout: &Layout, index: usize) -> ExamineError {
    ExamineError::NoDevices {
        index,
        name: layout.mappings[index].name.clone(),
        format: layout.format.name(),
    }
}

fn no_room(layout: &Layout, index: usize) -> ExamineError {
    let Mapping { name, bytes, .. } = &layout.mappings[index];
    ExamineError::Room {
        index,
        name: name.clone(),
        bytes: *bytes,
        bits: layout.format.host_bits(),
        format: layout.format.name(),
    }
}
