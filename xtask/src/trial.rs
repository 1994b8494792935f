//! A copy of the sources in which something is made wrong on purpose, to see which test notices.
//!
//! The copy lies below the target directory. An [`Edit`] is made there, the test is built and run,
//! and the text is put back; the project's own sources are never touched. What a run that was
//! killed has left behind is put right when the copy is made anew.

use core::time::Duration;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::journal::Journal;
use crate::test::count_passed;
use crate::workspace::{Workspace, cargo};

/// A change of one file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Edit {
    /// The source file, from the top of the tree.
    file: PathBuf,
    /// Text that occurs in it exactly once.
    find: String,
    /// What takes its place.
    replace: String,
}

/// Which test is to notice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub(crate) struct Test {
    /// The package whose tests are run.
    package: String,
    /// Which of its test targets, such as `--lib` or `--test=loom_faults`.
    target: String,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Whether the test is one of those compiled for loom, which are optimised.
    #[serde(default)]
    loom: bool,
    /// The profile to build with, if not cargo's own choice.
    profile: Option<String>,
    /// What else the test program is told. With `--nocapture` a finding is there to be read as
    /// soon as its test has failed.
    #[serde(default)]
    arguments: Vec<String>,
    /// The formats for which the rig draws plans; all if none is named.
    #[serde(default)]
    formats: Vec<String>,
}

impl Test {
    /// The same on one format.
    pub(crate) fn on(&self, format: &str) -> Self {
        Self {
            formats: vec![format.to_owned()],
            ..self.clone()
        }
    }
}

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It passed, and so many tests were run.
    Passed(u64),
    /// These tests failed; none is named if the program died.
    Failed(Vec<String>),
    /// It had to be stopped.
    Hung,
}

/// One run of a test.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) ending: Ending,
    /// What building took.
    pub(crate) built: Duration,
    /// What running took, to the end or until it was stopped.
    pub(crate) ran: Duration,
    /// Everything that the programs printed.
    pub(crate) output: String,
}

/// A copy of the sources that may be changed.
#[derive(Debug)]
pub(crate) struct Copy {
    source: PathBuf,
    output: PathBuf,
    limit: Duration,
}

