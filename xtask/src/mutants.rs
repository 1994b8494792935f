//! `cargo xtask mutants`: plants one bug at a time and expects the rig to catch it.
//!
//! The rig runs the whole stack on a machine whose caches keep everything that the architecture
//! lets them keep, under a judge that knows the rules and none of our code. `xtask/mutants.toml`
//! lists bugs as people make them in this trade: a flush forgotten, a table freed too early, a
//! barrier left out. Each is planted in a copy of the sources; the rig, which passes without it,
//! has to fail within a minute of running.
//!
//! Where the environment variable `CASEMATE_CHECK` names the checker of that name, recorded runs
//! with each Arm bug are shown to it too, see [`second_opinion`](crate::second_opinion).
//!
//! The file begins with a table `[test]`, the test that has to catch each bug: `package`,
//! `target` and (optional) `filter`, `profile`, `arguments` for the test program and `formats`, those
//! for which the rig draws its plans. Each bug is a table `[[mutant]]`:
//!
//! * `name`: a short name for `--only`;
//! * `what`: what is wrong, in a few words;
//! * `file`: the source file, from the top of the tree;
//! * `find`: text that occurs in it exactly once, and `replace`: what takes its place;
//! * `arm` (optional): whether the bug is one of an Arm instruction sequence;
//! * `hangs` (optional): whether a test that never ends has caught it too, as nothing else can
//!   come of a guest that waits for ever;
//! * `formats` (optional): formats on each of which the test of the table `[formats]`, with the same
//!   fields as `[test]`, has to catch the bug;
//! * `test` (optional): another test than that of the file, with the same fields.

use core::fmt::{self, Display};
use core::time::Duration;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::journal::Journal;
use crate::second_opinion::{Checker, Opinions};
use crate::trial::{Copy, Edit, Ending, Test, Trial, finding};
use crate::workspace::Workspace;

/// How long the test may run for each bug; building it does not count.
const LIMIT: Duration = Duration::from_mins(1);

/// Options of `cargo xtask mutants`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Plant only these bugs
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,

    /// List the bugs and plant none
    #[arg(long)]
    list: bool,
}

/// The file that lists the bugs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    test: Test,
    /// The test of bugs that name formats.
    formats: Option<Test>,
    #[serde(default)]
    mutant: Vec<Mutant>,
}

/// A bug to plant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    what: String,
    #[serde(flatten)]
    edit: Edit,
    #[serde(default)]
    arm: bool,
    #[serde(default)]
    hangs: bool,
    #[serde(default)]
    formats: Vec<String>,
    test: Option<Test>,
}

impl Verdict {
    /// Whether the bug was caught, by both judges if two were asked.
    fn is_caught(&self) -> bool {
        match self {
            Self::Caught { opinions, .. } => opinions.is_none_or(|opinions| opinions.agree()),
            Self::Escaped { .. } | Self::Unusable(_) => false,
        }
    }
}

impl List {
    /// The test that has to catch this bug.
    fn test_of<'l>(&'l self, mutant: &'l Mutant) -> &'l Test {
        mutant.test.as_ref().unwrap_or(&self.test)
    }
}

/// What became of a bug.
#[derive(Debug)]
enum Verdict {
    /// A test failed.
    Caught {
        trial: Trial,
        by: String,
        said: String,
        /// What the judges said of a recorded run, if there is a second one and the bug is Arm's.
        opinions: Option<Opinions>,
    },
    /// The tests passed, or had to be stopped.
    Escaped { trial: Trial },
    /// It does not fit the sources, or does not compile.
    Unusable(String),
}

