//! Random sequences of operations against the model, watched by the observer, for every format.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use slat_table::format::Format;

use crate::driver::Driver;
use crate::operations::{failure, operation, widths};

/// Few cases by default, as each is long and there are many formats; `PROPTEST_CASES` asks for
/// more.
fn runner() -> TestRunner {
    let asked = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        asked.cases
    } else {
        6
    };
    TestRunner::new(Config {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..asked
    })
}

/// Guest address bits as many as the row says, or fewer, and stripes.
fn shape<F: Format>(features: &F::Features, most: u8) -> impl Strategy<Value = (u8, usize)> {
    let widths = widths::<F>(features, most);
    let any_width = any::<Index>().prop_map(move |index| *index.get(&widths));
    let bits = prop_oneof![Just(most), any_width];
    (bits, select(vec![1usize, 2, 64]))
}

fn a_tidy_table_holds_the_model_in_the_fewest_tables<F: Format>(features: F::Features, most: u8) {
    let input = (shape::<F>(&features, most), vec(operation(), 1..40));
    let result = runner().run(&input, |((bits, stripes), operations)| {
        let mut driver = Driver::<F>::new(features, bits, stripes, true);
        for operation in &operations {
            driver.run(operation, None);
        }
        driver.finish();
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn a_table_holds_the_model_whatever_allocation_fails<F: Format>(features: F::Features, most: u8) {
    let operations = vec((operation(), failure()), 1..40);
    let input = (shape::<F>(&features, most), operations);
    let result = runner().run(&input, |((bits, stripes), operations)| {
        let mut driver = Driver::<F>::new(features, bits, stripes, false);
        for (operation, failure) in &operations {
            driver.run(operation, *failure);
        }
        driver.finish();
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

crate::setup::for_every_format! {
    a_tidy_table_holds_the_model_in_the_fewest_tables,
    a_table_holds_the_model_whatever_allocation_fails,
}