impl Edit {
    /// The text of the file below `root` with the change made.
    pub(crate) fn apply(&self, root: &Path) -> Result<String> {
        let path = root.join(&self.file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let count = text.matches(&self.find).count();
        ensure!(
            count == 1,
            "the text to replace occurs {count} times in {}, not once",
            self.file.display()
        );
        ensure!(
            self.find != self.replace,
            "the replacement in {} changes nothing",
            self.file.display()
        );
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

impl Copy {
    /// Copies the sources below the target directory, for a use called `name`, whose tests may
    /// run for `limit`. Files that are already there and equal keep their time, so that cargo
    /// builds again only what changed.
    pub(crate) fn make(workspace: &Workspace, name: &str, limit: Duration) -> Result<Self> {
        let directory = workspace.directory(name)?;
        let copy = Self {
            source: directory.join("source"),
            output: directory.join("target"),
            limit,
        };
        fs::create_dir_all(&copy.source)?;
        mirror(&workspace.root, &copy.source, &workspace.target)?;
        Ok(copy)
    }

    /// Checks that `test` passes on the sources as they are.
    pub(crate) fn check_sound(&self, test: &Test, journal: &Journal) -> Result<Trial> {
        let what = format!("the tests {} of {}", test.target, test.package);
        let trial = self.run_test(test, None, journal).context(what.clone())?;
        match &trial.ending {
            Ending::Passed(0) => bail!("{what}: none was run"),
            Ending::Passed(_) => Ok(trial),
            Ending::Failed(tests) => {
                let said = finding(&trial.output);
                bail!("{what} fail without any change: {tests:?}: {said}")
            }
            Ending::Hung => bail!("{what} do not end within {:?}", self.limit),
        }
    }

    /// Runs `test` on sources changed by `edit`, and puts the sources right again.
    pub(crate) fn run_edited(&self, edit: &Edit, test: &Test, journal: &Journal) -> Result<Trial> {
        self.edited(edit, || self.run_test(test, Some(self.limit), journal))
    }

    /// Does something while `edit` is made.
    pub(crate) fn edited<T>(&self, edit: &Edit, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.source.join(&edit.file);
        let changed = edit.apply(&self.source)?;
        let sound = fs::read(&path)?;
        fs::write(&path, changed)?;
        let done = what();
        fs::write(&path, sound)?;
        done
    }

    /// Where what is built and written goes.
    pub(crate) fn output(&self) -> &Path {
        &self.output
    }

    /// Builds a program of a package, optimised, and says where it is.
    pub(crate) fn build_program(
        &self,
        package: &str,
        program: &str,
        journal: &Journal,
    ) -> Result<PathBuf> {
        let mut command = Command::new(cargo());
        command
            .current_dir(&self.source)
            .args(["build", "--quiet", "--release", "--message-format=json"])
            .args(["--package", package, "--bin", program]);
        let messages = self.compile(command, "plain", journal)?;
        let found = executables(&messages, false).pop();
        found.ok_or_else(|| anyhow!("{package} has no program {program}"))
    }

    /// Runs a cargo command that compiles, and returns its messages.
    fn compile(&self, mut command: Command, directory: &str, journal: &Journal) -> Result<String> {
        let output = command
            // The same few files are built again and again, with a line changed.
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .arg("--target-dir")
            .arg(self.output.join(directory))
            .stdin(Stdio::null())
            .stderr(journal.stderr()?)
            .output()?;
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "it does not compile:\n{}",
            errors(&messages)
        );
        Ok(messages)
    }

    /// Builds and runs `test`; only the running may fail. A test that can go on searching for as
    /// long as it likes is told to, up to `search`.
    fn run_test(&self, test: &Test, search: Option<Duration>, journal: &Journal) -> Result<Trial> {
        let start = Instant::now();
        let programs = self.build(test, journal)?;
        let mut trial = Trial {
            ending: Ending::Passed(0),
            built: start.elapsed(),
            ran: Duration::ZERO,
            output: String::new(),
        };
        let start = Instant::now();
        for program in programs {
            let mut command = Command::new(&program);
            command
                .args(&test.filter)
                .args(&test.arguments)
                .envs(formats(test))
                .envs(search.map(|time| ("SLAT_RIG_SECONDS", search_seconds(time))))
                .current_dir(&self.source);
            let limit = self.limit.saturating_sub(start.elapsed());
            let log = self.output.join("test.log");
            // Where nothing is captured, all is said once a test has failed.
            let stops = test.arguments.iter().any(|it| it == "--nocapture");
            let (ending, output) = run_program(&mut command, &log, limit, stops, journal)?;
            trial.output += &output;
            trial.ending = match (trial.ending, ending) {
                (Ending::Passed(before), Ending::Passed(now)) => Ending::Passed(before + now),
                (_, ending) => ending,
            };
            if !matches!(trial.ending, Ending::Passed(_)) {
                break;
            }
        }
        trial.ran = start.elapsed();
        Ok(trial)
    }

    /// Builds the programs of `test`.
    fn build(&self, test: &Test, journal: &Journal) -> Result<Vec<PathBuf>> {
        let mut command = Command::new(cargo());
        command
            .current_dir(&self.source)
            .args(["test", "--no-run", "--quiet", "--message-format=json"])
            .args(["--package", &test.package, &test.target]);
        let mut profile = test.profile.as_deref();
        let mut directory = "plain";
        if test.loom {
            // Without optimisation an exhaustive search takes minutes instead of seconds.
            profile = profile.or(Some("release"));
            directory = "loom";
            command.env("RUSTFLAGS", "--cfg slat_loom");
        }
        if let Some(profile) = profile {
            command.args(["--profile", profile]);
        }
        let messages = self.compile(command, directory, journal)?;
        Ok(executables(&messages, true))
    }
}

/// The programs that cargo's messages name: tests, or others.
fn executables(messages: &str, tests: bool) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == tests)
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

/// Runs a test program with its output going into `log`, until it ends, the time is over
/// or, if `stops_at_failure`, a test has failed. Returns what it printed.
fn run_program(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    stops_at_failure: bool,
    journal: &Journal,
) -> Result<(Ending, String)> {
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
        let failed = stops_at_failure && !failed_tests(&text_of(log)?).is_empty();
        if failed || start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = text_of(log)?;
    if let Journal::File(_) = journal {
        journal.pass_on(text.as_bytes());
    }
    let ending = match status {
        None if stops_at_failure && !failed_tests(&text).is_empty() => {
            Ending::Failed(failed_tests(&text))
        }
        None => Ending::Hung,
        Some(status) if status.success() => Ending::Passed(count_passed(&text)),
        Some(_) => Ending::Failed(failed_tests(&text)),
    };
    Ok((ending, text))
}

/// What tells the rig its formats.
fn formats(test: &Test) -> Option<(&'static str, String)> {
    let named = !test.formats.is_empty();
    named.then(|| ("SLAT_RIG_FORMATS", test.formats.join(",")))
}

/// What is left of a test's time for searching, the rest being for what it does anyway.
fn search_seconds(limit: Duration) -> String {
    (limit.as_secs() * 2 / 3).to_string()
}

fn text_of(file: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(file)?).into_owned())
}

/// The names of the tests that failed, from the test program's output.
fn failed_tests(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .map(|name| name.trim_end_matches(" - should panic").to_owned())
        .collect()
}

/// What a failed test says was wrong: the rest of the first line that begins with `caught:`, or
/// else the first line of the first panic's message.
pub(crate) fn finding(output: &str) -> &str {
    let caught = output
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("caught:"));
    let panic = || {
        output
            .lines()
            .skip_while(|line| !line.contains("panicked at "))
            .skip(1)
            .find(|line| !line.trim().is_empty())
    };
    caught.or_else(panic).map_or("", str::trim)
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

