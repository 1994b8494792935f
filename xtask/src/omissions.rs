//! `cargo xtask omissions`: leaves out one rule of the protocol at a time.
//!
//! A test proves something only if it fails when the code is wrong. For each rule
//! `xtask/omissions.toml` names the text in the sources that upholds it, what to put in its place,
//! and the test that has to notice. The sources are copied below the target directory, changed
//! there, built and tested, and put right again; the project's own sources are never touched.
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
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::journal::Journal;
use crate::test::count_passed;
use crate::workspace::{Workspace, cargo};

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
    file: PathBuf,
    find: String,
    replace: String,
    #[serde(flatten)]
    test: Test,
}

/// Which test is to notice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
struct Test {
    package: String,
    target: String,
    filter: Option<String>,
    #[serde(default)]
    loom: bool,
}

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// It passed, and so many tests were run.
    Passed(u64),
    /// These tests failed; none is named if the program died.
    Failed(Vec<String>),
    /// It had to be stopped.
    Hung,
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
    let copy = Copy::make(workspace)?;
    // All tests are tried on the sound sources first: each change of a file costs a build.
    let mut sound = HashMap::new();
    for Omission { test, .. } in &omissions {
        let check = || {
            copy.check_sound(test, journal)
                .map_err(|error| format!("{error:#}"))
        };
        sound.entry(test).or_insert_with(check);
    }
    let mut problems = Vec::new();
    for omission in &omissions {
        let what = format!("{} without {}", omission.rule, omission.what);
        let verdict = match &sound[&omission.test] {
            Ok(()) => copy.leave_out(omission, journal).and_then(noticed),
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

/// A copy of the sources that may be changed.
#[derive(Debug)]
struct Copy {
    source: PathBuf,
    output: PathBuf,
}

impl Copy {
    /// Copies the sources below the target directory. Files that are already there and equal keep
    /// their time, so that cargo builds again only what changed.
    fn make(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.directory("omissions")?;
        let copy = Self {
            source: directory.join("source"),
            output: directory.join("target"),
        };
        fs::create_dir_all(&copy.source)?;
        mirror(&workspace.root, &copy.source, &workspace.target)?;
        Ok(copy)
    }

    /// Checks that `test` passes on the sources as they are.
    fn check_sound(&self, test: &Test, journal: &Journal) -> Result<()> {
        let what = format!("the tests {} of {}", test.target, test.package);
        match self.run_test(test, journal)? {
            Ending::Passed(0) => bail!("{what}: none was run"),
            Ending::Passed(_) => Ok(()),
            Ending::Failed(tests) => bail!("{what} fail without any omission: {tests:?}"),
            Ending::Hung => bail!("{what} do not end within {LIMIT:?}"),
        }
    }

    /// Runs the test of `omission` on sources changed by it, and puts the sources right again.
    fn leave_out(&self, omission: &Omission, journal: &Journal) -> Result<Ending> {
        let path = self.source.join(&omission.file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let count = text.matches(&omission.find).count();
        ensure!(
            count == 1,
            "the text to leave out occurs {count} times in {}, not once",
            omission.file.display()
        );
        fs::write(&path, text.replacen(&omission.find, &omission.replace, 1))?;
        let ending = self.run_test(&omission.test, journal);
        fs::write(&path, text)?;
        ending
    }

    /// Builds and runs `test`; only the running may fail.
    fn run_test(&self, test: &Test, journal: &Journal) -> Result<Ending> {
        let mut passed = 0;
        for program in self.build(test, journal)? {
            let mut command = Command::new(&program);
            command.args(&test.filter).current_dir(&self.source);
            match run_program(&mut command, &self.output.join("test.log"), journal)? {
                Ending::Passed(count) => passed += count,
                other => return Ok(other),
            }
        }
        Ok(Ending::Passed(passed))
    }

    /// Builds the programs of `test`.
    fn build(&self, test: &Test, journal: &Journal) -> Result<Vec<PathBuf>> {
        let mut command = Command::new(cargo());
        command
            .current_dir(&self.source)
            .args(["test", "--no-run", "--quiet", "--message-format=json"])
            .args(["--package", &test.package, &test.target, "--target-dir"]);
        // The same few files are built again and again, with a line changed.
        command
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        if test.loom {
            // Without optimisation an exhaustive search takes minutes instead of seconds.
            command.arg(self.output.join("loom")).arg("--release");
            command.env("RUSTFLAGS", "--cfg slat_loom");
        } else {
            command.arg(self.output.join("plain"));
        }
        let output = command
            .stdin(Stdio::null())
            .stderr(journal.stderr()?)
            .output()?;
        let messages = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "it does not compile:\n{}",
            errors(&messages)
        );
        Ok(executables(&messages))
    }
}

/// The test programs that cargo's messages name.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// The compiler's errors in cargo's messages.
fn errors(messages: &str) -> String {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["message"]["level"] == "error")
        .filter_map(|message| {
            message["message"]["rendered"]
                .as_str()
                .map(ToOwned::to_owned)
        })
        .collect()
}

/// Runs a test program with its output going into `log`.
fn run_program(command: &mut Command, log: &Path, journal: &Journal) -> Result<Ending> {
    let file = File::create(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    if let Journal::File(_) = journal {
        journal.pass_on(text.as_bytes());
    }
    Ok(match status {
        None => Ending::Hung,
        Some(status) if status.success() => Ending::Passed(count_passed(&text)),
        Some(_) => Ending::Failed(failed_tests(&text)),
    })
}

/// The names of the tests that failed, from the test program's output.
fn failed_tests(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .map(|name| name.trim_end_matches(" - should panic").to_owned())
        .collect()
}

/// Makes `to` hold what `from` holds, but for version control and whatever is made from sources.
fn mirror(from: &Path, to: &Path, target: &Path) -> Result<()> {
    let mut kept = HashSet::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let source = entry?.path();
        let name = source
            .file_name()
            .ok_or_else(|| anyhow!("a file without a name"))?
            .to_owned();
        if source == target || name == ".git" || name == "target" {
            continue;
        }
        let copy = to.join(&name);
        kept.insert(name);
        if source.is_dir() {
            fs::create_dir_all(&copy)?;
            mirror(&source, &copy, target)?;
        } else {
            let contents =
                fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
            if !fs::read(&copy).is_ok_and(|old| old == contents) {
                fs::write(&copy, contents)?;
            }
        }
    }
    for entry in fs::read_dir(to)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| !kept.contains(name)) {
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"sample\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                            [workspace]\n";
    const SOURCE: &str = "pub fn clamp(value: u32) -> u32 {\n    if value > 9 { 9 } else { value }\n}\n\
                          pub fn idle() {}\n\
                          #[test]\nfn large_values_are_cut() {\n    assert_eq!(clamp(10), 9);\n}\n";

    /// A tree with one small package and these omissions.
    fn sample(omissions: &str) -> (tempfile::TempDir, Workspace) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        for (path, text) in [
            ("Cargo.toml", MANIFEST),
            ("src/lib.rs", SOURCE),
            ("xtask/omissions.toml", omissions),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let target = directory.path().join("out");
        (directory, Workspace { root, target })
    }

    fn omission(find: &str, replace: &str) -> String {
        format!(
            "[[omission]]\nrule = \"R1\"\nwhat = \"the limit\"\nfile = \"src/lib.rs\"\n\
             find = '{find}'\nreplace = '{replace}'\npackage = \"sample\"\ntarget = \"--lib\"\n"
        )
    }

    fn run_sample(omissions: &str) -> Result<usize> {
        let (directory, workspace) = sample(omissions);
        let journal = Journal::File(File::create(directory.path().join("log")).unwrap());
        let result = run_all(&workspace, &[], &journal);
        let source = fs::read_to_string(workspace.root.join("src/lib.rs")).unwrap();
        assert_eq!(source, SOURCE, "the project's own sources were touched");
        result
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
    fn failed_tests_are_named() {
        let text = "test a::b ... ok\ntest a::c ... FAILED\ntest d - should panic ... FAILED\n";
        assert_eq!(failed_tests(text), ["a::c", "d"]);
    }
}
