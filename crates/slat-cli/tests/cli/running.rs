//! `slat run`, `slat check`, and what comes with the command.

use super::{example, file, slat, text};

#[test]
fn the_built_in_scenario_runs_clean_and_replays() {
    let arguments = ["run", "--seed", "7", "--steps", "20000"];
    let out = slat(&arguments).expect(0);
    for expected in [
        "256M of RAM",
        "BAR       device",
        "ROM       rom",
        "NVMe      revocable",
        "reserved  hole",
        "seed          7",
        "4 run the guest, 2 the host",
        "0 violations",
    ] {
        assert!(out.contains(expected), "no `{expected}` in\n{out}");
    }
    assert_eq!(
        out,
        slat(&arguments).expect(0),
        "the same seed runs the same"
    );
}

#[test]
fn a_run_in_json_says_what_is_mapped_when() {
    let report = slat(&["run", "--seed", "7", "--steps", "20000", "--json"]).json();
    assert_eq!(report["violations"], 0);
    assert_eq!(report["model"]["seed"], 7);
    let regions = report["regions"].as_array().unwrap();
    let region = |name: &str| {
        regions
            .iter()
            .find(|region| region["name"] == name)
            .unwrap()
    };
    assert_eq!(region("BAR")["mapped_at_creation"], 1 << 30);
    assert_eq!(region("BAR")["faults"], 0);
    assert_eq!(region("reserved")["mapped_bytes"], 0);
    assert_eq!(region("RAM")["mapped_at_creation"], 0);
}

#[test]
fn the_default_is_printed_as_it_can_be_read_again() {
    let printed = slat(&["run", "--print-default"]).expect(0);
    assert_eq!(
        printed,
        std::fs::read_to_string(example("default.toml")).unwrap()
    );
    let scenario = file(&printed);
    let arguments = [
        "run",
        text(scenario.path()),
        "--seed",
        "7",
        "--steps",
        "20000",
    ];
    let built_in = slat(&["run", "--seed", "7", "--steps", "20000"]).expect(0);
    assert_eq!(slat(&arguments).expect(0), built_in);
}

#[test]
fn a_trace_of_a_run_is_judged_as_the_run_was() {
    let trace = file("");
    let arguments = [
        "run",
        "--seed",
        "7",
        "--steps",
        "20000",
        "--trace",
        text(trace.path()),
    ];
    slat(&arguments).expect(0);
    let out = slat(&["check", text(trace.path())]).expect(0);
    assert!(out.contains("0 violations"), "{out}");
    let verdict = slat(&["check", text(trace.path()), "--json"]).json();
    assert!(verdict["records"].as_u64().unwrap() > 1000);
    assert!(verdict["violation"].is_null());

    // The same without any barrier or invalidation is a crime.
    let whole = std::fs::read_to_string(trace.path()).unwrap();
    let records = whole
        .lines()
        .filter(|line| !line.contains("\"instruction\""));
    let broken = file(&records.collect::<Vec<_>>().join("\n"));
    let out = slat(&["check", text(broken.path())]).expect(1);
    assert!(
        out.contains("1 violation") && out.contains("missing:"),
        "{out}"
    );
}

#[test]
fn a_trace_that_is_none_is_refused_with_its_line() {
    let trace = file("{\"step\":0,\"cpu\":0,\"event\":\"locked\",\"lock\":1}\nrubbish\n");
    let ended = slat(&["check", text(trace.path())]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("line 2"), "{}", ended.err);
}

#[test]
fn completions_and_the_manual_page_cover_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = slat(&["completions", shell]).expect(0);
        assert!(script.contains("explain"), "{shell}: {script}");
    }
    let page = slat(&["man"]).expect(0);
    for expected in [
        ".TH slat",
        "SLAT RUN",
        "SLAT EXPLAIN",
        "SLAT CHECK",
        "EXIT STATUS",
        "\\-\\-pid",
    ] {
        assert!(page.contains(expected), "no `{expected}` in\n{page}");
    }
    let help = slat(&["--help"]).expect(0);
    assert!(help.contains("slat explain --pid $$"), "{help}");
}
