//! The memory report, for people and as JSON.
//!
//! The hypervisor reports counts and addresses ([`slat_report::Report`], whose docs explain each
//! field); the guest adds when its init ran. The JSON file holds the report's fields and these:
//!
//! * `init_ns`: from the guest's entry to its init in nanoseconds, or null;
//! * `guest`: what the guest said of itself, in order: a `word` and `fields` for each line;
//! * `wall_ms`: from the start of the machine to its end in milliseconds.

use core::fmt::{self, Display};
use core::time::Duration;

use serde::Serialize;
use slat_report::Report;
use slat_report::text::{Text, nanoseconds};

use crate::console::Marker;
use crate::guest::Run;

/// The report and what the guest said.
#[derive(Debug, Serialize)]
pub(crate) struct Full<'a> {
    #[serde(flatten)]
    report: Option<&'a Report>,
    init_ns: Option<u64>,
    guest: Vec<Marker>,
    wall_ms: u128,
}

impl<'a> Full<'a> {
    /// Collects what is known of `run`.
    pub(crate) fn new(run: &'a Run) -> Self {
        let report = run.report.as_ref();
        let init = report.zip(run.ticks_to_init());
        Self {
            report,
            init_ns: init.map(|(report, ticks)| nanoseconds(ticks, report.times.counter_hz)),
            guest: run.console.markers().collect(),
            wall_ms: run.elapsed.as_millis(),
        }
    }
}

impl Display for Full<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(report) = self.report else {
            return Ok(());
        };
        let to_init = self.init_ns.map(Duration::from_nanos);
        Text::new(report).to_init(to_init).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use slat_report::{Churn, Kind, Mapped, Outcome, Region};

    use super::*;

    fn sample() -> Report {
        let region = |name: &str, kind, gpa, size, faults| Region {
            name: name.to_owned(),
            kind,
            gpa,
            hpa: Some(gpa + 0x800_0000),
            size,
            mapped: Mapped::Create,
            mapped_at_creation: size,
            mapped_bytes: size,
            blocks: [(4096, 1), (2 << 20, 2)].into_iter().collect(),
            why_not_larger: vec!["too small for 2M".to_owned()],
            faults,
        };
        Report {
            guest_memory: 512 << 20,
            seed: Some(7),
            mmio: Mapped::Create,
            ram: Mapped::Fault,
            outcome: Outcome::Off,
            regions: vec![
                region("uart", Kind::Device, 0x900_0000, 0x1000, 0),
                region("ram", Kind::Ram, 0x4000_0000, 512 << 20, 15),
            ],
            faults: slat_report::Faults {
                ram: 15,
                ..Default::default()
            },
            exits: BTreeMap::from([("data abort".to_owned(), 15), ("psci off".to_owned(), 1)]),
            tables: slat_report::Tables {
                pages: 7,
                bytes: 28672,
                minimum_bytes: 28672,
            },
            flushes: slat_report::Flushes::default(),
            notifiers: slat_report::Notifiers::default(),
            times: slat_report::Times {
                counter_hz: 62_500_000,
                guest_ns: 2_500_000_000,
                el2: 625_000,
                el2_share_bp: 104,
                ..Default::default()
            },
            churn: Some(Churn {
                changes: BTreeMap::from([("migrate 2M".to_owned(), 3)]),
                total: 3,
                migrations_2m: 3,
                frames_before: 10,
                frames_after: 9,
                ..Default::default()
            }),
            model: None,
        }
    }

    fn full(report: &Report) -> Full<'_> {
        Full {
            report: Some(report),
            init_ns: Some(1_500_000_000),
            guest: Vec::new(),
            wall_ms: 3000,
        }
    }

    #[test]
    fn the_text_tells_when_init_ran() {
        let report = sample();
        let text = anstream::adapter::strip_str(&full(&report).to_string()).to_string();
        assert!(text.contains("to init       1.500s"), "{text}");
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let report = sample();
        let json = serde_json::to_value(full(&report)).unwrap();
        assert_eq!(json["guest_memory"], 512 << 20);
        assert_eq!(json["regions"][1]["faults"], 15);
        assert_eq!(json["init_ns"], 1_500_000_000_u64);
        assert_eq!(json["outcome"], "off");
    }
}
