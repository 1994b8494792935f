//! The corpus: one trace for each shape, and what is to be thought of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;

use serde::Deserialize;
use slat_machine::trace::{self, Writer};

use crate::shapes;

/// What is to be thought of a trace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Verdict {
    /// `ok`, or the rule that is broken.
    pub(crate) judge: String,
    /// What the external checker says: `ok`, `violation`, or `not applicable` where it cannot be
    /// told.
    pub(crate) casemate: String,
    /// Why.
    pub(crate) why: String,
}

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

pub(crate) fn verdicts() -> BTreeMap<String, Verdict> {
    let text = fs::read_to_string(folder().join("verdicts.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

fn text(records: &[slat_machine::event::Record]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut writer = Writer::new(&mut text);
    for record in records {
        writer.write(record).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    text
}

#[test]
fn the_judge_agrees_with_every_written_verdict() {
    for (name, verdict) in verdicts() {
        let file = File::open(folder().join(format!("{name}.trace"))).unwrap();
        let judged = trace::check(BufReader::new(file)).unwrap();
        let rule = judged
            .violation
            .as_ref()
            .map(|violation| violation.rule.to_string());
        let said = rule.as_deref().unwrap_or("ok");
        let story = judged.violation.map(|violation| violation.to_string());
        assert_eq!(said, verdict.judge, "{name}: {}\n{story:?}", verdict.why);
    }
}

#[test]
fn every_shape_has_a_trace_and_a_verdict_and_there_are_no_others() {
    let shapes: Vec<&str> = shapes::all().iter().map(|(name, _)| *name).collect();
    let mut sorted = shapes.clone();
    sorted.sort_unstable();
    let verdicts = verdicts();
    assert!(verdicts.keys().eq(sorted.iter()), "{sorted:?}");
    let traces = fs::read_dir(folder()).unwrap().filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".trace")
    });
    assert_eq!(traces.count(), shapes.len());
}

#[test]
fn traces_are_what_the_shapes_say() {
    for (name, records) in shapes::all() {
        let file = fs::read(folder().join(format!("{name}.trace"))).unwrap();
        assert!(
            file == text(&records),
            "{name} differs: run `write_the_corpus`"
        );
    }
}

#[test]
#[ignore = "writes the traces of the corpus anew"]
fn write_the_corpus() {
    for (name, records) in shapes::all() {
        fs::write(folder().join(format!("{name}.trace")), text(&records)).unwrap();
    }
}
