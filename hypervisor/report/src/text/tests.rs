//! What the text says of a boot, and of a run on the modelled machine.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec;

use super::*;
use crate::{Faults, Flushes, Kind, Notifiers, Region, Tables};

fn region(name: &str, kind: Kind, gpa: u64, size: u64) -> Region {
    Region {
        name: name.to_owned(),
        kind,
        gpa,
        hpa: Some(gpa + 0x800_0000),
        size,
        mapped: Mapped::Create,
        mapped_at_creation: 0,
        mapped_bytes: 0,
        blocks: Blocks::default(),
        why_not_larger: Vec::new(),
        faults: 0,
    }
}

fn boot() -> Report {
    let uart = Region {
        mapped_at_creation: 0x1000,
        mapped_bytes: 0x1000,
        blocks: [(4096, 1)].into_iter().collect(),
        why_not_larger: vec!["too small for 2M".to_owned()],
        ..region("uart", Kind::Device, 0x900_0000, 0x1000)
    };
    let ram = Region {
        faults: 15,
        mapped_bytes: (4 << 20) + 0x1000,
        blocks: [(4096, 1), (2 << 20, 2)].into_iter().collect(),
        ..region("ram", Kind::Ram, 0x4000_0000, 512 << 20)
    };
    Report {
        guest_memory: 512 << 20,
        seed: Some(7),
        mmio: Mapped::Create,
        ram: Mapped::Fault,
        outcome: Outcome::Off,
        regions: vec![uart, ram],
        faults: Faults {
            ram: 15,
            populated_by_loader: 19,
            ..Faults::default()
        },
        exits: BTreeMap::from([("data abort".to_owned(), 15), ("psci off".to_owned(), 1)]),
        tables: Tables {
            pages: 7,
            bytes: 28672,
            minimum_bytes: 28672,
        },
        flushes: Flushes::default(),
        notifiers: Notifiers::default(),
        times: Times {
            counter_hz: 62_500_000,
            guest_ns: 2_500_000_000,
            el2: 625_000,
            el2_share_bp: 104,
            ..Times::default()
        },
        churn: Some(Churn {
            changes: BTreeMap::from([("migrate 2M".to_owned(), 3)]),
            total: 3,
            migrations_2m: 3,
            frames_before: 10,
            frames_after: 9,
            ..Churn::default()
        }),
        model: None,
    }
}

/// A run on the modelled machine: no counter, no exits, no loader.
fn model() -> Report {
    Report {
        regions: vec![region("window", Kind::Hole, 0x9000_0000, 1 << 20)],
        faults: Faults::default(),
        exits: BTreeMap::new(),
        times: Times::default(),
        churn: None,
        model: Some(Model {
            seed: 42,
            guest_cpus: 4,
            host_cpus: 2,
            steps: 1_000_000,
            accesses: 31_415,
        }),
        ..boot()
    }
}

fn plain(report: &Report) -> String {
    let text = Text::new(report).to_init(Some(Duration::from_millis(1500)));
    anstream::adapter::strip_str(&text.to_string()).to_string()
}

fn row<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find(|line| line.trim_start().starts_with(name))
        .unwrap_or_else(|| panic!("no line `{name}` in\n{text}"))
}

#[test]
fn the_table_of_regions_is_aligned() {
    let text = plain(&boot());
    let position = |name: &str, word: &str| {
        let line = row(&text, name);
        line.find(word)
            .unwrap_or_else(|| panic!("no `{word}` in `{line}`"))
    };
    assert_eq!(position("name", "gpa"), position("uart", "0x000009000000"));
    assert_eq!(position("name", "gpa"), position("ram ", "0x000040000000"));
    assert_eq!(position("name", "hpa"), position("ram ", "0x000048000000"));
}

#[test]
fn a_boot_tells_its_times_exits_and_churn() {
    let text = plain(&boot());
    for expected in [
        "512M of RAM mapped on fault, devices at creation",
        "powered off",
        "2 x 2M + 1 x 4K",
        "too small for 2M",
        "populated 19 frames, no faults",
        "16: data abort 15, psci off 1",
        "to init       1.500s",
        "in EL2        10.000ms, 1.04 %",
        "10 before, 9 after",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    assert!(!text.contains("Model"), "{text}");
}

#[test]
fn a_modelled_run_leaves_out_what_it_has_not() {
    let text = plain(&model());
    for expected in ["seed          42", "4 run the guest, 2 the host", "31415"] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    for absent in ["Guest time", "exits", "loader", "Changes", "powered"] {
        assert!(!text.contains(absent), "`{absent}` in\n{text}");
    }
}

#[test]
fn when_a_region_was_mapped_is_told_from_what_happened() {
    let text = plain(&boot());
    assert!(row(&text, "uart").contains("at creation"));
    assert!(row(&text, "ram ").contains("on fault"));
    assert!(row(&plain(&model()), "window").contains("never"));

    // All that faults mapped was taken away again.
    let mut report = boot();
    report.regions[1].mapped_bytes = 0;
    assert!(row(&plain(&report), "ram ").contains("on fault"));
    report.regions[1].faults = 0;
    assert!(row(&plain(&report), "ram ").contains("never"));
}
