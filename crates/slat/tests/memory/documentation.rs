//! `docs/kvm-differences.md` names a test for everything that it claims; this looks for them.

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_the_page_on_kvm_names_exists() {
    let krate = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = krate.join("../../docs/kvm-differences.md");
    let page = fs::read_to_string(page).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    let mut named = 0;
    for (module, test) in quoted.filter_map(|quoted| quoted.split_once("::")) {
        let is_module = module.starts_with(char::is_lowercase);
        if !is_module {
            continue;
        }
        let place = match module {
            unit if unit.starts_with("src/") => format!("{unit}.rs"),
            target if target.starts_with("loom_") || target == "kvm_differential" => {
                format!("tests/{target}.rs")
            }
            other => format!("tests/memory/{other}.rs"),
        };
        let source = fs::read_to_string(krate.join(&place)).unwrap();
        let found = source.lines().map(str::trim).collect::<String>();
        // One that runs for every format is defined like any other function, and listed.
        let (_, listed) = found.split_once("for_every_format! {").unwrap_or_default();
        let everywhere = listed.split(['}', ',']).any(|listed| listed == test);
        let alone = found.contains(&format!("#[test]fn {test}() {{"));
        assert!(alone || everywhere, "{place} has no test {test}");
        named += 1;
    }
    assert!(named > 60, "only {named} tests found");
}
