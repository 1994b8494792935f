//! Trying a test under every schedule, and saying how many there were.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use loom::model::Builder;

/// Tries `test` under every schedule; with a bound, under those with so many preemptions.
pub(crate) fn check(preemptions: Option<usize>, test: impl Fn() + Send + Sync + 'static) {
    builder(preemptions).check(test);
}

/// Tries a pair of operations under every schedule, counts the executions by the ending that
/// `test` returns, and prints the counts.
///
/// For a quick look loom's own variables, such as `LOOM_MAX_PREEMPTIONS`, cut the search short,
/// and the line printed says so.
///
/// Exactly the endings in `expected` must have come: where one is missing, the two never met in
/// the way that leads to it, and the test proves less than it says.
pub(crate) fn pair(
    name: &str,
    expected: &[&'static str],
    test: impl Fn() -> &'static str + Send + Sync + 'static,
) {
    let counts: Arc<Mutex<BTreeMap<&'static str, u64>>> = Arc::default();
    let model = builder(None);
    model.check({
        let counts = Arc::clone(&counts);
        move || {
            let ending = test();
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(ending).or_default() += 1;
        }
    });
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let cut_short = model.preemption_bound.is_some()
        || model.max_duration.is_some()
        || model.max_permutations.is_some();
    let how = if cut_short { "in part" } else { "completely" };
    let total = grouped(counts.values().sum());
    println!("pair {name}: explored {how}, {total} executions");
    for (ending, count) in counts.iter() {
        println!("    {:>10}  {ending}", grouped(*count));
    }
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let found: Vec<_> = counts.keys().copied().collect();
    assert_eq!(found, expected, "the endings of {name}");
}

fn builder(preemptions: Option<usize>) -> Builder {
    let mut model = Builder::new();
    // A path through two transactions is longer than loom expects.
    model.max_branches = 20_000;
    model.preemption_bound = model.preemption_bound.or(preemptions);
    model
}

/// `number` with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