/// Runs the command. Failure if a bug escapes.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<ExitCode> {
    let list = read_list(&workspace.root, &options.only)?;
    let width = list.mutant.iter().map(|mutant| mutant.name.len()).max();
    let width = width.unwrap_or_default();
    if options.list {
        for Mutant {
            name, what, arm, ..
        } in &list.mutant
        {
            let arm = if *arm { " (Arm)" } else { "" };
            anstream::println!("{name:<width$}  {what}{arm}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let show = |mutant: &Mutant, verdict: &Verdict| {
        anstream::println!("{}", row(mutant, verdict, width));
    };
    let (caught, all) = run_all(workspace, &list, journal, show)?;
    let style = if caught == all { GOOD } else { BAD };
    anstream::println!("{style}{caught} of {all} caught{style:#}");
    Ok(if caught == all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Plants every bug in the list, for `cargo xtask test`. It is an error if one escapes.
pub(crate) fn check(workspace: &Workspace, journal: &Journal) -> Result<String> {
    let list = read_list(&workspace.root, &[])?;
    let mut escaped = Vec::new();
    let show = |mutant: &Mutant, verdict: &Verdict| {
        journal.say(row(mutant, verdict, 0));
        if !verdict.is_caught() {
            escaped.push(mutant.name.clone());
        }
    };
    let (caught, all) = run_all(workspace, &list, journal, show)?;
    ensure!(caught == all, "not caught: {}", escaped.join(", "));
    Ok(format!("{caught} of {all} caught"))
}

/// Plants every bug in the list and returns how many were caught, and how many there are. It is an
/// error if a test fails without any bug.
fn run_all(
    workspace: &Workspace,
    list: &List,
    journal: &Journal,
    mut show: impl FnMut(&Mutant, &Verdict),
) -> Result<(usize, usize)> {
    let copy = Copy::make(workspace, "mutants", LIMIT)?;
    let tests: HashSet<_> = list
        .mutant
        .iter()
        .map(|mutant| list.test_of(mutant))
        .collect();
    for test in tests {
        journal.say("running the test on the sound sources, where it has to pass");
        let trial = copy.check_sound(test, journal)?;
        journal.say(format_args!("it passes in {}", Seconds(trial.ran)));
    }
    let arm = list.mutant.iter().any(|mutant| mutant.arm);
    let checker = if arm {
        Checker::find(&copy, journal)?
    } else {
        None
    };
    let mut caught = 0;
    for mutant in &list.mutant {
        let verdict = match copy.run_edited(&mutant.edit, list.test_of(mutant), journal) {
            Ok(trial) => judge(trial, mutant.hangs),
            Err(error) => Verdict::Unusable(format!("{error:#}")),
        };
        let verdict = match &checker {
            Some(checker) if mutant.arm => asked(verdict, checker, mutant, &copy, journal)?,
            _ => verdict,
        };
        caught += usize::from(verdict.is_caught());
        show(mutant, &verdict);
    }
    Ok((caught, list.mutant.len()))
}

/// Adds to the verdict what two judges say of recorded runs with the bug.
fn asked(
    verdict: Verdict,
    checker: &Checker,
    mutant: &Mutant,
    copy: &Copy,
    journal: &Journal,
) -> Result<Verdict> {
    Ok(match verdict {
        Verdict::Caught {
            trial, by, said, ..
        } => Verdict::Caught {
            trial,
            by,
            said,
            opinions: Some(copy.edited(&mutant.edit, || checker.ask(copy, journal))?),
        },
        other => other,
    })
}

/// Reads the list, with only the bugs that `only` names if that is not empty.
fn read_list(root: &Path, only: &[String]) -> Result<List> {
    let file = root.join("xtask/mutants.toml");
    let context = || format!("cannot read {}", file.display());
    let mut list: List =
        toml::from_str(&fs::read_to_string(&file).with_context(context)?).with_context(context)?;
    for name in only {
        let known = list.mutant.iter().any(|mutant| mutant.name == *name);
        ensure!(known, "{} lists no bug named {name}", file.display());
    }
    list.mutant
        .retain(|mutant| only.is_empty() || only.contains(&mutant.name));
    ensure!(!list.mutant.is_empty(), "{} lists no bug", file.display());
    let mutants = core::mem::take(&mut list.mutant);
    list.mutant = on_each_format(mutants, list.formats.as_ref())?;
    Ok(list)
}

/// A bug that names formats becomes one for each of them, with `test` on that format.
fn on_each_format(mutants: Vec<Mutant>, test: Option<&Test>) -> Result<Vec<Mutant>> {
    let mut all = Vec::new();
    for mutant in mutants {
        if mutant.formats.is_empty() {
            all.push(mutant);
            continue;
        }
        let test = test.context("a bug names formats, but there is no table `[formats]`")?;
        all.extend(mutant.formats.iter().map(|format| Mutant {
            name: format!("{} ({format})", mutant.name),
            test: Some(test.on(format)),
            ..mutant.clone()
        }));
    }
    Ok(all)
}

fn judge(trial: Trial, hangs: bool) -> Verdict {
    let by = match &trial.ending {
        Ending::Failed(tests) if tests.is_empty() => "the program died".to_owned(),
        Ending::Failed(tests) if tests.len() == 1 => tests[0].clone(),
        Ending::Failed(tests) => format!("{} and {} more", tests[0], tests.len() - 1),
        Ending::Hung if hangs => "a hang".to_owned(),
        Ending::Hung | Ending::Passed(_) => return Verdict::Escaped { trial },
    };
    let said = finding(&trial.output).to_owned();
    Verdict::Caught {
        trial,
        by,
        said,
        opinions: None,
    }
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// A line of the table: the verdict, the bug, time to catch, time to build, who caught it and
/// what was said.
fn row(mutant: &Mutant, verdict: &Verdict, width: usize) -> String {
    let name = &mutant.name;
    match verdict {
        Verdict::Caught {
            trial,
            by,
            said,
            opinions,
        } => {
            let second = opinions.map_or_else(String::new, |it| format!("\n         {it}"));
            format!(
                "{GOOD}caught{GOOD:#}   {name:<width$}  {}  {DIM}build {}{DIM:#}  {by}: {said}{second}",
                Seconds(trial.ran),
                Seconds(trial.built),
            )
        }
        Verdict::Escaped { trial } => {
            let how = match &trial.ending {
                Ending::Hung => "did not end".to_owned(),
                _ => "every test passed".to_owned(),
            };
            format!(
                "{BAD}ESCAPED{BAD:#}  {name:<width$}  {}  {DIM}build {}{DIM:#}  {how}: {}",
                Seconds(trial.ran),
                Seconds(trial.built),
                mutant.what,
            )
        }
        Verdict::Unusable(error) => format!("{BAD}UNUSABLE{BAD:#} {name:<width$}  {error}"),
    }
}

/// A duration in seconds, in a column.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6.2} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::sample;

    const HEAD: &str = "[test]\npackage = \"sample\"\ntarget = \"--lib\"\n";

    fn mutant(name: &str, find: &str, replace: &str) -> String {
        format!(
            "[[mutant]]\nname = \"{name}\"\nwhat = \"w\"\nfile = \"src/lib.rs\"\n\
             find = '{find}'\nreplace = '{replace}'\n"
        )
    }

    /// The last line's numbers, and the table without the bold and the green.
    fn run_sample(list: &str) -> Result<((usize, usize), Vec<String>)> {
        sample::with("mutants.toml", list, |workspace, journal| {
            let list = read_list(&workspace.root, &[])?;
            let mut rows = Vec::new();
            let show = |mutant: &Mutant, verdict: &Verdict| {
                let row = row(mutant, verdict, 8);
                rows.push(anstream::adapter::strip_str(&row).to_string());
            };
            Ok((run_all(workspace, &list, journal, show)?, rows))
        })
    }

    #[test]
    fn bugs_are_caught_escape_or_cannot_be_used() {
        let list = HEAD.to_owned()
            + &mutant("limit", "{ 9 }", "{ value }")
            + &mutant("idle", "pub fn idle() {}", "")
            + &mutant("stale", "no such text", "");
        let (count, rows) = run_sample(&list).unwrap();
        assert_eq!(count, (1, 3));
        assert!(rows[0].starts_with("caught   limit   "), "{}", rows[0]);
        let said = "large_values_are_cut: assertion `left == right` failed";
        assert!(rows[0].ends_with(said), "{}", rows[0]);
        assert!(rows[1].starts_with("ESCAPED  idle    "), "{}", rows[1]);
        assert!(rows[2].contains("0 times"), "{}", rows[2]);
    }

    #[test]
    fn a_test_that_fails_on_sound_sources_catches_nothing() {
        let list = HEAD.to_owned()
            + &mutant("limit", "{ 9 }", "{ value }")
            + "test = { package = \"sample\", target = \"--lib\", filter = \"nothing\" }\n";
        let error = run_sample(&list).unwrap_err().to_string();
        assert!(error.contains("none was run"), "{error}");
    }

    #[test]
    fn a_misspelt_name_or_field_is_an_error() {
        let list = HEAD.to_owned() + &mutant("limit", "{ 9 }", "{ value }");
        let wrong = ["limits".to_owned()];
        let only = sample::with("mutants.toml", &list, |workspace, _| {
            read_list(&workspace.root, &wrong).map(drop)
        });
        assert!(only.unwrap_err().to_string().contains("limits"));
        assert!(run_sample(&(list + "arms = true\n")).is_err());
        assert!(run_sample(HEAD).is_err());
    }

    #[test]
    fn a_hang_catches_only_what_must_hang() {
        let trial = |ending| Trial {
            ending,
            built: Duration::ZERO,
            ran: LIMIT,
            output: String::new(),
        };
        let escaped = |hangs| matches!(judge(trial(Ending::Hung), hangs), Verdict::Escaped { .. });
        assert!(escaped(false));
        assert!(!escaped(true));
    }

    #[test]
    fn every_bug_in_the_list_fits_the_sources_and_has_its_own_name() {
        let list = read_list(sample::real_root(), &[]).unwrap();
        let mut names = HashSet::new();
        for mutant in &list.mutant {
            let fits = mutant.edit.apply(sample::real_root());
            assert!(fits.is_ok(), "{}: {fits:?}", mutant.name);
            assert!(names.insert(&mutant.name), "{} twice", mutant.name);
        }
    }
}
