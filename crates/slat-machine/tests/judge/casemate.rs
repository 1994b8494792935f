//! casemate's format: what is exported can be read again, and the checker itself agrees.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};

use slat_machine::casemate::{self, ExportError};
use slat_machine::event::{Event, Record};
use slat_machine::judge::Rule;
use slat_machine::trace::{self, TraceError};

use crate::corpus;
use crate::scenario::{GPA, I, LAST, Scenario, operand};
use crate::shapes;

fn exported(records: &[Record]) -> Result<String, ExportError> {
    let mut text = Vec::new();
    casemate::export(records, &mut text)?;
    Ok(String::from_utf8(text).unwrap())
}

fn imported(text: &str) -> Result<Vec<Record>, TraceError> {
    casemate::read(text.as_bytes()).collect()
}

#[test]
fn an_exported_trace_gets_the_same_verdict() {
    for (name, verdict) in corpus::verdicts() {
        let file = File::open(corpus::folder().join(format!("{name}.trace"))).unwrap();
        let records: Vec<Record> = trace::read(BufReader::new(file))
            .collect::<Result<_, _>>()
            .unwrap();
        if verdict.casemate == "not applicable" {
            continue;
        }
        let text = exported(&records).unwrap_or_else(|error| panic!("{name}: {error}"));
        let judged = trace::check(text.as_bytes()).unwrap();
        let rule = judged.violation.map(|violation| violation.rule.to_string());
        assert_eq!(
            rule.as_deref().unwrap_or("ok"),
            verdict.judge,
            "{name}\n{text}"
        );
    }
}

#[test]
fn a_record_looks_as_the_checker_wants_it() {
    let text = exported(
        &Scenario::mapped()
            .locked()
            .write(LAST, 0)
            .flush(GPA)
            .records,
    )
    .unwrap();
    let expected = [
        "(sysreg-write (id 1) (tid 0) (sysreg vtcr_el2) (value 0x80050059) (src \"slat:1\"))",
        "(hint (id 2) (tid 0) (kind set_root_lock) (location 0x41000000) (value 0x10) \
         (src \"slat:1\"))",
        "(sysreg-write (id 3) (tid 0) (sysreg vttbr_el2) (value 0x1000041000000) (src \"slat:1\"))",
        "(hint (id 8) (tid 0) (kind set_owner_root) (location 0x41001000) (value 0x41000000) \
         (src \"slat:5\"))",
        "(tlbi (id 18) (tid 0) ipas2e1is (value 0x40000) (src \"slat:13\"))",
    ];
    for line in expected {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

#[test]
fn every_cpu_that_points_to_a_root_is_told_the_shape_of_the_tree_before() {
    let mut others = 0;
    for (name, records) in shapes::all() {
        let Ok(text) = exported(&records) else {
            continue;
        };
        let mut told = BTreeSet::new();
        for line in text.lines() {
            let cpu = line
                .split("(tid ")
                .nth(1)
                .and_then(|rest| rest.split(')').next());
            if line.contains("vtcr_el2") {
                told.insert(cpu);
            } else if line.contains("vttbr_el2") {
                assert!(told.contains(&cpu), "{name}: {line}");
                others += usize::from(cpu != Some("0"));
            }
        }
    }
    assert!(others > 0, "some scenario has a second CPU");
}

#[test]
fn what_the_checker_cannot_be_told_is_an_error() {
    let operand = operand(GPA);
    let mut leaves_only = Scenario::mapped();
    leaves_only.op(I::Ipas2le1is { operand });
    let found = exported(&leaves_only.records);
    assert!(
        matches!(found, Err(ExportError::Instruction { step: 10, .. })),
        "{found:?}"
    );

    let mut fifth = Scenario::mapped();
    fifth.on(4).locked();
    let found = exported(&fifth.records);
    assert!(
        matches!(found, Err(ExportError::Cpu { step: 10, cpu: 4 })),
        "{found:?}"
    );

    let (_, side_by_side) = shapes::all()
        .into_iter()
        .find(|(name, _)| *name == "good-two-roots-side-by-side")
        .unwrap();
    let found = exported(&side_by_side);
    assert!(
        matches!(found, Err(ExportError::Root { bits: 40, .. })),
        "{found:?}"
    );
}

#[test]
fn what_hardware_and_host_did_is_left_out() {
    let with = Scenario::hosted();
    let text = exported(&with.records).unwrap();
    let records = imported(&text).unwrap();
    let foreign = |record: &Record| {
        matches!(
            record.event,
            Event::Answered { .. } | Event::FrameAllocated { .. }
        )
    };
    assert!(with.records.iter().any(foreign) && !records.iter().any(foreign));
}

#[test]
fn a_foreign_trace_is_judged() {
    let text = "
        (sysreg-write (id 0) (tid 0) (sysreg vtcr_el2) (value 19) (src \"a.c:1\"))
        (mem-init (id 1) (tid 0) (address 0x41000000) (size 0x2000) (src \"a.c:2\"))
        (sysreg-write (id 2)(tid 0) vttbr_el2 (value 0x1000041000000) (src \"a(.c:3\"))
        (hint 3 0 set_owner_root 0x41001000 0x41000000 \"a.c:4\")
        (lock 4 0 0x10 \"a.c:5\")
        (mem-write (id 5) (tid 0) release 0x41000008 (value 0x41001003) (src \"a.c:6\"))
        (mem-write 6 0 plain 41001000 800007fd \"a.c:7\")
        (mem-write (id 7) (tid 0) release 0x41001000 (value 0) (src \"a.c:8\"))
        (barrier (id 8) (tid 0) dsb (kind ish) (src \"a.c:9\"))
        (mem-write (id 9) (tid 0) release 0x41001000 (value 0x900007fd) (src \"a.c:10\"))
        ! the checker's own remark";
    let judged = trace::check(text.as_bytes()).unwrap();
    let violation = judged.violation.unwrap();
    assert_eq!(
        (violation.rule, violation.step),
        (Rule::ConflictingEntries, 9),
        "{violation}"
    );
}

#[test]
fn an_error_in_a_foreign_trace_names_its_line() {
    let text = "(lock (id 0) (tid 0) (address 0x10) (src \"a:1\"))\n\n(tlbi (id 1) (tid 0) all)\n";
    let error = trace::check(text.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "line 3: no record: `all` is no tlbi");
}

/// Runs the checker; its exit status is 0 for a clean trace and 1 for any objection.
fn checker_says(checker: &Path, name: &str, trace: &str) -> &'static str {
    let file = std::env::temp_dir().join(format!("slat-{}-{name}.casemate", std::process::id()));
    fs::write(&file, trace).unwrap();
    let output = Command::new(checker)
        .args(["-q", "-a", "-T", "-R"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("parse error"), "{name}: {said}\n{trace}");
    if output.status.success() {
        "ok"
    } else {
        "violation"
    }
}

#[test]
fn the_external_checker_agrees_with_every_written_verdict() {
    let Some(checker) = std::env::var_os("CASEMATE_CHECK") else {
        eprintln!("skipped: CASEMATE_CHECK names no checker");
        return;
    };
    let mut wrong = Vec::new();
    for (name, records) in shapes::all() {
        let verdict = &corpus::verdicts()[name];
        if verdict.casemate == "not applicable" {
            continue;
        }
        let said = checker_says(checker.as_ref(), name, &exported(&records).unwrap());
        if said != verdict.casemate {
            wrong.push(format!("{name}: it says {said}, not {}", verdict.casemate));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
