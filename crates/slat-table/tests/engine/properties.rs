//! Random sequences of operations against the model, watched by the observer.

use proptest::prelude::*;
use proptest::test_runner::Config;

use slat_table::format::arm64::Arm64;

use crate::driver::Driver;
use crate::odd::Odd;
use crate::operations::{failure, operation};
use crate::setup::FEATURES;

/// Few cases by default, as each is long; `PROPTEST_CASES` asks for more.
fn config() -> Config {
    let asked = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        asked.cases
    } else {
        40
    };
    Config {
        cases,
        max_shrink_iters: 2000,
        ..asked
    }
}

fn shape() -> impl Strategy<Value = (u8, usize)> {
    (
        prop::sample::select(vec![32u8, 34, 39, 40, 48]),
        prop::sample::select(vec![1usize, 2, 64]),
    )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_tidy_table_holds_the_model_in_the_fewest_tables(
        (bits, stripes) in shape(),
        operations in prop::collection::vec(operation(), 1..40),
    ) {
        let mut driver = Driver::<Arm64>::new(FEATURES, bits, stripes, true);
        for operation in &operations {
            driver.run(operation, None);
        }
        driver.finish();
    }

    #[test]
    fn a_table_holds_the_model_whatever_allocation_fails(
        (bits, stripes) in shape(),
        operations in prop::collection::vec((operation(), failure()), 1..40),
    ) {
        let mut driver = Driver::<Arm64>::new(FEATURES, bits, stripes, false);
        for (operation, failure) in &operations {
            driver.run(operation, *failure);
        }
        driver.finish();
    }

    #[test]
    fn the_odd_format_works_as_well(
        stripes in prop::sample::select(vec![1usize, 64]),
        tidy in any::<bool>(),
        operations in prop::collection::vec((operation(), failure()), 1..25),
    ) {
        let mut driver = Driver::<Odd>::new((), 40, stripes, tidy);
        for (operation, failure) in &operations {
            driver.run(operation, if tidy { None } else { *failure });
        }
        driver.finish();
    }
}
