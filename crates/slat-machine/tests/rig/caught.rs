//! How a test runs a plan, and what it says when something is found.

use slat_machine::rig::{Options, Outcome, Plan, run};

/// Runs a plan in which nothing may be found.
pub(crate) fn clean(plan: &Plan, options: &Options) -> Outcome {
    let outcome = match run(plan, options) {
        Ok(outcome) => outcome,
        Err(error) => panic!("seed {}: {error}", options.seed),
    };
    if let Some(story) = &outcome.finding {
        let rule = outcome.rule.as_deref().unwrap_or("nothing by name");
        panic!("caught: {rule}\n{story}");
    }
    outcome
}

/// In debug builds everything takes ten times as long, so less of it is done.
pub(crate) const fn scaled(release: u64) -> u64 {
    if cfg!(debug_assertions) {
        release / 10
    } else {
        release
    }
}
