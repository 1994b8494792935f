//! Drawn plans: always the same seeds.

use core::num::NonZero;
use core::time::Duration;
use std::thread;

use slat_machine::rig::Row;
use slat_machine::rig::draw::{draw, draw_for_export};
use slat_machine::rig::formats::ROWS;
use slat_machine::rig::soak::{Limits, soak};

use crate::caught::{clean, scaled};

/// For how long to go on with more seeds, if `SLAT_RIG_SECONDS` says so: whoever has planted a bug
/// that shows seldom wants that.
fn longer() -> Duration {
    let seconds = std::env::var("SLAT_RIG_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// The formats that `SLAT_RIG_FORMATS` names, separated by commas; all if it names none.
fn formats() -> Vec<&'static Row> {
    match std::env::var("SLAT_RIG_FORMATS") {
        Ok(names) => names
            .split(',')
            .map(|name| Row::named(name).unwrap_or_else(|| panic!("no format is called {name}")))
            .collect(),
        Err(_) => ROWS.iter().collect(),
    }
}

#[test]
fn nothing_is_found_over_many_drawn_plans() {
    let formats = formats();
    let seeds = scaled(40);
    let limits = Limits {
        formats,
        first_seed: 1_000_000,
        least_seeds: seeds,
        time: longer(),
        steps: None,
        jobs: thread::available_parallelism().map_or(1, NonZero::get),
    };
    let soaked = soak(&limits, &|_| {}).expect("drawn plans can be set up");
    if let Some((_, story)) = soaked.finding {
        let rule = story.split(':').next().unwrap_or_default();
        panic!("caught: {rule}\n{story}");
    }
    assert!(soaked.totals().seeds >= seeds, "{soaked:?}");
    for (format, totals) in &soaked.formats {
        // Runs in which nothing happens find nothing.
        assert!(
            totals.steps >= totals.seeds * 200_000,
            "{format:?} {totals:?}"
        );
        assert!(totals.faults >= totals.seeds * 100, "{format:?} {totals:?}");
        assert!(totals.changes >= totals.seeds * 5, "{format:?} {totals:?}");
    }
}

#[test]
fn nothing_is_found_in_short_runs_on_every_format() {
    for format in formats() {
        for seed in 0..scaled(20) {
            let mut drawn = draw(format, seed);
            drawn.plan.steps = 20_000;
            clean(&drawn.plan, &drawn.options);
        }
    }
}

#[test]
fn nothing_is_found_over_plans_for_external_checkers() {
    for seed in 0..scaled(10) {
        let drawn = draw_for_export(seed);
        clean(&drawn.plan, &drawn.options);
    }
}

#[test]
fn a_seed_always_draws_the_same_plan_and_another_draws_another() {
    let text = |seed| format!("{:?}", draw(Default::default(), seed));
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn a_report_counts_the_frames_that_were_free_before_and_are_after() {
    let mut drawn = draw(Default::default(), 1);
    drawn.plan.steps = 20_000;
    let report = clean(&drawn.plan, &drawn.options).report;
    let churn = report.churn.expect("drawn plans have churn");
    assert_eq!(churn.frames_before, drawn.plan.ram / 4096);
    assert_eq!(churn.frames_after, churn.frames_before);
}
