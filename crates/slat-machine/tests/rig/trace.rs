//! Runs replay.

use std::fs;
use std::io::BufReader;

use slat_machine::rig::draw::{Drawn, draw};
use slat_machine::trace;

use crate::caught::clean;

fn trace_of(seed: u64, name: &str) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("slat-rig-{}-{name}.trace", std::process::id()));
    let Drawn {
        mut plan,
        mut options,
    } = draw(Default::default(), seed);
    plan.steps = 20_000;
    options.trace = Some(path.clone());
    clean(&plan, &options);
    let trace = fs::read(&path).expect("the trace was written");
    fs::remove_file(&path).expect("it is ours");
    trace
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in [3, 4] {
        let (one, two) = (trace_of(seed, "one"), trace_of(seed, "two"));
        assert!(one.len() > 100_000, "{} bytes", one.len());
        assert!(one == two, "seed {seed} gave two traces");
    }
    assert!(trace_of(3, "three") != trace_of(4, "four"));
}

#[test]
fn the_judge_says_of_a_trace_what_it_said_of_the_run() {
    let trace = trace_of(5, "judged");
    let verdict = trace::check(BufReader::new(&trace[..])).expect("our own trace");
    assert_eq!(verdict.violation, None);
    assert!(verdict.records > 1000);
}