/// A small tree for the unit tests of whoever makes trials.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"sample\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                            [workspace]\n";
    const SOURCE: &str = "pub fn clamp(value: u32) -> u32 {\n    if value > 9 { 9 } else { value }\n}\n\
                          pub fn idle() {}\n\
                          #[test]\nfn large_values_are_cut() {\n    assert_eq!(clamp(10), 9);\n}\n";

    /// Has `run` look at a tree with one small package and `list` at `xtask/NAME`.
    pub(crate) fn with<T>(
        name: &str,
        list: &str,
        run: impl FnOnce(&Workspace, &Journal) -> T,
    ) -> T {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        for (path, text) in [
            ("Cargo.toml", MANIFEST),
            ("src/lib.rs", SOURCE),
            (&format!("xtask/{name}"), list),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let target = directory.path().join("out");
        let workspace = Workspace { root, target };
        let journal = Journal::File(File::create(directory.path().join("log")).unwrap());
        let result = run(&workspace, &journal);
        let source = fs::read_to_string(workspace.root.join("src/lib.rs")).unwrap();
        assert_eq!(source, SOURCE, "the project's own sources were touched");
        result
    }

    /// The top of the real tree.
    pub(crate) fn real_root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test() -> Test {
        Test {
            package: "sample".to_owned(),
            target: "--lib".to_owned(),
            filter: None,
            loom: false,
            profile: None,
            arguments: Vec::new(),
            formats: Vec::new(),
        }
    }

    fn edit(find: &str, replace: &str) -> Edit {
        Edit {
            file: PathBuf::from("src/lib.rs"),
            find: find.to_owned(),
            replace: replace.to_owned(),
        }
    }

    /// How the sample's test ends with this change, if it may run for `limit`.
    fn try_edit(edit: &Edit, test: &Test, limit: Duration) -> Result<Trial> {
        sample::with("list.toml", "", |workspace, journal| {
            let copy = Copy::make(workspace, "trial", limit)?;
            let trial = copy.run_edited(edit, test, journal);
            assert!(
                edit.apply(&copy.source).is_ok(),
                "the copy was not put right"
            );
            trial
        })
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_test_that_notices_is_named_with_what_it_said() {
        let trial = try_edit(&edit("{ 9 }", "{ value }"), &test(), MINUTE).unwrap();
        let failed = Ending::Failed(vec!["large_values_are_cut".to_owned()]);
        assert_eq!(trial.ending, failed);
        assert!(trial.output.contains("left: 10"), "{}", trial.output);
    }

    #[test]
    fn a_change_that_no_test_notices_passes() {
        let trial = try_edit(&edit("pub fn idle() {}", ""), &test(), MINUTE).unwrap();
        assert_eq!(trial.ending, Ending::Passed(1));
    }

    #[test]
    fn a_test_that_does_not_end_is_stopped() {
        let endless = edit("{ 9 }", "{ loop {} }");
        let trial = try_edit(&endless, &test(), Duration::from_millis(300)).unwrap();
        assert_eq!(trial.ending, Ending::Hung);
        assert!(trial.ran >= Duration::from_millis(300));
    }

    #[test]
    fn a_profile_is_passed_on() {
        let mut test = test();
        test.profile = Some("no-such-profile".to_owned());
        assert!(try_edit(&edit("{ 9 }", "{ value }"), &test, MINUTE).is_err());
    }

    #[test]
    fn failed_tests_are_named() {
        let text = "test a::b ... ok\ntest a::c ... FAILED\ntest d - should panic ... FAILED\n";
        assert_eq!(failed_tests(text), ["a::c", "d"]);
    }

    #[test]
    fn a_finding_comes_from_the_first_line_that_says_one() {
        let panic =
            "running 1 test\nthread 'a' panicked at src/x.rs:1:2:\nstale translation\nmore\n";
        assert_eq!(finding(panic), "stale translation");
        let both = format!("{panic}  caught: conflicting-entries at 0x1000\n");
        assert_eq!(finding(&both), "conflicting-entries at 0x1000");
        assert_eq!(finding("nothing\n"), "");
    }

    #[test]
    fn a_copy_holds_what_the_sources_hold_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for path in ["kept/a", "out/b", "sub/.git/c", "sub/target/d"] {
            let path = from.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "new").unwrap();
        }
        fs::create_dir_all(to.join("stale")).unwrap();
        fs::write(to.join("gone"), "old").unwrap();
        mirror(&from, &to, &from.join("out")).unwrap();
        let mut names: Vec<_> = fs::read_dir(&to)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["kept", "sub"]);
        assert!(fs::read_dir(to.join("sub")).unwrap().next().is_none());
        assert_eq!(fs::read_to_string(to.join("kept/a")).unwrap(), "new");
    }
}
