//! Scenario files: any text is a plan, or is refused with what is wrong and where.

use slat_cli::scenario;
use slat_cli::source::Source;

/// Reads a scenario, and shows what is wrong with it as a person would see it.
///
/// # Panics
///
/// If the parser does, or if it refuses a text without saying why.
pub fn run(text: &str) {
    if let Err(problems) = scenario::parse(text) {
        let source = Source {
            name: "input.toml".to_owned(),
            text: text.to_owned(),
        };
        assert_ne!(problems.iter().count(), 0);
        assert!(!problems.to_string().is_empty() && !problems.render(&source).is_empty());
    }
}
