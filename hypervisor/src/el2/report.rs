//! Puts the memory report together when the guest has stopped.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use slat::report::{Part, RegionReport};
use slat_hypervisor::options::Options;
use slat_hypervisor::span::PAGE_SIZE;
use slat_report::{Blocks, Faults, Notifiers, Region, Report, Tables};

use super::memory::{Guest, GuestRegion, Memory};
use super::run::Finished;
use super::semihosting;

/// The report of a run that is over, but for what churn did, which is known only when the guest
/// has been taken apart.
pub(super) fn build(
    guest: &Guest,
    finished: &Finished,
    options: &Options,
    seed: Option<u64>,
    populated_by_loader: u64,
) -> Report {
    let memory = &guest.memory;
    let stats = memory.stats();
    let exits = finished
        .exits
        .iter()
        .map(|(reason, count)| (reason.to_string(), *count));
    Report {
        guest_memory: options.memory,
        seed,
        mmio: options.mmio,
        ram: options.ram,
        outcome: finished.outcome.clone(),
        regions: guest
            .regions
            .iter()
            .map(|part| region(memory, part))
            .collect(),
        faults: Faults {
            populated_by_loader,
            ..finished.faults.clone()
        },
        exits: exits.collect(),
        tables: Tables {
            pages: stats.table_bytes / PAGE_SIZE,
            bytes: stats.table_bytes,
            minimum_bytes: memory.minimum_table_bytes(),
        },
        flushes: memory.table().platform().flushes(),
        notifiers: Notifiers {
            invalidations: stats.invalidations,
            hits: stats.invalidations_hit,
        },
        times: finished.clock.times(),
        churn: None,
        model: None,
    }
}

/// Sends the report out, as one line of JSON.
pub(super) fn send(report: &Report) {
    let line = serde_json::to_string(report)
        .unwrap_or_else(|error| panic!("the report cannot be written: {error}"));
    // A string from JSON has no zero byte: it is escaped.
    let line = CString::new(line + "\n").unwrap_or_else(|error| panic!("the report: {error}"));
    semihosting::write(&line);
}

fn region(memory: &Memory, region: &GuestRegion) -> Region {
    let start = region.range.start();
    let mut blocks = Blocks::default();
    memory
        .table()
        .for_each_leaf(&region.range, |leaf, _| blocks.add(leaf.bytes(), 1));
    Region {
        name: region.name.clone(),
        kind: region.kind,
        gpa: start.raw(),
        hpa: memory
            .translate(start)
            .map(|translation| translation.hpa.raw()),
        size: region.range.bytes(),
        mapped: region.mapped,
        mapped_at_creation: region.report.mapped_bytes(),
        mapped_bytes: blocks.bytes(),
        blocks,
        why_not_larger: reasons(&region.report),
        faults: region.faults,
    }
}

fn reasons(report: &RegionReport) -> Vec<String> {
    let parts = report.parts().iter();
    parts
        .flat_map(Part::reasons)
        .map(|(reason, bytes)| format!("{reason} ({bytes} bytes)"))
        .collect()
}
