//! `cargo xtask omissions`: leaves out one rule of the protocol at a time.
//!
//! A test proves something only if it fails when the code is wrong. For each rule
//! `xtask/omissions.toml` names the text in the sources that upholds it, what to put in its place,
//! and the test that has to notice. [`trial`](crate::trial) makes the change and runs the test.
//!
//! Each entry of the file is a table `[[omission]]` with these fields:
//!
//! * `rule`: the rule's name, such as `P3`;
//! * `what`: what is left out, in a few words;
//! * `file`: the source file, from the top of the tree;
//! * `find`: text that occurs in it exactly once, and `replace`: what takes its place;
//! * `package`: the package whose tests are run;
//! * `target`: which of its test targets, such as `--lib` or `--test=loom_faults`;
//! * `filter` (optional): only tests whose name contains this;
//! * `loom` (optional): whether the test is one of those compiled for loom.
//!
//! The test has to pass without the omission first, and the changed sources have to compile.

use core::time::Duration;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::journal::Journal;
use crate::trial::{Copy, Edit, Ending, Test};
use crate::workspace::Workspace;

/// A test that runs longer than this hangs. A hang counts as noticed, since the same test ended
/// in time without the omission.
const LIMIT: Duration = Duration::from_mins(5);

/// Options of `cargo xtask omissions`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out only these rules
    #[arg(long, value_name = "RULE,...", value_delimiter = ',')]
    only: Vec<String>,
}

/// The file that lists what to leave out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    omission: Vec<Omission>,
}

/// One rule to leave out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Omission {
    rule: String,
    what: String,
    #[serde(flatten)]
    edit: Edit,
    #[serde(flatten)]
    test: Test,
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<()> {
    let caught = run_all(workspace, &options.only, journal)?;
    journal.say(format_args!(
        "{caught} rules left out, each noticed by its test"
    ));
    Ok(())
}

/// Leaves out each rule in `only`, or every rule if that is empty; returns how many were noticed.
/// It is an error if one was not.
pub(crate) fn run_all(workspace: &Workspace, only: &[String], journal: &Journal) -> Result<usize> {
    let omissions = read_list(&workspace.root, only)?;
    let copy = Copy::make(workspace, "omissions", LIMIT)?;
    // All tests are tried on the sound sources first: each change of a file costs a build.
    let mut sound = HashMap::new();
    for Omission { test, .. } in &omissions {
        let check = || {
            copy.check_sound(test, journal)
                .map(drop)
                .map_err(|error| format!("{error:#}"))
        };
        sound.entry(test).or_insert_with(check);
    }
    let mut problems = Vec::new();
    for Omission {
        rule,
        what,
        edit,
        test,
    } in &omissions
    {
        let what = format!("{rule} without {what}");
        let verdict = match &sound[test] {
            Ok(()) => copy
                .run_edited(edit, test, journal)
                .and_then(|trial| noticed(trial.ending)),
            Err(error) => Err(anyhow!(error.clone())),
        };
        match verdict {
            Ok(how) => journal.say(format_args!("{what}: {how}")),
            Err(error) => {
                journal.say(format_args!("{what}: {error:#}"));
                problems.push(format!("{what}: {error:#}"));
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(omissions.len())
}

/// Reads the list, or the part of it that `only` names if that is not empty.
fn read_list(root: &Path, only: &[String]) -> Result<Vec<Omission>> {
    let file = root.join("xtask/omissions.toml");
    let context = || format!("cannot read {}", file.display());
    let list: List =
        toml::from_str(&fs::read_to_string(&file).with_context(context)?).with_context(context)?;
    let mut omissions = list.omission;
    omissions.retain(|omission| only.is_empty() || only.contains(&omission.rule));
    ensure!(
        !omissions.is_empty(),
        "{} lists no such rule",
        file.display()
    );
    Ok(omissions)
}

/// How an omission was noticed, or an error if it was not.
fn noticed(ending: Ending) -> Result<String> {
    match ending {
        Ending::Failed(tests) if tests.is_empty() => Ok("the test program died".to_owned()),
        Ending::Failed(tests) => Ok(format!("{} failed", tests.join(", "))),
        Ending::Hung => Ok("the test hung".to_owned()),
        Ending::Passed(count) => bail!("NOT NOTICED by {count} tests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::sample;

    fn omission(find: &str, replace: &str) -> String {
        format!(
            "[[omission]]\nrule = \"R1\"\nwhat = \"the limit\"\nfile = \"src/lib.rs\"\n\
             find = '{find}'\nreplace = '{replace}'\npackage = \"sample\"\ntarget = \"--lib\"\n"
        )
    }

    fn run_sample(omissions: &str) -> Result<usize> {
        sample::with("omissions.toml", omissions, |workspace, journal| {
            run_all(workspace, &[], journal)
        })
    }

    #[test]
    fn what_a_test_notices_is_counted() {
        assert_eq!(run_sample(&omission("{ 9 }", "{ value }")).unwrap(), 1);
    }

    #[test]
    fn what_no_test_notices_is_an_error() {
        let error = run_sample(&omission("pub fn idle() {}", ""))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("R1 without the limit: NOT NOTICED by 1 tests"),
            "{error}"
        );
    }

    #[test]
    fn an_omission_that_does_not_fit_the_sources_is_an_error() {
        let missing = run_sample(&omission("no such text", "")).unwrap_err();
        assert!(format!("{missing:#}").contains("0 times"), "{missing:#}");
        let ambiguous = run_sample(&omission("value", "")).unwrap_err();
        assert!(
            format!("{ambiguous:#}").contains("4 times"),
            "{ambiguous:#}"
        );
        let broken = run_sample(&omission("{ 9 }", "{ nine }")).unwrap_err();
        assert!(
            format!("{broken:#}").contains("does not compile"),
            "{broken:#}"
        );
    }

    #[test]
    fn an_empty_list_and_a_misspelt_field_are_errors() {
        assert!(run_sample("").is_err());
        let misspelt = omission("{ 9 }", "{ value }") + "filters = \"x\"\n";
        assert!(run_sample(&misspelt).is_err());
    }

    #[test]
    fn a_test_that_is_not_there_is_an_error() {
        let omissions = omission("{ 9 }", "{ value }") + "filter = \"no_such_test\"\n";
        let error = run_sample(&omissions).unwrap_err().to_string();
        assert!(error.contains("none was run"), "{error}");
    }

    #[test]
    fn every_omission_in_the_list_fits_the_sources() {
        for omission in read_list(sample::real_root(), &[]).unwrap() {
            let fits = omission.edit.apply(sample::real_root());
            assert!(
                fits.is_ok(),
                "{} without {}: {fits:?}",
                omission.rule,
                omission.what
            );
        }
    }
}
